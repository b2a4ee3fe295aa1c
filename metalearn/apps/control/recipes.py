"""Recipes of control, which need no data and take minutes."""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.control.episodes import Episodes
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer


def _control(learner: Learner, **settings: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=3e-3),
        "tasks_per_step": 20,
        "steps": 150,
        "log_every": 10,
        "validate_every": 50,
        "validation_tasks": 40,
        "test_tasks": 200,
        "checkpoint_every": 50,
        "eval_steps": 3,
    }
    return Recipe(app=Episodes(), learner=learner, **shared | settings)


RECIPES: dict[str, Entry] = {
    "control-navigation-maml": Entry(
        "MAML-RL: navigation to a goal that is not seen, which policy gradients adapt to",
        _control(learners.MAMLRL(inner_rate=0.1, num_steps=2)),
        "return -10.4 after three updates; a minute and a half on two cores",
    ),
    "control-navigation-joint": Entry(
        "baseline: one policy for all goals, to which the same three updates are made",
        _control(learners.MAMLRL(inner_rate=0.1, num_steps=0)),
    ),
}
