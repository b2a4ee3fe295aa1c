"""The recurrent cells that read a stream: the LSTM of `models.cells`, and a GRU.

K. Cho et al. Learning Phrase Representations using RNN Encoder-Decoder for Statistical
Machine Translation. EMNLP 2014; the reset acts after the product with the state, as in most
libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.types import Array, Key, PyTree
from metalearn.models.cells import lstm_init, lstm_start, lstm_step

_glorot = nn.initializers.glorot_uniform()
_orthogonal = nn.initializers.orthogonal()


class Cell(NamedTuple):
    """A recurrent cell of H units.

    The `bias` among the params is added to all gates. What a part of the input gives them
    can take its place, so that this part is multiplied for all items at once.

    Attributes:
      gates: Number of gates G, the candidate included.
      init: Function `(key, inputs, hidden) -> params` with `bias` `[G H]`.
      start: Function `params -> carry`: the state before the first item, zero.
      step: Function `(params, carry, x [inputs]) -> (carry, output [H])`.
    """

    gates: int
    init: Callable[[Key, int, int], PyTree]
    start: Callable[[PyTree], PyTree]
    step: Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]


def of_gates(
    key: Key, gates: int, inputs: int, hidden: int, draw: Callable = _glorot
) -> Array:
    """A matrix `[inputs, G H]` whose G blocks are drawn each by itself."""
    keys = jax.random.split(key, gates)
    blocks = jax.vmap(lambda k: draw(k, (inputs, hidden), jnp.float32))(keys)
    return jnp.moveaxis(blocks, 0, 1).reshape(inputs, gates * hidden)


def of_embeddings(params: PyTree, x: Array) -> Array:
    """What embeddings x `[N, D]` give the gates, in place of the bias; `[N, G H]`.

    Args:
      params: Matrix `x` `[D, G H]`, and `cell`, params of a cell that reads the rest.
      x: Embeddings of all items.
    """
    return x @ params["x"] + params["cell"]["bias"][None]


def gru_init(key: Key, inputs: int, hidden: int) -> PyTree:
    """Parameters of a GRU; gates in the order reset, update, candidate.

    Returns:
      `{"input": [inputs, 3 H], "recurrent": [H, 3 H], "bias": [3 H], "state_bias": [H]}`.
    """
    k_input, k_recurrent = jax.random.split(key)
    return {
        "input": of_gates(k_input, 3, inputs, hidden),
        "recurrent": of_gates(k_recurrent, 3, hidden, hidden, _orthogonal),
        "bias": jnp.zeros((3 * hidden,), jnp.float32),
        "state_bias": jnp.zeros((hidden,), jnp.float32),
    }


def gru_start(params: PyTree) -> Array:
    """The state of zeros, `[H]`."""
    return jnp.zeros_like(params["state_bias"])


def gru_step(params: PyTree, h: Any, x: Array) -> tuple[Array, Array]:
    """One item x `[inputs]`: the new state, twice.

    `r, u = sigmoid(x W + h U + b)`; `n = tanh(x W_n + b_n + r (h U_n + b_u))`;
    `h' = (1 - u) n + u h`.
    """
    of_input = jnp.split(x @ params["input"] + params["bias"], 3)
    of_state = jnp.split(h @ params["recurrent"], 3)
    r, u = (jax.nn.sigmoid(a + b) for a, b in zip(of_input[:2], of_state[:2]))
    n = jnp.tanh(of_input[2] + r * (of_state[2] + params["state_bias"]))
    h = (1 - u) * n + u * h
    return h, h


lstm = Cell(4, lstm_init, lstm_start, lstm_step)
gru = Cell(3, gru_init, gru_start, gru_step)
