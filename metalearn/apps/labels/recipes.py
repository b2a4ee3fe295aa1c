"""Recipes of wrong labels and long tails: a minute or two on one core.

All have the same images. `labels-plain` sees in a step the noisy and the clean batch that
the learners see; baselines of the pool "mixed", those of the long tail too, draw from all
images alike. There is one validation, at the end: choosing the step on clean images would
be another way to resist wrong labels. `--validate-every 200` does so.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.labels.noisy import NoisyLabels
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer

STEPS = 2000
TAIL: dict[str, Any] = {
    "classes": ("9", "4"),
    "flips": 0.0,
    "imbalance": 100.0,
    "clean_per_class": 10,
}


def _labels(
    learner: Learner, rate: float, app: dict[str, Any] | None = None, **rest: Any
) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(name="sgd", rate=rate, momentum=0.9),
        "tasks_per_step": 1,
        "steps": STEPS,
        "log_every": 200,
        "validate_every": STEPS,
        "validation_tasks": 1000,
        "test_tasks": 1000,
        "checkpoint_every": STEPS,
    }
    return Recipe(app=NoisyLabels(**app or {}), learner=learner, **shared | rest)


def _joint(rate: float, pool: str, balance: str = "none", **app: Any) -> Recipe:
    app = {"pool": pool, "balance": balance, **app}
    return _labels(learners.NoAdaptation(), rate, app)


RECIPES: dict[str, Entry] = {
    "labels-l2rw": Entry(
        "learning to reweight: digits, 40 % of the labels wrong, a hundred clean a class",
        _labels(learners.L2RW(), 0.01),
    ),
    "labels-meta-weight-net": Entry(
        "Meta-Weight-Net (a learned function of the loss weighs) on the same digits",
        _labels(learners.MetaWeightNet(rate=0.02, weights_rate=0.01), 0.02),
    ),
    "labels-plain": Entry(
        "baseline: plain training on the same noisy and clean batches",
        _joint(0.02, "apart"),
    ),
    "labels-mixed": Entry(
        "baseline: plain training on all digits alike, a sixth of them clean",
        _joint(0.02, "mixed"),
    ),
    "labels-oracle": Entry(
        "bound: plain training on the digits whose label is right, which nobody knows",
        _joint(0.1, "right"),
    ),
    "labels-clean-set": Entry(
        "baseline: plain training on the clean digits alone",
        _joint(0.1, "clean"),
    ),
    "labels-tail-l2rw": Entry(
        "learning to reweight: 4 against 9, one to a hundred, ten clean ones of each",
        _labels(learners.L2RW(), 0.01, TAIL),
    ),
    "labels-tail-meta-weight-net": Entry(
        "Meta-Weight-Net on the same two digits",
        _labels(learners.MetaWeightNet(rate=0.02, weights_rate=0.01), 0.02, TAIL),
    ),
    "labels-tail-plain": Entry(
        "baseline: plain training on the same two digits",
        _joint(0.02, "mixed", **TAIL),
    ),
    "labels-tail-class-balanced": Entry(
        "baseline: the same with weights of the classes",
        _joint(0.02, "mixed", "weights", **TAIL),
    ),
    "labels-tail-logit-adjusted": Entry(
        "baseline: the same with adjusted logits",
        _joint(0.02, "mixed", "logits", **TAIL),
    ),
}
