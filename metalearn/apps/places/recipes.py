"""Recipes of the next place: minutes on one core, with a set in `--data-dir`."""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, sgd
from metalearn.apps.places.next_place import NextPlace

STEPS = 600
RATE = 0.1  # of inner steps


def _places(learner: Learner, **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=1e-2),
        "tasks_per_step": 4,
        "steps": STEPS,
        "log_every": 200,
        "validate_every": 200,
        "validation_tasks": 100,
        "test_tasks": 100,
        "checkpoint_every": 200,
    }
    return Recipe(app=NextPlace(), learner=learner, **shared | rest)


def _chaml(**switches: bool) -> Recipe:
    easy = {"easy_steps": STEPS // 2} if switches.get("curriculum", True) else {}
    return _places(learners.CHAML(inner_opt=sgd(RATE), **easy, **switches))


RECIPES: dict[str, Entry] = {
    "places-chaml": Entry(
        "CHAML: the next place in new areas (Foursquare, three cities)", _chaml()
    ),
    "places-chaml-curriculum": Entry(
        "CHAML without hardness: the pool of areas grows, all draws are uniform",
        _chaml(hardness=False),
    ),
    "places-chaml-hardness": Entry(
        "CHAML without a curriculum: hard areas and users of all areas come again",
        _chaml(curriculum=False),
    ),
    "places-chaml-neither": Entry(
        "CHAML without either, which is MAML on different areas in each step",
        _chaml(hardness=False, curriculum=False),
    ),
    "places-maml": Entry(
        "MAML on the same areas", _places(learners.MAML(inner_opt=sgd(RATE)))
    ),
    "places-fine-tune": Entry(
        "baseline: one network of all areas, fine-tuned on the support set of an area",
        _places(learners.FineTuning(opt=sgd(RATE), num_steps=1)),
    ),
    "places-joint": Entry(
        "baseline: the same network, which does not adapt",
        _places(learners.NoAdaptation()),
    ),
}
