"""Leap: an initialisation from which the paths of the adaptation are short.

S. Flennerhag, P. Moreno, N. Lawrence, A. Damianou. Transferring Knowledge across Learning
Processes. ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metalearn.core.types import Array, PyTree


def pull(
    loss_fn: Callable[[PyTree], Array], start: PyTree, end: PyTree
) -> tuple[PyTree, Array]:
    """Gradient of the length of one segment of the path of `(theta, loss)`.

    `-(d_loss grad L(start) + d_theta) / |(d_theta, d_loss)|` of the differences from start
    to end, with `d_loss` negative also where the loss rose, the paper's stabiliser. The
    sum over the segments of a path is Leap's gradient for its first point.

    Args:
      loss_fn: `theta -> scalar`.
      start: theta before an inner step.
      end: theta after it.

    Returns:
      The gradient, and the length of the segment.
    """
    loss, slope = jax.value_and_grad(loss_fn)(start)
    fall = loss - loss_fn(end)
    back = jax.tree.map(jnp.subtract, start, end)
    square = jnp.square(fall) + optax.tree.norm(back, squared=True)
    size = jnp.where(square > 0, jnp.sqrt(square), 1)
    found = jax.tree.map(lambda s, b: (jnp.abs(fall) * s + b) / size, slope, back)
    return found, jnp.sqrt(square)
