"""Recipes of texts: minutes on one core, with the files of a set in `--data-dir`.

Any set and fold by `--app.dataset` and `--app.fold`, word vectors by `--app.features
wordllama`, 5 shots by `--app.eval-shots 5`.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, sgd
from metalearn.apps.text.few_shot import FewShotText


def _text(learner: Learner, app: dict[str, Any] | None = None, **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=1e-3),
        "tasks_per_step": 4,
        "steps": 1000,
        "log_every": 100,
        "validate_every": 100,
        # Of good vectors, training on few classes often makes worse ones.
        "validate_start": True,
        "validation_tasks": 500,
        "test_tasks": 2000,
        "checkpoint_every": 500,
    }
    return Recipe(app=FewShotText(**app or {}), learner=learner, **shared | rest)


RECIPES: dict[str, Entry] = {
    "text-centroid": Entry(
        "the nearest centroid of the vectors on intents (BANKING77): nothing is trained",
        _text(learners.ProtoNet(scale=10.0), {"widths": ()}, steps=1, validate_every=1),
    ),
    "text-protonet": Entry(
        "prototypical networks on intents (BANKING77), 5-way 1-shot",
        # Distances of unit vectors are at most 2, too little for a sharp softmax.
        _text(
            learners.ProtoNet(scale=10.0),
            {"ways": 15, "eval_ways": 5},
            tasks_per_step=2,
        ),
    ),
    "text-r2d2": Entry(
        "R2-D2 on intents (BANKING77), 5-way 1-shot",
        _text(
            learners.R2D2(regularisation=0.1, learn="all"),
            {"ways": 15, "eval_ways": 5},
            tasks_per_step=2,
        ),
    ),
    "text-matching": Entry(
        "matching networks on intents (BANKING77), 5-way 1-shot",
        _text(
            learners.MatchingNetworks(),
            {"ways": 15, "eval_ways": 5},
            tasks_per_step=2,
        ),
    ),
    "text-maml": Entry(
        "MAML on intents (BANKING77), 5-way 1-shot",
        _text(
            learners.MAML(inner_opt=sgd(1.0), num_steps=5), outer=Outer(rate=1e-3, clip=1.0)
        ),
    ),
}
