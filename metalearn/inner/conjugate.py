"""Conjugate gradients that stop where a matrix is not positive definite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.types import Array, PyTree

Fallback = Literal["right_side", "shortest"]


class Solution(NamedTuple):
    """The result of `conjugate_gradients`.

    Attributes:
      x: Last iterate, a tree like `b`; what `fallback` says if the first direction has no
        positive curvature.
      residual: Relative residual `|b - A x| / |b|` of the last iterate, a scalar; 0 for
        `b = 0`.
      steps: Number of steps taken, an int32 scalar.
      negative_curvature: Whether a direction `p` with `p' A p <= 0` ended the solve, a bool
        scalar.
    """

    x: PyTree
    residual: Array
    steps: Array
    negative_curvature: Array


def conjugate_gradients(
    product: Callable[[PyTree], PyTree],
    b: PyTree,
    *,
    max_steps: int,
    fallback: Fallback = "right_side",
    tolerance: float | None = None,
) -> Solution:
    """Solves `A x = b` for a symmetric `A` that need not be positive definite.

    The method is that of M. Hestenes, E. Stiefel, 1952, started at `x = 0`.
    `jax.scipy.sparse.linalg.cg` divides by `p' A p` whatever the sign, so its iterates may
    have any size if `A` is indefinite. This solver stops before the first direction `p`
    without positive curvature, as the inner solver of truncated Newton methods does
    (J. Nocedal, S. Wright, Numerical Optimization, 2nd edition, algorithm 7.1). Numbers
    that are not finite do not stop the solver. They appear in `x`, so the caller can check
    for them there.

    Args:
      product: Function `v -> A v` of trees like `b`; linear and symmetric.
      b: Tree of arrays.
      max_steps: Largest number of steps. The solver takes fewer if the residual is down to
        rounding error.
      fallback: Word for `x` where the first direction, which is `b`, has no positive
        curvature. "right_side" is `b`, for an `A` that is near the identity.
        "shortest" is `b |b| / |A b|`, for an `A` of any scale: `s A` has `x / s`. By
        Cauchy's inequality it is no longer than any solution of `A x = b`. It is not finite
        where `A b = 0`, for then there is no solution along `b`.
      tolerance: Relative residual at which the loop ends. `None` gives a loop of a fixed
        length, which can be differentiated in reverse mode.

    Returns:
      A `Solution`. Its `x` is exact up to rounding after as many steps as `A` has distinct
      eigenvalues.

    Raises:
      ValueError: `max_steps` is not a positive integer, `fallback` is unknown, or
        `tolerance` is negative.

    Example:
      >>> conjugate_gradients(lambda v: 4.0 * v, jnp.ones(3), max_steps=1).x
      Array([0.25, 0.25, 0.25], dtype=float32)
    """
    checks.whole_number("max_steps", max_steps, least=1)
    checks.one_of("fallback", fallback, get_args(Fallback))
    if tolerance is not None:
        checks.number("tolerance", tolerance)
    size = _dot(b, b)
    eps = float(jnp.finfo(size.dtype).eps)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        x, r, p, rr, steps, _ = carry
        image = product(p)
        curvature = _dot(p, image)
        # Comparisons with NaN are false, so NaN neither ends the loop nor counts as
        # negative curvature.
        done = rr <= eps**2 * size
        # Two roots, because the product of the two squares can overflow. The infinite
        # derivative of a root at 0 does no harm: the lengths enter a comparison only.
        lengths = jnp.sqrt(_dot(p, p)) * jnp.sqrt(_dot(image, image))
        flat = curvature <= eps * lengths
        go = ~(done | flat)
        # The results of a step that does not `go` are dropped below, and still computed.
        # With a denominator of 0 their derivatives would be NaN, and dropping a value does
        # not drop NaN from a derivative (0 times NaN is NaN). The same holds for `rr`.
        length = rr / jnp.where(go, curvature, 1)
        new_x, new_r = _along(length, p, x), _along(-length, image, r)
        new_rr = _dot(new_r, new_r)
        new_p = _along(new_rr / jnp.where(go, rr, 1), p, new_r)
        moved = (new_x, new_r, new_p, new_rr, steps + 1)
        # A loop of a fixed length carries the numbers of a finished solve to its end.
        kept = jax.tree.map(lambda new, old: jnp.where(go, new, old), moved, carry[:5])
        if fallback == "shortest":
            at_once = flat & ~done & (steps == 0)
            # Elsewhere both are 1, for the derivative of a root is infinite at 0.
            squares = (jnp.where(at_once, _dot(v, v), 1) for v in (p, image))
            own, of_image = map(jnp.sqrt, squares)
            short = _along(own / of_image, p, jax.tree.map(jnp.zeros_like, p))
            x = jax.tree.map(lambda s, x: jnp.where(at_once, s, x), short, kept[0])
            kept = (x, *kept[1:])
        return (*kept, flat & ~done), None

    nothing = jax.tree.map(jnp.zeros_like, b)
    start = (nothing, b, b, size, jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    if tolerance is None:
        end, _ = jax.lax.scan(step, start, length=max_steps)
    else:
        # A solve that is down to rounding counts no further steps, so it has to end here.
        enough = max(tolerance, eps) ** 2 * size

        def unfinished(carry: tuple) -> Array:
            *_, rr, steps, negative = carry
            # Not `rr > enough`, which NaN would end at once, with `x` at 0.
            return ~(rr <= enough) & (steps < max_steps) & ~negative

        end = jax.lax.while_loop(unfinished, lambda carry: step(carry, None)[0], start)
    x, _, _, rr, steps, negative = end
    if fallback == "right_side":
        at_once = negative & (steps == 0)
        # As in algorithm 7.1: without a first step `x` is still 0, which is no direction at
        # all.
        x = jax.tree.map(lambda x, b: jnp.where(at_once, b, x), x, b)
    # No step is taken where the square of `b` is infinite. A solution of 0 would hide that.
    x = jax.tree.map(lambda x: jnp.where(jnp.isfinite(size), x, jnp.nan), x)
    # For `b = 0` this is 0 / 1 and not 0 / 0.
    residual = jnp.sqrt(rr / jnp.where(size == 0, 1, size))
    return Solution(x, residual, steps, negative)


def _dot(a: PyTree, b: PyTree) -> Array:
    # In bfloat16 and float16 long sums lose digits, so they are summed in float32.
    def one(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, dtype=jnp.promote_types(x.dtype, jnp.float32))

    return sum(jax.tree.leaves(jax.tree.map(one, a, b)))


def _along(length: Array, direction: PyTree, start: PyTree) -> PyTree:
    return jax.tree.map(lambda d, s: s + length.astype(d.dtype) * d, direction, start)
