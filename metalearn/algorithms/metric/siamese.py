"""Siamese networks: whether two examples are of one class, learned from pairs.

G. Koch, R. Zemel, R. Salakhutdinov. Siamese Neural Networks for One-shot Image Recognition.
ICML Deep Learning Workshop 2015. Differences:

- Training is by episodes: the pairs are all those of a task, of support and query together,
  where the paper draws pairs from the whole set. Pairs of one class and pairs of two weigh
  half each, as if equally many were drawn.
- The weights of the distance begin at `-1 / D`: the learner begins as a nearest neighbour.
- The penalty on weights is left to the outer optimiser, such as `optax.adamw`, and so are
  rates of single layers. Distorted copies of images are left to the sampler.
- A sigmoid after the last hidden layer, as in the paper, belongs to the encoder.
- Several shots: the mean of the log-odds of a class. The paper has one shot.
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
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.task import Examples, concatenate
from metalearn.core.types import Array, Key, PyTree


class _Kept(NamedTuple):
    """A support set: embeddings `[N, D]`, and shares `[N, W]` that average over a class."""

    rows: Array
    shares: Array


@takes_options(of=EMBEDDING)
def siamese_network(
    encoder: Model, *, num_ways: int, **options: Unpack[EmbeddingOptions]
) -> MetaLearner:
    """Learns the probability that two examples are of one class, and classifies by it.

    `p(x, x') = sigmoid(z)`, `z = sum_j a_j |f_j(x) - f_j(x')| + b`, with weights a of any
    sign that are learned. The loss is the binary cross-entropy over all pairs of different
    examples of a task: half its mean over pairs of one class and half that over the others.
    The logit of a class is the mean z of a query with its support examples.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for. Classes absent from a support set get
        a logit that never wins.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`. What it minimises is its metric `pairs/loss`; `query/loss` is the
      cross-entropy of the logits, which is not trained.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.siamese_network(ml.from_linen(ml.models.Conv4()), num_ways=20)
    """

    def init(key: Key, like: Array) -> PyTree:
        size = like.shape[-1]
        weights = jnp.full((size,), -1 / size, like.dtype)
        return {"weights": weights, "bias": jnp.zeros((), like.dtype)}

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> _Kept:
        return _Kept(support.x, shares_of(support, num_ways))

    def score(params: PyTree, kept: _Kept, x: Array) -> Array:
        return _log_odds(params, x, kept.rows) @ kept.shares

    def loss(params, kept, support: Examples, query: Examples, logits, *, key):
        everything = concatenate(support, query)
        y, mask = everything.y, everything.mask
        pairs = mask[:, None] & mask[None] & ~jnp.eye(mask.shape[0], dtype=bool)
        alike = y[:, None] == y[None]
        z = _log_odds(params, everything.x, everything.x)
        same = _mean(jax.nn.softplus(-z), pairs & alike)
        different = _mean(jax.nn.softplus(z), pairs & ~alike)
        value = (same + different) / 2
        return value, {"pairs/loss": value}

    head = Head(fit=fit, score=score, init=init, loss=loss)
    return embedded(
        "siamese_network", encoder, head, num_ways=num_ways, settings={}, **options
    )


# Derivatives of absolute values need their signs, [A, B, D]: cheaper made again than
# stored.
@jax.checkpoint
def _log_odds(params: PyTree, first: Array, second: Array) -> Array:
    """Log-odds `[A, B]` that rows `[A, D]` and rows `[B, D]` are of one class."""
    apart = jnp.abs(first[:, None] - second[None])
    # A sum and not a product of matrices: it runs over the distances as they are made.
    return jnp.sum(apart * params["weights"][None, None], -1) + params["bias"]


def _mean(values: Array, chosen: Array) -> Array:
    """Mean of the chosen values; 0 without one."""
    total = jnp.sum(jnp.where(chosen, values, 0))
    return total / jnp.maximum(jnp.sum(chosen), 1).astype(values.dtype)
