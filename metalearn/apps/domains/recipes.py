"""Recipes of domains that training has not seen: minutes on one core.

Another target by `--app.target`, which is the domain that is left out. The settings are
those of all learners alike, but for a constant rate of MetaReg and what `benchmarks
domains` chose for DANN, and are not tuned. Runs of DANN are transductive: the images that
are judged are in training, without their labels.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.domains.unseen import UnseenDomain
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer

# The model of MetaReg is trained in the second half: a falling rate would leave it little.
_CONSTANT = Outer(rate=3e-3, schedule="constant")
# By validation on the sources, as the weight of the reversed gradient.
_FAST = Outer(rate=1e-2)
# As many target images as of each source.
_TARGET = {"unlabelled": 32}


def _digits(learner: Learner, app: dict[str, Any] | None = None, **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=3e-3),
        "tasks_per_step": 1,
        "steps": 1000,
        "log_every": 100,
        "validate_every": 250,
        "validation_tasks": 1000,
        "test_tasks": 1000,
        "checkpoint_every": 500,
    }
    return Recipe(app=UnseenDomain(**app or {}), learner=learner, **shared | rest)


def _pacs(learner: Learner, **rest: Any) -> Recipe:
    app = {"dataset": "pacs", "target": "sketch", "mirror": True, "per_domain": 16}
    return _digits(learner, app, **rest)


RECIPES: dict[str, Entry] = {
    "domains-mldg": Entry(
        "MLDG on rotated digits, tested at an angle that training has not seen",
        _digits(learners.MLDG()),
    ),
    "domains-metareg": Entry(
        "MetaReg on the same digits: half of the steps learn the regulariser",
        _digits(learners.MetaReg(pretrain_steps=500), outer=_CONSTANT),
    ),
    "domains-erm": Entry(
        "baseline: joint training on all source angles",
        _digits(learners.NoAdaptation()),
    ),
    "domains-dann": Entry(
        "DANN on the same digits: the images of the target, without labels (transductive)",
        _digits(learners.DANN(adversarial_weight=0.1), _TARGET, outer=_FAST),
    ),
    "domains-dann-meta": Entry(
        "the same with meta-steps for a good start of DANN (transductive)",
        _digits(learners.MetaDANN(adversarial_weight=0.1), _TARGET, outer=_FAST),
    ),
    "domains-pacs-mldg": Entry(
        "MLDG on PACS at 64x64, tested on sketches", _pacs(learners.MLDG())
    ),
    "domains-pacs-metareg": Entry(
        "MetaReg on the same images: half of the steps learn the regulariser",
        _pacs(learners.MetaReg(pretrain_steps=500), outer=_CONSTANT),
    ),
    "domains-pacs-erm": Entry(
        "baseline: joint training on photographs, art and cartoons",
        _pacs(learners.NoAdaptation()),
    ),
}
