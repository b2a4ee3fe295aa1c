"""Linear systems of positive matrices, whose derivatives are further systems."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metalearn.core.types import Array


def solve(matrix: Array, right: Array) -> Array:
    """Solution `[..., N, W]` of `matrix @ solution = right` by Cholesky's factors.

    Derivatives of any order are further solves with the same factors. Derivatives of the
    factors would cost several times more.

    Args:
      matrix: Symmetric and positive definite, `[..., N, N]`.
      right: Right sides, `[..., N, W]`.

    Returns:
      The solution; NaN where the matrix is not finite or not positive.
    """
    # Symmetrised before it is factored: a product `x x'` is symmetric up to rounding only.
    factor = jnp.linalg.cholesky(jax.lax.stop_gradient(matrix), symmetrize_input=True)
    # Factors of an infinite matrix may be finite elsewhere, and the solution 0. A positive
    # matrix is finite if its diagonal is.
    trace = jnp.trace(factor, axis1=-2, axis2=-1)[..., None, None]
    factor = jnp.where(jnp.isfinite(trace), factor, jnp.nan)
    return jax.lax.custom_linear_solve(
        lambda solution: matrix @ solution,
        right,
        lambda _, b: jax.scipy.linalg.cho_solve((factor, True), b),
        symmetric=True,
    )
