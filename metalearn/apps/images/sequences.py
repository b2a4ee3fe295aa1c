"""Recipes of learners that read a stream: images of Omniglot at 28x28, or features."""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Application, Entry, Recipe
from metalearn.apps.images.features import FewShotFeatures
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer

_OMNIGLOT: dict[str, Any] = {
    "dataset": "omniglot",
    "split": "lake",
    "width": 32,
    "downsample": "stride",
}


# The support set is the stream, every item of which counts. More drawings are asked at its
# end: which class is still to come in a stream can be counted, and a learner that has found
# this out looks no further.
_SHOWN: dict[str, Any] = {"shots": 10, "queries": 5, "eval_queries": 1}
_IMAGES = FewShotImages(**_OMNIGLOT, **_SHOWN)
# Of `python -m benchmarks features RUN --centre --unseen`. The mean of all classes is most
# of the length of features behind a ReLU, and with it a memory cannot tell them apart by
# cosines. Features of classes that an encoder has seen are tighter than those of new ones.
# Streams of half the length, which cost half, teach a memory half of its use.
_FEATURES = FewShotFeatures(**_SHOWN | {"eval_shots": 10})


_WHOLE: dict[str, Any] = {"outer": Outer(rate=1e-3), "steps": 4000, "log_every": 200}
_EMBEDDED: dict[str, Any] = {"outer": Outer(rate=2e-3), "steps": 8000, "log_every": 500}


def _stream(app: Application, learner: Learner, **rest: Any) -> Recipe:
    """Streams of Santoro et al. 2016: five classes, ten drawings of each."""
    return Recipe(
        app=app,
        learner=learner,
        tasks_per_step=16,
        validation_tasks=200,
        validate_every=1000,
        checkpoint_every=2000,
        **rest,
    )


_RNN = learners.RNN(hidden=200)
# Without learned strengths a read is an average of all rows that were written, and training
# stays at what can be counted.
_MANN = learners.MANN(strength=True)

RECIPES: dict[str, Entry] = {
    "omniglot-rnn": Entry(
        "an LSTM as the learner, on streams of five classes of Omniglot",
        _stream(_IMAGES, _RNN, **_WHOLE),
    ),
    "omniglot-mann": Entry(
        "MANN, on streams of five classes of Omniglot", _stream(_IMAGES, _MANN, **_WHOLE)
    ),
    "features-rnn": Entry(
        "an LSTM as the learner, on streams of features of five classes",
        _stream(_FEATURES, _RNN, **_EMBEDDED),
    ),
    "features-mann": Entry(
        "MANN, on streams of features of five classes",
        _stream(_FEATURES, learners.MANN(strength=True, rows=64, hidden=64), **_EMBEDDED),
    ),
}
