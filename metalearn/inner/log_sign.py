"""Gradients as inputs of a network: their order of magnitude and their sign, apart.

M. Andrychowicz et al. Learning to learn by gradient descent by gradient descent. NeurIPS
2016, appendix A. Gradients differ by powers of ten, which no network reads as they are.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.types import Array


def log_sign(grads: Array, p: float) -> Array:
    """Two numbers in place of each gradient, continuous and mostly within -1..1.

    `(log|g| / p, sign g)` where `|g| >= exp(-p)`, and `(-1, exp(p) g)` below. Derivatives
    are finite everywhere; at the bound they jump.

    Args:
      grads: Gradients of any shape, `[...]`.
      p: Range of the logarithm: smaller gradients than `exp(-p)` are read as they are.

    Returns:
      The numbers, `[..., 2]`, in the dtype of the gradients.

    Raises:
      ValueError: `p` is not a number above 0, or `exp(p)` is none of the dtype.

    Example:
      >>> pairs = log_sign(jnp.array([-1.0, 0.0]), 7.0)  # (0, -1) and (-1, 0)
    """
    checks.number("p", p, positive=True)
    most = math.log(float(jnp.finfo(grads.dtype).max))
    if p >= most:
        raise ValueError(f"p is {p}; expected less than {most:.0f} for {grads.dtype}.")
    size = jnp.abs(grads)
    large = size >= math.exp(-p)
    # Replaced where it is not used: the derivative of the logarithm is infinite at 0.
    order = jnp.where(large, jnp.log(jnp.where(large, size, 1)) / p, -1)
    sign = jnp.where(large, jnp.sign(grads), math.exp(p) * jnp.where(large, 0, grads))
    return jnp.stack([order, sign], axis=-1)
