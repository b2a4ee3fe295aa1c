"""A learned hierarchy of clusters that routes a vector, and gates on parameters.

Building blocks of learners that shape an initialisation for each task; the equations are
those of H. Yao, Y. Wei, J. Huang, Z. Li, Hierarchically Structured Meta-learning, ICML
2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.types import Array, Key, PyTree
from metalearn.models.dense import dense, glorot, linear

Routing = Literal["gaussian", "linear"]

_many_weights = nn.initializers.glorot_uniform(batch_axis=0)


class Route(NamedTuple):
    """How a task went through the tree; `Adapted.info` of `hsml`.

    Attributes:
      embedding: g `[D]`.
      leaves: Shares of the leaf clusters `[K0]`, which sum to one.
      upper: Shares of each layer between leaves and root, `[K_below, K_l]`, whose rows sum
        to one.
    """

    embedding: Array
    leaves: Array
    upper: tuple[Array, ...]


def route_task(tree: PyTree, g: Array, *, sigma: float) -> tuple[Array, Route]:
    """The way of a task from the leaves to the root (section 4.2).

    A leaf of share zero reaches the layers above as a vector of zeros, not at all: there
    each node adds its bias for it, `a tanh(b_m)`, as in the released code.

    Args:
      tree: Params, a list of layers, leaves first.
      g: Embedding of the task, `[D]`.
      sigma: Width of the Gaussian clusters.

    Returns:
      h `[D]` of the root, and the `Route`.
    """
    leaves, *upper = tree
    p = jax.nn.softmax(_closeness(g[None], leaves["centres"], sigma))
    nodes = p[:, None] * jnp.tanh(_node_maps(leaves, g[None])[0])  # [K0, D]
    shares = []
    for layer in upper:
        if "centres" in layer:
            logits = _closeness(nodes[:, None], layer["centres"][None], sigma)
        elif "linear" in layer:
            logits = linear(layer["linear"], nodes)
        else:  # the root takes all
            logits = jnp.zeros((nodes.shape[0], 1), nodes.dtype)
        a = jax.nn.softmax(logits, -1)  # [K_below, K_l]
        nodes = jnp.einsum("km,kmd->md", a, jnp.tanh(_node_maps(layer, nodes)))
        shares.append(a)
    return nodes[0], Route(g, p, tuple(shares[:-1]))


def gates(params: PyTree, context: Array) -> PyTree:
    """`sigmoid(W [g; h] + b)` in the shape of every parameter (section 4.3)."""

    def one(w: Array, b: Array) -> Array:
        # In the dtype of the parameter, which the gate must not change.
        return jax.nn.sigmoid(jnp.tensordot(context.astype(w.dtype), w, 1) + b)

    return jax.tree.map(one, params["w"], params["b"])


def tree_init(key: Key, tree: Sequence[int], hidden: int, routing: Routing) -> list[PyTree]:
    """Layers of `tree` clusters, leaves first; "gaussian" or "linear" above the leaves."""
    layers = []
    for depth, num in enumerate(tree):
        k_map, k_route = jax.random.split(jax.random.fold_in(key, depth))
        layer = {
            "w": _many_weights(k_map, (num, hidden, hidden)),
            "b": jnp.zeros((num, hidden)),
        }
        root = 0 < depth == len(tree) - 1
        if depth == 0 or (routing == "gaussian" and not root):
            layer["centres"] = glorot(k_route, (num, hidden))
        elif not root:
            layer["linear"] = dense(k_route, hidden, num)
        layers.append(layer)
    return layers


def gate_init(key: Key, params: PyTree, inputs: int, bias: float) -> PyTree:
    """A head for every parameter, from a context `[inputs]`."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    weights = [
        glorot(k, (inputs, p.size)).reshape((inputs, *p.shape)).astype(p.dtype)
        for k, p in zip(keys, leaves, strict=True)
    ]
    biases = jax.tree.map(lambda p: jnp.full_like(p, bias), params)
    return {"w": jax.tree.unflatten(treedef, weights), "b": biases}


def _closeness(g: Array, centres: Array, sigma: float) -> Array:
    return -jnp.sum((g - centres) ** 2, -1) / (2 * sigma)


def _node_maps(layer: PyTree, nodes: Array) -> Array:
    """`W_m h_k + b_m` for all pairs: `[K_below, K_l, D]`."""
    return jnp.einsum("kd,mde->kme", nodes, layer["w"]) + layer["b"][None]
