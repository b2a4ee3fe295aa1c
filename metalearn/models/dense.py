"""Dense layers as plain parameters, for networks of a few lines."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from metalearn.core.types import Array, Key, PyTree

glorot = nn.initializers.glorot_uniform()


def dense(key: Key, inputs: int, outputs: int) -> PyTree:
    """Parameters for `linear`: `w` `[inputs, outputs]` and `b` `[outputs]`."""
    return {"w": glorot(key, (inputs, outputs)), "b": jnp.zeros((outputs,))}


def linear(params: PyTree, x: Array) -> Array:
    """`x W + b` over the last axis."""
    # The bias gets the rank of x, so this works where JAX forbids to promote ranks.
    return x @ params["w"] + params["b"].reshape((1,) * (x.ndim - 1) + (-1,))
