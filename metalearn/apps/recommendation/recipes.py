"""Recipes of a cold start: minutes on one core, with the files of a set in `--data-dir`.

Another state of the test by `--app.state`, another set by `--app.dataset`.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, sgd
from metalearn.apps.recommendation.clicks import ItemClicks
from metalearn.apps.recommendation.few_ratings import FewRatings


def _ratings(learner: Learner, app: dict[str, Any] | None = None, **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=1e-3),
        "tasks_per_step": 32,
        "steps": 1500,
        "log_every": 250,
        "validate_every": 250,
        "validation_tasks": 400,
        "test_tasks": 1000,
        "checkpoint_every": 1000,
    }
    return Recipe(app=FewRatings(**app or {}), learner=learner, **shared | rest)


def _clicks(learner: Learner, **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=1e-3),
        "tasks_per_step": 25,
        "steps": 1000,
        "log_every": 50,
        # The first validation is after the base model's training, which ends at 300: a best
        # step before has a generator that is not trained.
        "validate_every": 350,
        "validation_tasks": 200,
        "test_tasks": 1000,
        "checkpoint_every": 350,
    }
    return Recipe(app=ItemClicks(), learner=learner, **shared | rest)


RECIPES: dict[str, Entry] = {
    # The base model sees every rating about once, as in the paper: with 2,000 steps it
    # remembers them, and the log-loss of new items is 1.1 instead of 0.61. The rate falls
    # by one cosine over both phases, so the generator starts at 79 % of it.
    "clicks-meta-embedding": Entry(
        "Meta-Embedding: clicks on new items from twenty (MovieLens-1M, cold-start parts)",
        _clicks(learners.MetaEmbedding(inner_opt=sgd(0.1), pretrain_steps=300)),
    ),
    # The paper takes one step at 5e-6. Of rates of 0.01, 0.02 and 0.05, the first two are
    # alike on validation users and the last is worse.
    "ratings-melu": Entry(
        "MeLU on ratings of new users (MovieLens-1M, cold-start parts)",
        _ratings(learners.MeLU(inner_opt=sgd(0.01), num_steps=5)),
    ),
    "ratings-maml": Entry(
        "MAML of all parameters on the same ratings",
        _ratings(learners.MAML(inner_opt=sgd(0.01), num_steps=5)),
    ),
    "ratings-joint": Entry(
        "baseline: one model of all users, which does not adapt",
        _ratings(learners.NoAdaptation()),
    ),
    "ratings-fine-tune": Entry(
        "baseline: the same model, fine-tuned on the ratings of a user",
        _ratings(
            learners.FineTuning(opt=sgd(0.01), num_steps=5, adapt_filter="^(decision|head)")
        ),
    ),
}
