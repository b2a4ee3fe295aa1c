"""Recurrent cells as plain parameters and pure functions.

A cell of S. Hochreiter, J. Schmidhuber (1997), Long Short-Term Memory, with a forget gate
(F. Gers, J. Schmidhuber, F. Cummins, 2000) and without peepholes.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.types import Array, Key, PyTree

LSTMCarry = tuple[Array, Array]

_glorot = nn.initializers.glorot_uniform()
_orthogonal = nn.initializers.orthogonal()


def lstm_init(key: Key, inputs: int, hidden: int, dtype: Any = jnp.float32) -> PyTree:
    """Parameters of an LSTM cell.

    The gates stand side by side in the order input, forget, candidate, output. Each gate
    has a Glorot kernel of its own for inputs and an orthogonal one for the state. The bias
    of the forget gate is 1, so that a new cell remembers; the others are 0.

    Args:
      key: Key of the draws.
      inputs: Size of an input.
      hidden: H, size of the state.
      dtype: Dtype of the parameters.

    Returns:
      `{"input": [inputs, 4 H], "recurrent": [H, 4 H], "bias": [4 H]}`.
    """
    k_input, k_recurrent = jax.random.split(key)

    def gates(draw: Any, key: Key, rows: int) -> Array:
        keys = jax.random.split(key, 4)
        kernels = jax.vmap(lambda k: draw(k, (rows, hidden), dtype))(keys)
        return jnp.moveaxis(kernels, 0, 1).reshape(rows, 4 * hidden)

    ones, zeros = jnp.ones((hidden,), dtype), jnp.zeros((hidden,), dtype)
    return {
        "input": gates(_glorot, k_input, inputs),
        "recurrent": gates(_orthogonal, k_recurrent, hidden),
        "bias": jnp.concatenate([zeros, ones, zeros, zeros]),
    }


def lstm_start(params: PyTree, *batch: int) -> LSTMCarry:
    """The state `(h, c)` of zeros, each `[*batch, H]`."""
    kernel = params["recurrent"]
    zeros = jnp.zeros((*batch, kernel.shape[0]), kernel.dtype)
    return zeros, zeros


def lstm_step(params: PyTree, carry: LSTMCarry, x: Array) -> tuple[LSTMCarry, Array]:
    """One step, in the form that `jax.lax.scan` takes.

    `i, f, g, o = x W + h U + b`; `c' = sigmoid(f) c + sigmoid(i) tanh(g)`;
    `h' = sigmoid(o) tanh(c')`.

    Args:
      params: What `lstm_init` gives.
      carry: The state `(h, c)`, each `[..., H]`.
      x: Inputs `[..., inputs]`.

    Returns:
      The new state `(h', c')`, and `h'`.
    """
    h, c = carry
    bias = params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
    gates = x @ params["input"] + h @ params["recurrent"] + bias
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h
