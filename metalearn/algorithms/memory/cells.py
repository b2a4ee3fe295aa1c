"""Recurrent cells as plain parameters, for learners that read a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.types import Array, Key, PyTree
from metalearn.models.dense import linear

glorot = nn.initializers.glorot_uniform()
orthogonal = nn.initializers.orthogonal()


class Cell(NamedTuple):
    """A recurrent cell of H units.

    A step is two parts. What the input alone gives, `linear(params["x"], x)`, can be
    computed for all items of a sequence at once; `recur` needs the state before.

    Attributes:
      gates: Number of gates G, the candidate included.
      init: Function `(key, inputs, hidden) -> params` with `x`, a dense layer of
        `[inputs, G H]`, and `h`, `[H, G H]`.
      start: Function `params -> carry`: the state before the first item, zero.
      recur: Function `(params, carry, z) -> (carry, output [H])`, where z `[G H]` is what
        the input adds to the gates before their nonlinearities.
    """

    gates: int
    init: Callable[[Key, int, int], PyTree]
    start: Callable[[PyTree], PyTree]
    recur: Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]

    def step(self, params: PyTree, carry: PyTree, x: Array) -> tuple[PyTree, Array]:
        """One item x `[D]`: the state after it, and the output `[H]`."""
        return self.recur(params, carry, linear(params["x"], x))


def of_gates(
    key: Key, gates: int, inputs: int, hidden: int, init: Callable = glorot
) -> Array:
    """A matrix `[inputs, G H]` whose G blocks are drawn each by itself."""
    draw = jax.vmap(lambda k: init(k, (inputs, hidden)))
    blocks = draw(jax.random.split(key, gates))
    return jnp.moveaxis(blocks, 0, 1).reshape(inputs, gates * hidden)


def _parts(key: Key, gates: int, inputs: int, hidden: int) -> PyTree:
    k_x, k_h = jax.random.split(key)
    return {
        "x": {
            "w": of_gates(k_x, gates, inputs, hidden),
            "b": jnp.zeros((gates * hidden,)),
        },
        "h": of_gates(k_h, gates, hidden, hidden, orthogonal),
    }


def _zeros(params: PyTree) -> Array:
    return jnp.zeros(params["h"].shape[:1], params["h"].dtype)


def _lstm_init(key: Key, inputs: int, hidden: int) -> PyTree:
    params = _parts(key, 4, inputs, hidden)
    # A forget gate that starts open keeps early items (Jozefowicz et al. 2015).
    params["x"]["b"] = jnp.repeat(jnp.eye(4)[1], hidden)
    return params


def _lstm_start(params: PyTree) -> PyTree:
    return _zeros(params), _zeros(params)


def _lstm_recur(params: PyTree, carry: PyTree, z: Array) -> tuple[PyTree, Array]:
    """Gates i, f, candidate g, gate o: `c' = f c + i g`, `h' = o tanh(c')`."""
    h, c = carry
    i, f, g, o = jnp.split(z + h @ params["h"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _gru_init(key: Key, inputs: int, hidden: int) -> PyTree:
    return {**_parts(key, 3, inputs, hidden), "n": jnp.zeros((hidden,))}


def _gru_recur(params: PyTree, h: PyTree, z: Array) -> tuple[PyTree, Array]:
    """Gates r, u and candidate n; the reset r acts on what the state gives n.

    `n = tanh(z_n + r (h W_n + b_n))`, `h' = (1 - u) n + u h`.
    """
    of_input, of_state = jnp.split(z, 3, axis=-1), jnp.split(h @ params["h"], 3, axis=-1)
    r, u = (jax.nn.sigmoid(a + b) for a, b in zip(of_input[:2], of_state[:2]))
    n = jnp.tanh(of_input[2] + r * (of_state[2] + params["n"]))
    h = (1 - u) * n + u * h
    return h, h


lstm = Cell(4, _lstm_init, _lstm_start, _lstm_recur)
gru = Cell(3, _gru_init, _zeros, _gru_recur)
