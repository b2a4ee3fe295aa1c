"""Attentive recurrent comparators: two images are looked at in turn and then judged.

P. Shyam, S. Gupta, A. Dukkipati. Attentive Recurrent Comparators. ICML 2017. Differences:

- The paper trains the plain comparator on balanced pairs, same or different, by a binary
  loss. Here it is trained on tasks: the logits of a query's pairs compete in the
  cross-entropy over classes, as they do at test and in the paper's full context.
- The paper has one example a class. With more, the logit of a class is the mean of those of
  its pairs; in the full context the states of the pairs are averaged before it.
- One linear layer reads the state. A public port has three with nothing between them, which
  is the same function.
- The rows of a filter sum to 1 exactly: a Cauchy kernel is nowhere zero, so that no small
  number stands in the denominator.
- A glimpse is no larger than the image: embeddings `[N, D]` are images of one row, and a
  glimpse of theirs is one row.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    embedded,
    shares_of,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, loops
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, PyTree
from metalearn.models.cells import lstm_init, lstm_start, lstm_step
from metalearn.models.dense import dense, linear


class _Shown(NamedTuple):
    """A support set as it is compared: images `[N, H, V, C]` and weights `[N, W]`.

    The weights of a class sum to 1 over its examples; they are 0 for one without any.
    """

    images: Array
    weights: Array


@takes_options(of=EMBEDDING)
def attentive_recurrent_comparator(
    encoder: Model,
    *,
    num_ways: int,
    num_glimpses: int = 8,
    glimpse: int = 4,
    hidden: int = 128,
    context: bool = False,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by an LSTM that looks at a query and a support example in turn.

    The state h of the LSTM says where it looks next: `(a, b, z) = tanh(h G + g)`. On a side
    of S pixels the R points of a glimpse are `(S - 1) (a + 1) / 2 + S / R (1 - |z|) (i -
    (R - 1) / 2)`. Each sees the pixels by a Cauchy kernel of width `exp(1 - 2 |z|)`, whose
    weights sum to 1. The LSTM reads the glimpses of `num_glimpses` rounds, the query first.
    Its last state h gives the similarity `v h + w` of the pair, and the logit of a class is
    the mean over its support examples. In full context a bidirectional LSTM reads the
    states of all classes of the task before.

    Args:
      encoder: Network from inputs to maps `[N, H, W, C]`, such as `ml.models.ConvMaps`, all
        channels of which a glimpse sees; embeddings `[N, D]` are maps of one row with one
        channel. A function that returns the images as they are makes the comparator of the
        paper.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set get a logit that never wins.
      num_glimpses: Number of glimpses of each of the two images.
      glimpse: Number of points of a glimpse along each side.
      hidden: Size of the state of the LSTM.
      context: Whether the classes are compared jointly. It reads them in the order of
        their labels, on which predictions then depend.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the images of the support set and the weights
      `[N, W]` of its examples. All pairs of a query and a support example are run through
      the LSTM, and training stores what its steps have seen.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.ConvMaps(width=16))
      >>> learner = ml.attentive_recurrent_comparator(encoder, num_ways=20)
    """
    sizes = {"num_glimpses": num_glimpses, "glimpse": glimpse, "hidden": hidden}
    for name, value in sizes.items():
        checks.whole_number(name, value, least=1)

    def init(key: Key, like: Array) -> PyTree:
        _, height, width, channels = jax.eval_shape(_images, like).shape
        seen = min(glimpse, height) * min(glimpse, width) * channels
        keys, dtype = jax.random.split(key, 5), like.dtype
        params = {
            "attention": dense(keys[0], hidden, 3),
            "cell": lstm_init(keys[1], seen, hidden, dtype),
            "similarity": dense(keys[2], 2 * hidden if context else hidden, 1),
        }
        if context:
            params["forward"] = lstm_init(keys[3], hidden, hidden, dtype)
            params["backward"] = lstm_init(keys[4], hidden, hidden, dtype)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> _Shown:
        return _Shown(_images(support.x), shares_of(support, num_ways))

    def score(params: PyTree, shown: _Shown, x: Array) -> Array:
        states = _compare(params, _images(x), shown.images, num_glimpses, glimpse)
        if context:
            states = jnp.einsum("qnu,nw->qwu", states, shown.weights)
            states = _in_context(params, states, shown.weights.any(0))
            return linear(params["similarity"], states)[..., 0]
        return linear(params["similarity"], states)[..., 0] @ shown.weights

    settings = {**sizes, "context": context}
    return embedded(
        "attentive_recurrent_comparator",
        encoder,
        Head(fit=fit, score=score, init=init),
        num_ways=num_ways,
        maps=True,
        settings=settings,
        **options,
    )


