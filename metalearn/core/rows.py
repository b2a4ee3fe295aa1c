"""Rows of arrays: their directions, and orders that a key draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metalearn.core.types import Array, Key


def unit(rows: Array) -> Array:
    """Rows of length 1, `[..., D]`; a row of zeros, or hardly more, stays.

    The slope is one over the length. Rows of entries below `eps ** 2`, or whose slope would
    overflow, have no direction to speak of and the slope of the identity.
    """
    # A direction has no scale, so the scale is a constant to derivatives. Without it the
    # squares of small rows have no digits, and those of large ones are infinite.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=-1, keepdims=True))
    info = jnp.finfo(rows.dtype)
    some = scale > max(float(info.eps) ** 2, 4 / float(info.max))
    rows = rows / jnp.where(some, scale, 1)
    squares = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    # Replaced before the root, whose derivative is infinite at 0.
    return rows * jax.lax.rsqrt(jnp.where(some, squares, 1))


def drawn_order(key: Key | None, mask: Array, *, masked: str = "last") -> Array:
    """Places of the rows in a random order, int32 `[N]`.

    The draw of a row depends on its number among the valid ones alone, so further masked
    rows, wherever they stand, change no order.

    Args:
      key: Key of the draws; `None` for the given order.
      mask: Mask of the valid rows, bool `[N]`.
      masked: Where masked rows stand, "first" or "last".
    """
    draws = jnp.cumsum(mask, dtype=jnp.int32) - 1
    if key is not None:
        draws = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(draws)
    return jnp.lexsort((draws, mask if masked == "first" else ~mask))
