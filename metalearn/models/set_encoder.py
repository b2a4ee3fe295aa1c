"""Autoencoders of sets: from the examples of a task to one vector, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core import loops
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, Key, PyTree
from metalearn.models.dense import dense, linear


class SetEncoder(NamedTuple):
    """An autoencoder of a set of rows `e` `[N, size]` with a mask, bool `[N]`.

    Attributes:
      init: Function `(key, size, hidden) -> params`.
      apply: Function `(params, e, mask) -> (g, L_r)`: the vector of the set and the
        reconstruction loss.
    """

    init: Any
    apply: Any


def _recurrent_init(key: Key, size: int, hidden: int) -> PyTree:
    keys = jax.random.split(key, 3)
    cell, carry, row = nn.GRUCell(hidden), jnp.zeros((hidden,)), jnp.zeros((size,))
    return {
        "encoder": cell.init(keys[0], carry, row)["params"],
        "decoder": cell.init(keys[1], carry, row)["params"],
        "out": dense(keys[2], hidden, size),
    }


def _recurrent_apply(params: PyTree, e: Array, mask: Array) -> tuple[Array, Array]:
    """A recurrent autoencoder (Yao et al. 2019, section 4.1).

    Masked rows do not change the state. The vector g is the mean of the encoder's states.
    """
    hidden = params["out"]["w"].shape[0]
    cell = nn.GRUCell(hidden)

    def encode(carry: Array, pair: tuple[Array, Array]):
        row, valid = pair
        # The new state of a masked row is computed and dropped. The row has to be finite
        # even so: 0 times NaN would spoil the derivative of the encoder.
        carry = jnp.where(
            valid, cell.apply({"params": params["encoder"]}, carry, row)[0], carry
        )
        return carry, carry

    def decode(carry: tuple[Array, Array], valid: Array):
        state, last = carry
        new = cell.apply({"params": params["decoder"]}, state, last)[0]
        # The state of a decoder stays finite: its gates are bounded, its input is the last
        # row. A masked row hands on state and row as they are.
        state = jnp.where(valid, new, state)
        row = jnp.where(valid, linear(params["out"], state), last)
        return (state, row), row

    # Decoded in reverse, from the last state of the encoder.
    last, path = loops.scan(encode, jnp.zeros((hidden,), e.dtype), (e, mask))
    _, rebuilt = loops.scan(decode, (last, jnp.zeros_like(e[0])), mask, reverse=True)
    return masked_mean(path, mask).astype(e.dtype), _rebuilt_loss(rebuilt, e, mask)


def _pooled_init(key: Key, size: int, hidden: int) -> PyTree:
    k_in, k_out, k_back = jax.random.split(key, 3)
    return {
        "in": dense(k_in, size, hidden),
        "out": dense(k_out, hidden, hidden),
        "back": dense(k_back, hidden, size),
    }


def _pooled_apply(params: PyTree, e: Array, mask: Array) -> tuple[Array, Array]:
    """An autoencoder of single rows, whose codes are pooled by the mean."""
    codes = nn.relu(linear(params["in"], e))
    loss = 0.5 * _rebuilt_loss(linear(params["back"], codes), e, mask)
    pooled = masked_mean(codes, mask).astype(codes.dtype)
    return linear(params["out"], pooled), loss


recurrent = SetEncoder(_recurrent_init, _recurrent_apply)
pooled = SetEncoder(_pooled_init, _pooled_apply)


def _rebuilt_loss(rebuilt: Array, e: Array, mask: Array) -> Array:
    # The target is a constant: the loss would otherwise fall by shrinking the embedding.
    return masked_mean(jnp.mean((rebuilt - jax.lax.stop_gradient(e)) ** 2, -1), mask)
