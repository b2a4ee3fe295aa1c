"""Recipes of learners that read a task as a sequence or write it to a memory.

Images are those of Omniglot at 28x28, and the classes of a test are of alphabets that
training never sees.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer

_OMNIGLOT: dict[str, Any] = {
    "dataset": "omniglot",
    "split": "lake",
    "width": 32,
    "downsample": "stride",
}


def _stream(learner: Learner) -> Recipe:
    """Streams of Santoro et al. 2016: five classes, ten drawings of each.

    The support set is the stream, every item of which counts; one more drawing of each
    class is asked at its end.
    """
    app = {**_OMNIGLOT, "shots": 10, "queries": 1, "eval_queries": 1}
    return Recipe(
        app=FewShotImages(**app),
        learner=learner,
        outer=Outer(rate=1e-3),
        steps=4000,
        tasks_per_step=16,
        log_every=200,
        validate_every=1000,
        validation_tasks=200,
        checkpoint_every=2000,
    )


def _one_shot(learner: Learner, **app: Any) -> Recipe:
    return Recipe(
        app=FewShotImages(**{**_OMNIGLOT, "width": 64, "queries": 5, **app}),
        learner=learner,
        outer=Outer(rate=1e-3),
        steps=5000,
        tasks_per_step=16,
        log_every=200,
        validate_every=1000,
        checkpoint_every=2500,
    )


RECIPES: dict[str, Entry] = {
    "omniglot-rnn": Entry(
        "an LSTM as the learner, on streams of five classes of Omniglot",
        _stream(learners.RNN(hidden=200)),
    ),
    "omniglot-mann": Entry(
        "MANN, on streams of five classes of Omniglot", _stream(learners.MANN())
    ),
    "omniglot-snail": Entry("SNAIL on Omniglot, 5-way 1-shot", _one_shot(learners.SNAIL())),
    "omniglot-meta-networks": Entry(
        "meta networks on Omniglot, 5-way 1-shot", _one_shot(learners.MetaNetworks())
    ),
}
