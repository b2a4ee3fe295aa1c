"""Baseline++: a classifier of cosines, in training and again for every task.

W.-Y. Chen, Y.-C. Liu, Z. Kira, Y.-C. F. Wang, J.-B. Huang. A Closer Look at Few-shot
Classification. ICLR 2019. "Baseline" of that paper is `fine_tune` with `num_classes`.

Differences from the released code: a step in a task sees the whole support set in place of
four examples, and there are as many steps as passes in fours would take, so nothing depends
on an order; the classifier of a task starts at the same random weights for all tasks if
`adapt` gets no key; a feature of zeros has the logit 0 without a small number in the
denominator.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import EMBEDDING, EmbeddingOptions, Head
from metalearn.algorithms.frozen.builder import Classifier, pretrained
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, loops
from metalearn.core.keys import of_seed
from metalearn.core.learner import MetaLearner
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Model
from metalearn.core.rows import unit
from metalearn.core.task import Examples
from metalearn.core.types import Array, PyTree

MOMENTUM = DAMPENING = 0.9
BATCH = 4


@takes_options(of=EMBEDDING)
def baseline_plus_plus(
    encoder: Model,
    *,
    num_classes: int,
    num_ways: int,
    scale: float | None = None,
    rate: float = 0.01,
    weight_decay: float = 1e-3,
    num_epochs: int = 100,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Fits a classifier of cosines to frozen features that such a classifier has learned.

    `logit_k = s g_k cos(f(x), v_k)`: the direction v_k and the length g_k of a weight are
    learned apart. In a task `theta <- theta - rate b` with `b <- 0.9 b + 0.1 (grad L +
    weight_decay theta)`, where b starts at the first gradient and L is the cross-entropy of
    the support set.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_classes: Number of training classes.
      num_ways: W, classes the logits have room for. Classes absent from a support set get a
        logit that never wins.
      scale: s of both classifiers. `None` is the rule of the paper: 2 for a classifier of
        up to 200 classes, 10 for more.
      rate: Rate of the steps in a task.
      weight_decay: Weight decay in a task, of directions and lengths.
      num_epochs: Number of passes over the support set. A pass over n examples takes
        `ceil(n / 4)` steps.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are `{"direction": [D, W], "length": [W]}`. The key
      of `adapt` draws its start.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4())
      >>> learner = ml.baseline_plus_plus(encoder, num_classes=64, num_ways=5)
    """
    if scale is not None:
        checks.number("scale", scale, positive=True)
    checks.number("rate", rate)
    checks.number("weight_decay", weight_decay)
    checks.whole_number("num_epochs", num_epochs, least=0)
    classifier = cosine(scale)
    head = fitted_head(
        num_ways, classifier, rate=rate, weight_decay=weight_decay, num_epochs=num_epochs
    )
    settings = {
        "scale": scale,
        "rate": rate,
        "weight_decay": weight_decay,
        "num_epochs": num_epochs,
    }
    return pretrained(
        "baseline_plus_plus",
        encoder,
        head,
        num_classes=num_classes,
        num_ways=num_ways,
        settings=settings,
        classifier=classifier,
        **options,
    )


def cosine(scale: float | None = None) -> Classifier:
    """A classifier of cosines, whose weights have a learned length."""

    def init(key, like, num: int) -> PyTree:
        width = like.shape[-1]
        bound = width**-0.5
        direction = jax.random.uniform(key, (width, num), like.dtype, -bound, bound)
        # As long as it is drawn, so that the weight starts as that of a linear layer.
        length = jnp.sqrt(jnp.sum(jnp.square(direction), axis=0))
        return {"direction": direction, "length": length}

    def logits(params: PyTree, x: Array) -> Array:
        length = params["length"]
        factor = scale or (2.0 if length.shape[0] <= 200 else 10.0)
        return factor * (unit(x) @ unit(params["direction"].T).T) * length[None]

    return Classifier(init, logits)


class _Descent(NamedTuple):
    """Weights on their way, and the running direction of their steps."""

    params: PyTree
    momentum: PyTree


def fitted_head(
    num_ways: int,
    classifier: Classifier,
    *,
    rate: float,
    weight_decay: float,
    num_epochs: int,
) -> Head:
    """A classifier that is fitted to the support set by damped momentum."""

    def fit(params, support: Examples, *, key=None) -> PyTree:
        present = present_classes(support, num_ways)

        def loss(weights: PyTree) -> Array:
            logits = mask_absent(classifier.logits(weights, support.x), present)
            return cross_entropy(logits, support)

        def slope(weights: PyTree) -> PyTree:
            return jax.tree.map(
                lambda g, w: g + weight_decay * w, jax.grad(loss)(weights), weights
            )

        def step(now: _Descent) -> _Descent:
            momentum = jax.tree.map(
                lambda b, g: MOMENTUM * b + (1 - DAMPENING) * g,
                now.momentum,
                slope(now.params),
            )
            moved = jax.tree.map(lambda w, b: w - rate * b, now.params, momentum)
            return _Descent(moved, momentum)

        start = classifier.init(of_seed(0) if key is None else key, support.x, num_ways)
        # The number of valid rows: padding takes no steps.
        steps = num_epochs * (-(-jnp.sum(support.mask, dtype=jnp.int32) // BATCH))
        # At the start itself `0.9 b + 0.1 g` is g, which the first step has undamped.
        first = _Descent(start, slope(start))
        return loops.repeat(step, first, steps).params

    def score(params, weights: PyTree, x: Array) -> Array:
        return classifier.logits(weights, x)

    return Head(fit=fit, score=score)
