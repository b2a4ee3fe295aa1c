"""Recipes of the next place: minutes on one core, with a set in `--data-dir`.

All networks are told which candidates the history has, which the paper's is not
(`--app.no-returns`). Inner rates and steps of MAML, of fine-tuning and of CHAML, and its
shares, were chosen on validation areas; forms of CHAML without a part have those of CHAML.
The paper's shares of hard areas, hard users and steps on easy areas are a half.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, sgd
from metalearn.apps.places.next_place import NextPlace


def _places(learner: Learner, **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=1e-2),
        "tasks_per_step": 4,
        "steps": 600,
        "log_every": 200,
        "validate_every": 200,
        "validation_tasks": 100,
        "test_tasks": 100,
        "checkpoint_every": 200,
    }
    return Recipe(app=NextPlace(returns=True), learner=learner, **shared | rest)


def _chaml(*, hardness: bool = True, curriculum: bool = True) -> Recipe:
    easy: dict[str, Any] = {"easy_steps": 100} if curriculum else {}
    hard: dict[str, Any] = {"hard_areas": 0.25, "hard_users": 0.25} if hardness else {}
    return _places(
        learners.CHAML(
            inner_opt=sgd(0.1), hardness=hardness, curriculum=curriculum, **easy, **hard
        )
    )


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
        "MAML on the same areas", _places(learners.MAML(inner_opt=sgd(0.3)))
    ),
    "places-fine-tune": Entry(
        "baseline: one network of all areas, fine-tuned on the support set of an area",
        _places(learners.FineTuning(opt=sgd(0.3), num_steps=5)),
    ),
    "places-joint": Entry(
        "baseline: the same network, which does not adapt",
        _places(learners.NoAdaptation()),
    ),
}
