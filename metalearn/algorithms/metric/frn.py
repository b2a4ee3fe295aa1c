"""Feature map reconstruction networks: a class is what its maps can rebuild of a query.

D. Wertheimer, L. Tang, B. Hariharan. Few-Shot Classification With Feature Map
Reconstruction Networks. CVPR 2021. Differences:

- The released code inverts matrices; here they are factorised by Cholesky.
- Classes may have different numbers of support examples. Each has the lambda of its own
  number, masked rows not counted.
- The auxiliary loss is that of the paper, a sum over pairs of different classes. Its first
  release compared the first class with itself as well, many times.
- Each lambda is larger by what rounding may make of the sums of squares of its class, and
  by 1e-6.
- Pre-training on the base classes, whose maps are learned beside the encoder, is left out.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    embedded,
    exact,
    members_of,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.losses import cross_entropy
from metalearn.core.model import Model
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, PyTree
from metalearn.inner.solve import solve

LEAST_RIDGE = 1e-6


@takes_options(of=EMBEDDING)
def frn(
    encoder: Model,
    *,
    num_ways: int,
    auxiliary: float = 0.03,
    by_root_width: bool = False,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by how well the feature maps of a class rebuild that of a query.

    A map is a set of r places with D channels. The places of all k examples of class c are
    the rows of `S_c`, and those of a query the rows of Q. `Q_c = rho Q H_c` rebuilds the
    query, with `H_c = S_c' S_c (S_c' S_c + lambda I)^-1`, `lambda = k r / D exp(alpha) +
    1e-6` and `rho = exp(beta)`; `logit_c = -gamma mean over places of |Q - Q_c|^2`. Alpha,
    beta and gamma are learned, from 0, 0 and 1 on.

    Where a support set has fewer places than D, the same `H_c` comes from a system of their
    number, `S_c' (S_c S_c' + lambda I)^-1 S_c`.

    The training loss is the cross-entropy and `auxiliary` times the sum over pairs of
    classes of `|S_c S_d'|^2`, for maps divided by the norm of the whole support set.

    Args:
      encoder: Network from inputs to maps `[N, H, W, D]`, such as `ml.models.ConvMaps`;
        embeddings `[N, D]` are maps of one place.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set get a logit that never wins.
      auxiliary: Weight of the loss that parts the spaces of the classes.
      by_root_width: Whether maps are divided by the square root of D first, as in the paper
        for ResNet-12 of 640 channels, and not for four layers of 64.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are matrices `I - rho H_c`, `[W, D, D]`, which map a
      place to what a class leaves of it. One learner serves all shots.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.frn(ml.from_linen(ml.models.ConvMaps()), num_ways=20)
    """
    checks.number("auxiliary", auxiliary)

    def places(x: Array) -> Array:
        """Maps as `[N, r, D]`."""
        rows = x.reshape((x.shape[0], -1, x.shape[-1]))
        return rows / rows.shape[-1] ** 0.5 if by_root_width else rows

    def init(key: Key, like: Array) -> PyTree:
        zero = jnp.zeros((), like.dtype)
        return {"alpha": zero, "beta": zero, "gamma": jnp.ones((), like.dtype)}

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> Array:
        rows, members = places(support.x), members_of(support, num_ways)
        num, size, width = rows.shape
        ridges = members.sum(0) * (size / width) * jnp.exp(params["alpha"])
        ridges = ridges + LEAST_RIDGE + _rounding(rows, members)
        rho, eye = jnp.exp(params["beta"]), jnp.eye(width, dtype=rows.dtype)[None]
        if num * size < width:
            return eye - rho * _hats_of_rows(rows, support, members, ridges)
        # I - H = lambda (S'S + lambda I)^-1, which keeps the digits of a small rest.
        ridges = ridges[:, None, None]
        systems = _grams(rows, members) + ridges * eye
        eyes = jnp.broadcast_to(eye, systems.shape)
        return (1 - rho) * eye + rho * ridges * solve(systems, eyes)

    def score(params: PyTree, rests: Array, x: Array) -> Array:
        apart = jnp.einsum("qrd,wde->qwre", places(x), rests)
        return -params["gamma"] * jnp.mean(jnp.sum(jnp.square(apart), -1), -1)

    def loss(params: PyTree, fitted, support: Examples, query: Examples, logits, *, key):
        rows, members = places(support.x), members_of(support, num_ways)
        overlap = _overlap(_grams(rows, members))
        total = cross_entropy(logits, query) + auxiliary * overlap
        return total, {"auxiliary/loss": overlap}

    head = exact(Head(fit=fit, score=score, init=init, loss=loss if auxiliary else None))
    settings = {"auxiliary": auxiliary, "by_root_width": by_root_width}
    return embedded(
        "frn", encoder, head, num_ways=num_ways, maps=True, settings=settings, **options
    )


def _rounding(rows: Array, members: Array) -> Array:
    """What rounding may make of the eigenvalues of `S_c' S_c`, of which none is above its
    trace, `[W]`."""
    squares = jnp.einsum("nrd,nw->w", jnp.square(jax.lax.stop_gradient(rows)), members)
    return float(jnp.finfo(rows.dtype).eps) * squares


def _grams(rows: Array, members: Array) -> Array:
    """`S_c' S_c` of each class, `[W, D, D]`."""
    return jnp.einsum("nrd,nre,nw->wde", rows, rows, members)


def _hats_of_rows(rows: Array, support: Examples, members: Array, ridges: Array) -> Array:
    """H of each class, `[W, D, D]`, by one system over all places of the support set.

    Places of different classes do not meet in it, so that its solution is that of each
    class. A masked row is zero and stands alone.
    """
    num, size, width = rows.shape
    same = (support.y[:, None] == support.y[None]).repeat(size, 0).repeat(size, 1)
    flat = rows.reshape(num * size, width)
    gram = jnp.where(same, jnp.matmul(flat, flat.T), 0)
    solved = solve(gram + jnp.diag(ridges[support.y].repeat(size)), flat)
    return jnp.einsum("nrd,nre,nw->wde", rows, solved.reshape(rows.shape), members)


def _overlap(grams: Array) -> Array:
    """Sum over pairs of classes of `|S_c S_d'|^2`, of a support set of norm 1."""
    # |S_c S_d'|^2 is the inner product of S_c' S_c and S_d' S_d.
    products = jnp.einsum("cde,fde->cf", grams, grams)
    pairs = jnp.sum(jnp.tril(products, -1))
    squares = jnp.trace(grams, axis1=-2, axis2=-1).sum()
    return pairs / jnp.where(squares > 0, squares, 1) ** 2
