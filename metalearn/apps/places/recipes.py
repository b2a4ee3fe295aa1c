"""Recipes of the next place: minutes on one core, with a set in `--data-dir`."""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, sgd
from metalearn.apps.places.next_place import NextPlace


def _places(learner: Learner, **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=1e-3),
        "tasks_per_step": 4,
        "steps": 2000,
        "log_every": 200,
        "validate_every": 200,
        "validation_tasks": 100,
        "test_tasks": 100,
        "checkpoint_every": 1000,
    }
    return Recipe(app=NextPlace(), learner=learner, **shared | rest)


RECIPES: dict[str, Entry] = {
    "places-chaml": Entry(
        "CHAML: the next place in new areas (Foursquare, three cities)",
        _places(learners.CHAML(inner_opt=sgd(0.1), easy_steps=1000)),
    ),
    "places-maml": Entry(
        "MAML on the same areas", _places(learners.MAML(inner_opt=sgd(0.1)))
    ),
    "places-joint": Entry(
        "baseline: one network of all areas, which does not adapt",
        _places(learners.NoAdaptation()),
    ),
    "places-fine-tune": Entry(
        "baseline: the same network, fine-tuned on the support set of an area",
        _places(learners.FineTuning(opt=sgd(0.1), num_steps=1)),
    ),
}
