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
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer

STEPS = 2500
PRETRAIN = 500
PLAIN: dict[str, Any] = {"teacher_rate": 0.0}
ALONE: dict[str, Any] = {"teacher_rate": 0.0, "soft": 0.0}
TEXT: dict[str, Any] = {"dataset": "banking77", "student": (16,)}


def _student(learner: Learner, rate: float, app: dict[str, Any] | None = None) -> Recipe:
    return Recipe(
        app=Distillation(**app or {}),
        learner=learner,
        outer=Outer(name="sgd", rate=rate, momentum=0.9),
        tasks_per_step=1,
        steps=STEPS,
        log_every=500,
        validate_every=STEPS,
        validation_tasks=1000,
        test_tasks=1000,
        checkpoint_every=STEPS,
    )


def _digits(rate: float, pool: str = "apart", **options: Any) -> Recipe:
    return _student(
        learners.MetaDistil(pretrain_steps=PRETRAIN, **options), rate, {"pool": pool}
    )


def _intents(rate: float, pool: str = "apart", **options: Any) -> Recipe:
    return _student(
        learners.MetaDistil(pretrain_steps=PRETRAIN, **options),
        rate,
        {**TEXT, "pool": pool},
    )


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
        _digits(0.05, "mixed", **ALONE),
    ),
    "distil-text-meta": Entry(
        "MetaDistil on 77 intents (BANKING77): 16 hidden units, a teacher of 128",
        _intents(1.0),
    ),
    "distil-text-plain": Entry(
        "baseline: plain distillation of intents, the quiz left out",
        _intents(1.0, **PLAIN),
    ),
    "distil-text-mixed": Entry(
        "baseline: plain distillation of intents, which learns from the quiz as well",
        _intents(1.0, "mixed", **PLAIN),
    ),
    "distil-text-alone": Entry(
        "baseline: the student of intents by labels alone, those of the quiz as well",
        _intents(1.0, "mixed", **ALONE),
    ),
}
