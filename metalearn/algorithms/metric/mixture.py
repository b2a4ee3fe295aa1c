"""Infinite mixture prototypes: a class has as many prototypes as its examples ask for.

K. Allen, E. Shelhamer, H. Shin, J. Tenenbaum. Infinite Mixture Prototypes for Few-Shot
Learning. ICML 2019. The threshold, the assignment, the logits and what is held constant in
their derivatives follow the released code (`fewshot/models/imp.py`). Differences:

- An example is compared with all clusters of its class. The code takes the first of them
  alone, the class mean: examples that lie together far from it open a cluster each.
- All support examples have labels: the clusters and the second scale of unlabelled ones are
  left out. There is one pass over the examples, as in the code's settings.
- A cluster that is left with no more than a thousandth of an example is dropped, as in the
  code.
- Of one class alone the spread of class means is 0; in the code it is not a number.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    class_means,
    embedded,
    members_of,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, loops
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, PyTree

LEAST = 1e-3  # examples that a cluster needs


class _Mixture(NamedTuple):
    """Clusters: centres `[W + N, D]`, and of which class each is, bool `[W + N, W]`."""

    centres: Array
    members: Array


@takes_options(of=EMBEDDING)
def infinite_mixture_prototypes(
    encoder: Model,
    *,
    num_ways: int,
    alpha: float = 0.1,
    sigma: float = 5.0,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by the nearest of several prototypes of each class.

    A class begins with one cluster at its mean. Its examples are looked at in order: one
    whose squared distance to every cluster of its class is above
    `t = -2 s log(alpha) + D s log(1 + r / s)` opens a cluster where it stands. Here s is
    the variance of a cluster, which is learned, and r the variance of the class means. Then
    each example is shared among the clusters of its class in proportion to
    `exp(-|f(x) - c|^2 / (2 s))`, the centres become means with these shares, and
    `logit_k = max over clusters of -|f(x) - c|^2 / (2 s)`. Shares and threshold are
    constants to derivatives. The term `|f(x)|^2`, common to all clusters, is left out of
    the logits.

    Without a new cluster this is `protonet` with the scale `1 / (2 s)`; for small s a
    cluster is an example, and it is the nearest neighbour.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for. Classes absent from a support set get
        a logit that never wins.
      alpha: Readiness to open clusters, the concentration of the Dirichlet process: the
        smaller, the fewer. The released settings have 0.1 for Omniglot and 1e-5 for
        mini-ImageNet.
      sigma: Variance s of a cluster at the start of training: 5 and 15 there.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the centres `[W + N, D]`, of the classes and of
      those that examples opened, and the class of each, bool `[W + N, W]`: of none where no
      cluster was opened. Which clusters are opened may depend on the order of the examples.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4())
      >>> learner = ml.infinite_mixture_prototypes(encoder, num_ways=20)
    """
    checks.number("alpha", alpha, positive=True)
    checks.number("sigma", sigma, positive=True)

    def init(key: Key, like: Array) -> PyTree:
        return {"log_sigma": jnp.log(jnp.asarray(sigma, like.dtype))}

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> _Mixture:
        variance = jnp.exp(jax.lax.stop_gradient(params["log_sigma"]))
        held = jax.lax.stop_gradient(support.x)
        fixed = Examples(x=held, y=support.y, mask=support.mask)
        means = class_means(fixed, num_ways)
        members = members_of(support, num_ways) > 0
        spread = _spread(means, members.any(0))
        size = held.shape[-1]
        threshold = variance * (size * jnp.log1p(spread / variance) - 2 * math.log(alpha))
        to_mean = jnp.sum(jnp.square(held - means[support.y]), -1)
        to_rows = jnp.sum(jnp.square(held[:, None] - held[None]), -1)
        alike = (support.y[:, None] == support.y[None]) & support.mask[None]
        opened = _opened(to_mean, to_rows, alike, support.mask, threshold)

        # Columns: the cluster at the class mean, then those that the examples opened.
        squares = jnp.concatenate([to_mean[:, None], to_rows], 1)
        own = jnp.concatenate([jnp.ones_like(opened)[:, None], alike & opened[None]], 1)
        shares = jax.nn.softmax(jnp.where(own, -squares / (2 * variance), -jnp.inf), -1)
        to_means = jnp.where(members, shares[:, :1], 0)
        shares = jnp.concatenate([to_means, shares[:, 1:]], 1)
        shares = jnp.where(support.mask[:, None], shares, 0)
        sizes = shares.sum(0)
        alive = ~(sizes <= LEAST)  # what is not a number is not left out in silence
        centres = shares.T @ support.x / jnp.where(alive, sizes, 1)[:, None]
        classes = jnp.concatenate([jnp.eye(num_ways, dtype=bool), members], 0)
        return _Mixture(centres, classes & alive[:, None])

    def score(params: PyTree, mixture: _Mixture, x: Array) -> Array:
        centres, members = mixture
        apart = jnp.sum(jnp.square(centres), -1)[None] - 2 * x @ centres.T
        near = -apart / (2 * jnp.exp(params["log_sigma"]))
        # A class without a cluster, which `embedded` masks, has none that is near.
        out = jnp.where(members.any(0), -jnp.inf, 0).astype(near.dtype)[None, :, None]
        return jnp.max(jnp.where(members.T[None], near[:, None], out), -1)

    head = Head(fit=fit, score=score, init=init)
    settings = {"alpha": alpha, "sigma": sigma}
    return embedded(
        "infinite_mixture_prototypes",
        encoder,
        head,
        num_ways=num_ways,
        settings=settings,
        **options,
    )


def _spread(means: Array, present: Array) -> Array:
    """Variance of the class means, averaged over dimensions; 0 of one class."""
    count = jnp.sum(present).astype(means.dtype)
    centre = jnp.sum(jnp.where(present[:, None], means, 0), 0) / jnp.maximum(count, 1)
    squares = jnp.where(present[:, None], jnp.square(means - centre[None]), 0)
    return jnp.mean(squares.sum(0)) / jnp.maximum(count - 1, 1)


def _opened(
    to_mean: Array, to_rows: Array, alike: Array, mask: Array, threshold: Array
) -> Array:
    """Examples that open a cluster, bool `[N]`.

    Args:
      to_mean: Squared distances to the mean of the own class, `[N]`.
      to_rows: Squared distances to the other examples, `[N, N]`.
      alike: Pairs of one class, bool `[N, N]`.
      mask: Mask of the valid examples, bool `[N]`.
      threshold: Squared distance from which on a cluster is opened.
    """

    def step(opened: Array, row) -> tuple[Array, None]:
        place, far, squares, own, valid = row
        near = jnp.any(opened & own & (squares <= threshold))
        return opened.at[place].set(valid & far & ~near), None

    rows = (jnp.arange(mask.shape[0]), to_mean > threshold, to_rows, alike, mask)
    return loops.scan(step, jnp.zeros_like(mask), rows)[0]
