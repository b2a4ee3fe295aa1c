"""Conjugate gradients that stop where a matrix is not positive definite."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.types import Array, PyTree


class Solution(NamedTuple):
    """The result of `conjugate_gradients`.

    Attributes:
      x: Like `b`, the last iterate; `b` itself where the first direction already had no
        positive curvature.
      residual: Scalar, `|b - A x| / |b|` of the last iterate; 0 for `b = 0`.
      steps: Int32 scalar, steps taken.
      negative_curvature: Bool scalar, whether a direction `p` with `p' A p <= 0` ended it.
    """

    x: PyTree
    residual: Array
    steps: Array
    negative_curvature: Array


def conjugate_gradients(
    product: Callable[[PyTree], PyTree], b: PyTree, *, max_steps: int
) -> Solution:
    """Solves `A x = b` for a symmetric `A` that need not be positive definite.

    M. Hestenes, E. Stiefel, 1952, from `x = 0`. `jax.scipy.sparse.linalg.cg` divides by
    `p' A p` whatever its sign, so on an indefinite `A` its iterates may have any size.
    This one stops before the first direction `p` without positive curvature, as the inner
    solver of truncated Newton methods does (J. Nocedal, S. Wright, Numerical Optimization,
    2nd edition, algorithm 7.1). Numbers that are not finite are not stopped at but come
    through to `x`, where a guard of the caller finds them.

    Args:
      product: `v -> A v`, trees like `b`; linear and symmetric.
      b: Tree of arrays.
      max_steps: Most steps; fewer are taken once the residual is rounding error. The loop
        has a fixed length, so it can be differentiated.

    Returns:
      A `Solution`. After as many steps as `A` has distinct eigenvalues `x` is exact up to
      rounding.

    Raises:
      ValueError: `max_steps` is not a positive integer.

    Example:
      >>> conjugate_gradients(lambda v: 4.0 * v, jnp.ones(3), max_steps=1).x
      Array([0.25, 0.25, 0.25], dtype=float32)
    """
    checks.whole_number("max_steps", max_steps, least=1)
    size = _dot(b, b)
    eps = float(jnp.finfo(size.dtype).eps)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        x, r, p, rr, steps, _ = carry
        image = product(p)
        curvature = _dot(p, image)
        # Comparisons with NaN are false: it neither ends the loop nor counts as negative.
        done = rr <= eps**2 * size
        # Two roots, for the product of the squares may be beyond all numbers.
        lengths = jnp.sqrt(_dot(p, p)) * jnp.sqrt(_dot(image, image))
        flat = curvature <= eps * lengths
        go = ~(done | flat)
        length = rr / jnp.where(go, curvature, 1)
        new_x, new_r = _along(length, p, x), _along(-length, image, r)
        new_rr = _dot(new_r, new_r)
        new_p = _along(new_rr / jnp.where(go, rr, 1), p, new_r)
        moved = (new_x, new_r, new_p, new_rr, steps + 1)
        kept = jax.tree.map(lambda new, old: jnp.where(go, new, old), moved, carry[:5])
        return (*kept, flat & ~done), None

    nothing = jax.tree.map(jnp.zeros_like, b)
    start = (nothing, b, b, size, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    end, _ = jax.lax.scan(step, start, length=max_steps)
    x, _, _, rr, steps, negative = end
    at_once = negative & (steps == 0)
    x = jax.tree.map(lambda x, b: jnp.where(at_once, b, x), x, b)
    residual = jnp.sqrt(rr / jnp.where(size == 0, 1, size))
    return Solution(x, residual, steps, negative)


def _dot(a: PyTree, b: PyTree) -> Array:
    def one(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, dtype=jnp.promote_types(x.dtype, jnp.float32))

    return sum(jax.tree.leaves(jax.tree.map(one, a, b)))


def _along(length: Array, direction: PyTree, start: PyTree) -> PyTree:
    return jax.tree.map(lambda d, s: s + length.astype(d.dtype) * d, direction, start)