def _images(x: Array) -> Array:
    """Maps `[N, H, W, C]`; vectors `[N, D]` as `[N, 1, D, 1]`."""
    return x[:, None, :, None] if x.ndim == 2 else x


def _compare(
    params: PyTree, queries: Array, supports: Array, num_glimpses: int, glimpse: int
) -> Array:
    """Last states `[Q, N, U]` of all pairs of images `[Q, H, V, C]` and `[N, H, V, C]`."""

    def look(carry: tuple[Array, Array], images: Array, axes: str):
        place = jnp.tanh(linear(params["attention"], carry[0]))
        height, width = images.shape[1:3]
        rows = _filters(place[..., 0], place[..., 2], height, min(glimpse, height))
        columns = _filters(place[..., 1], place[..., 2], width, min(glimpse, width))
        seen = jnp.einsum(f"qnih,{axes}hvc,qnjv->qnijc", rows, images, columns)
        return lstm_step(params["cell"], carry, seen.reshape((*seen.shape[:2], -1)))[0]

    def both(carry: tuple[Array, Array], _):
        return look(look(carry, queries, "q"), supports, "n"), None

    start = lstm_start(params["cell"], queries.shape[0], supports.shape[0])
    (states, _), _ = loops.scan(both, start, None, length=num_glimpses)
    return states


def _filters(centre: Array, zoom: Array, size: int, num: int) -> Array:
    """Weights of `size` pixels at `num` points, `[..., num, size]`, each row of sum 1.

    Args:
      centre: Place of the middle point from -1, the first pixel, to 1, the last, `[...]`.
      zoom: Number in -1..1, `[...]`, whose size says how near the points stand and how
        sharply they see: 0 spreads them over all pixels.
      size: S, number of pixels.
      num: R, number of points.
    """
    flat = tuple(range(centre.ndim))
    steps = jnp.expand_dims(jnp.arange(num, dtype=centre.dtype) - (num - 1) / 2, flat)
    stride = size / num * (1 - jnp.abs(zoom))
    points = ((size - 1) / 2 * (centre + 1))[..., None] + stride[..., None] * steps
    pixels = jnp.expand_dims(jnp.arange(size, dtype=centre.dtype), (*flat, -2))
    width = jnp.exp(1 - 2 * jnp.abs(zoom))[..., None, None]
    # The factor 1 / (pi width) of the density cancels.
    weights = 1 / (1 + jnp.square((pixels - points[..., None]) / width))
    return weights / weights.sum(-1, keepdims=True)


def _in_context(params: PyTree, states: Array, present: Array) -> Array:
    """States of classes `[Q, W, U]` after both LSTMs have read them, `[Q, W, 2 U]`."""

    def reading(cell: PyTree, reverse: bool) -> Array:
        def step(carry, of_class):
            state, valid = of_class
            new, _ = lstm_step(cell, carry, state)
            # A class that the task does not have is passed over.
            carry = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry)
            return carry, carry[0]

        start = lstm_start(cell, states.shape[0])
        steps = (jnp.moveaxis(states, 1, 0), present)
        return loops.scan(step, start, steps, reverse=reverse)[1]

    read = [reading(params["forward"], False), reading(params["backward"], True)]
    return jnp.moveaxis(jnp.concatenate(read, -1), 0, 1)
