"""One gradient from that of a task and those of tasks that it recalls."""

from __future__ import annotations

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core import trees
from metalearn.core.types import Array, Key, PyTree

Aggregate = Literal["mean", "current_plus_mean", "transformer"]
FEATURES = 4  # of a gradient, see `_features`
TINY = 1e-12  # added to squares of lengths, which may be zero


class Recalled(NamedTuple):
    """Gradients of other tasks.

    Attributes:
      grads: Gradients, leaves `[k, ...]`.
      similarity: Cosines of the keys of those tasks and of this one, `[k]`.
      found: Which of the k there are, bool `[k]`.
    """

    grads: PyTree
    similarity: Array
    found: Array


def aggregate(how: Aggregate, params: PyTree, grads: PyTree, past: Recalled) -> PyTree:
    """The direction of an inner step.

    Args:
      how: "mean" of all gradients, the current one included; "current_plus_mean", the
        current one and the mean of the others; "transformer", a mean of all whose weights
        are learned, for each leaf its own.
      params: Parameters of the transformer, see `transformer_init`.
      grads: Current gradients, leaves `[...]`.
      past: What was recalled. Without anything found the result is `grads`.
    """
    num = past.found.shape[0]
    if how == "transformer":
        weights = transformer_weights(params, grads, past)
    else:
        count = jnp.sum(past.found).astype(past.similarity.dtype)
        share = 1 / (1 + count) if how == "mean" else 1 / jnp.maximum(count, 1)
        own = share if how == "mean" else jnp.ones_like(share)
        others = jnp.where(past.found, share, 0)
        row = jnp.concatenate([own[None], others])
        leaves = len(jax.tree.leaves(grads))
        weights = jnp.broadcast_to(row[None], (leaves, num + 1))

    def combined(row: Array, current: Array, others: Array) -> Array:
        row = row.astype(current.dtype)
        return row[0] * current + jnp.tensordot(row[1:], others, 1)

    leaves, treedef = jax.tree.flatten(grads)
    pairs = zip(weights, leaves, jax.tree.leaves(past.grads), strict=True)
    return jax.tree.unflatten(treedef, [combined(*pair) for pair in pairs])


def transformer_init(key: Key, width: int, dtype: jnp.dtype) -> PyTree:
    """Parameters of the transformer. At first it gives all gradients the same weight.

    Args:
      key: Key of the draws.
      width: Size of a token.
      dtype: Dtype of the parameters.
    """
    shapes = {
        "embed": (FEATURES, width),
        "query": (width, width),
        "key": (width, width),
        "value": (width, width),
        "up": (width, 2 * width),
        "down": (2 * width, width),
    }
    draw, keys = nn.initializers.glorot_uniform(), jax.random.split(key, len(shapes))
    made = {n: draw(k, s, dtype) for (n, s), k in zip(shapes.items(), keys, strict=True)}
    biases = {"embed_bias": jnp.zeros(width, dtype), "up_bias": jnp.zeros(2 * width, dtype)}
    return made | biases | {"logit": jnp.zeros(width, dtype)}


def transformer_weights(params: PyTree, grads: PyTree, past: Recalled) -> Array:
    """Weights of the current and the recalled gradients of each leaf, `[L, 1 + k]`.

    A block of self-attention over `1 + k` tokens, which are numbers that describe a
    gradient, a block of two layers, and a softmax. The rows sum to 1.
    """
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(past.grads), strict=True)
    tokens = jnp.stack([_features(g, v, past.similarity) for g, v in pairs])
    tokens = tokens.astype(params["embed"].dtype)
    there = jnp.concatenate([jnp.ones(1, bool), past.found])
    lowest = jnp.finfo(tokens.dtype).min

    def one(tokens: Array) -> Array:
        x = jnp.tanh(tokens @ params["embed"] + params["embed_bias"][None])
        scores = (x @ params["query"]) @ (x @ params["key"]).T * x.shape[-1] ** -0.5
        scores = jnp.where(there[None], scores, lowest)
        x = x + jax.nn.softmax(scores) @ (x @ params["value"])
        hidden = jax.nn.relu(x @ params["up"] + params["up_bias"][None])
        x = x + hidden @ params["down"]
        # The lowest number and not minus infinity, whose derivative may be NaN.
        return jax.nn.softmax(jnp.where(there, x @ params["logit"], lowest))

    return jax.vmap(one)(tokens)


def _features(current: Array, others: Array, similarity: Array) -> Array:
    """What the transformer reads of the gradients of one leaf, `[1 + k, FEATURES]`.

    Whether it is the current one, the similarity of the tasks, the cosine with the current
    gradient, and the logarithm of the ratio of their lengths. None of them changes with the
    scale of the loss.
    """
    g = trees.widened(current).reshape(-1)
    v = trees.widened(others).reshape(others.shape[0], -1)
    squares = jnp.sum(jnp.square(v), axis=-1) + TINY
    square = jnp.sum(jnp.square(g)) + TINY
    cosine = (v @ g) * jax.lax.rsqrt(squares * square)
    ratio = jnp.log(squares / square) / 2
    zeros = jnp.zeros_like(ratio)
    rows = jnp.stack([zeros, similarity.astype(g.dtype), cosine, ratio], axis=-1)
    own = jnp.array([1, 1, 1, 0], g.dtype)
    return jnp.concatenate([own[None], rows])
