"""Recipes of students: a minute or two on one core.

All students of a set have one network, batches of one size and as many updates. Runs of one
seed and one pool have the same teacher at the end of the first phase. There is one
validation, at the end.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.distillation.teaching import Distillation
from metalearn.apps.optimisers import Outer

PLAIN: dict[str, Any] = {"teacher_rate": 0.0}
ALONE: dict[str, Any] = {"teacher_rate": 0.0, "soft": 0.0}
TEXT: dict[str, Any] = {"dataset": "banking77", "student": (16,)}
STUDENT_STEPS = 2000


def _student(
    rate: float, app: dict[str, Any], pretrain_steps: int, **options: Any
) -> Recipe:
    steps = pretrain_steps + STUDENT_STEPS
    return Recipe(
        app=Distillation(**app),
        learner=learners.MetaDistil(pretrain_steps=pretrain_steps, **options),
        outer=Outer(name="sgd", rate=rate, momentum=0.9),
        tasks_per_step=1,
        steps=steps,
        log_every=500,
        validate_every=steps,
        validation_tasks=1000,
        test_tasks=1000,
        checkpoint_every=steps,
    )


def _digits(rate: float, pool: str = "apart", **options: Any) -> Recipe:
    return _student(rate, {"pool": pool}, 500, **options)


def _intents(rate: float, pool: str = "apart", **options: Any) -> Recipe:
    return _student(rate, {**TEXT, "pool": pool}, 1000, **options)


RECIPES: dict[str, Entry] = {
    "distil-meta": Entry(
        "MetaDistil on digits: a student of 8 hidden units, a teacher of 128",
        _digits(0.05),
    ),
    "distil-plain": Entry(
        "baseline: plain distillation from the same teacher, the quiz left out",
        _digits(0.05, **PLAIN),
    ),
    "distil-mixed": Entry(
        "baseline: plain distillation, which learns from the quiz as well",
        _digits(0.05, "mixed", **PLAIN),
    ),
    "distil-alone": Entry(
        "baseline: the student by labels alone, those of the quiz as well",
        _digits(0.02, "mixed", **ALONE),
    ),
    "distil-text-meta": Entry(
        "MetaDistil on 77 intents (BANKING77): 16 hidden units, a teacher of 128",
        _intents(2.0, pilot_rate=1.0),
    ),
    "distil-text-plain": Entry(
        "baseline: plain distillation of intents, the quiz left out",
        _intents(2.0, **PLAIN),
    ),
    "distil-text-mixed": Entry(
        "baseline: plain distillation of intents, which learns from the quiz as well",
        _intents(1.0, "mixed", **PLAIN),
    ),
    "distil-text-alone": Entry(
        "baseline: the student of intents by labels alone, those of the quiz as well",
        _intents(0.5, "mixed", **ALONE),
    ),
}
