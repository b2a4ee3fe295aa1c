"""Relation networks: a network compares a query with a class, and learns to.

F. Sung, Y. Yang, L. Zhang, T. Xiang, P. Torr, T. Hospedales. Learning to Compare: Relation
Network for Few-Shot Learning. CVPR 2018. The layers of the relation module and how its
weights are drawn follow the released code. Differences:

- The maps of a class are averaged; the paper and its code add them up, which ties the
  weights to one number of shots. `pool="sum"` is theirs.
- The code normalises the pairs of all queries and classes together, at test as in training:
  what a query is said to be depends on the others (transductive). Here every pair is
  normalised by itself, over places and channels, which keeps the maps of the second block
  in range as batch norm does. Batch norm of the encoder is an option as elsewhere.
- Maps are halved where both sides have 2 or more, so that small ones serve as well. Between
  vectors the two convolutions are dense layers.
- The encoder is the user's; that of the code is `ml.models.ConvMaps` without the border of
  its first two blocks. Clipping of gradients belongs to the outer optimiser.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Unpack, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    class_means,
    embedded,
    members_of,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.losses import present_classes
from metalearn.core.model import Model
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, PyTree
from metalearn.lowering import lower

Pool = Literal["mean", "sum"]


class _Classes(NamedTuple):
    """What stands for the classes, `[W, H, W', C]` or `[W, D]`, and which are present."""

    features: Array
    present: Array


@takes_options(of=EMBEDDING)
def relation_network(
    encoder: Model,
    *,
    num_ways: int,
    pool: Pool = "mean",
    width: int = 64,
    hidden: int = 8,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Learns a network that says how much a query and a class have to do with one another.

    `F_k` is the mean of the maps `f(x_i)` over `y_i = k`; `r_k = sigmoid(g([F_k; f(x)]))`
    with a relation module g: twice [3x3 convolution, layer
    norm, ReLU, halving by max-pooling], a dense layer with ReLU and one with a single
    output. The loss is the mean of `(r_k - [y = k])^2` over the queries and the classes of
    the support set. The logits are `g`, whose order is that of r.

    Args:
      encoder: Network from inputs to maps `[N, H, W, C]`, such as `ml.models.ConvMaps`, or
        to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for. Classes absent from a support set get
        a logit that never wins.
      pool: Way from the shots of a class to its map: "mean", or "sum" as in the paper,
        which expects the shots of training at test too.
      width: Channels of the two convolutions.
      hidden: Size of the hidden dense layer.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`. What it minimises is its metric `query/mse`; `query/loss` is the
      cross-entropy of the logits, which is not trained.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.relation_network(ml.from_linen(ml.models.ConvMaps()), num_ways=20)
    """
    checks.one_of("pool", pool, get_args(Pool))
    checks.whole_number("width", width, least=1)
    checks.whole_number("hidden", hidden, least=1)

    def init(key: Key, like: Any) -> PyTree:
        return _module(key, like, width, hidden)

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> _Classes:
        features = class_means(support, num_ways)
        if pool == "sum":
            features = jnp.tensordot(members_of(support, num_ways).T, support.x, 1)
        return _Classes(features, present_classes(support, num_ways))

    def score(params: PyTree, classes: _Classes, x: Array) -> Array:
        return related(params, classes.features, x)

    def loss(params, classes: _Classes, support, query: Examples, logits, *, key):
        wanted = jax.nn.one_hot(query.y, num_ways, dtype=logits.dtype)
        errors = jnp.square(jax.nn.sigmoid(logits) - wanted)
        counted = query.mask[:, None] & classes.present[None]
        total = jnp.sum(jnp.where(counted, errors, 0))
        value = total / jnp.maximum(jnp.sum(counted), 1).astype(total.dtype)
        return value, {"query/mse": value}

    related = lower(_related)
    head = Head(fit=fit, score=score, init=init, loss=loss)
    settings = {"pool": pool, "width": width, "hidden": hidden}
    return embedded(
        "relation_network",
        encoder,
        head,
        num_ways=num_ways,
        maps=True,
        settings=settings,
        **options,
    )


def _module(key: Key, like: Any, width: int, hidden: int) -> PyTree:
    """Parameters of the relation module for embeddings like these."""
    keys = jax.random.split(key, 4)
    sides, channels, window = like.shape[1:-1], like.shape[-1], (3,) * (like.ndim - 2)
    spread = math.sqrt(2 / (math.prod(window) * width))

    def block(key: Key, inputs: int) -> PyTree:
        draw = nn.initializers.normal(spread)
        return {
            "kernel": draw(key, (*window, inputs, width), like.dtype),
            "bias": jnp.zeros((width,), like.dtype),
            "norm_scale": jnp.ones((width,), like.dtype),
            "norm_bias": jnp.zeros((width,), like.dtype),
        }

    def dense(key: Key, inputs: int, outputs: int) -> PyTree:
        # Small weights beside a bias of 1: no ReLU is silent at the start.
        draw = nn.initializers.normal(0.01)
        return {
            "kernel": draw(key, (inputs, outputs), like.dtype),
            "bias": jnp.ones((outputs,), like.dtype),
        }

    for _ in range(2):
        sides = [side // 2 for side in sides] if _halves(sides) else sides
    return {
        "first": block(keys[0], 2 * channels),
        "second": block(keys[1], width),
        "hidden": dense(keys[2], math.prod(sides) * width, hidden),
        "out": dense(keys[3], hidden, 1),
    }


def _related(params: PyTree, classes: Array, queries: Array) -> Array:
    """The relation module on all pairs, `[Q, W]`, before the sigmoid."""
    first, channels = params["first"], classes.shape[-1]
    # The first layer is linear: of a concatenation it is the sum of what it is of the two
    # parts, which W + Q convolutions give in place of W times Q.
    of_classes = _convolved(classes, first["kernel"][..., :channels, :])
    of_queries = _convolved(queries, first["kernel"][..., channels:, :])
    pairs = of_queries[:, None] + of_classes[None]
    pairs = _finished(first, pairs.reshape(-1, *pairs.shape[2:]))
    pairs = _finished(params["second"], _convolved(pairs, params["second"]["kernel"]))
    flat = pairs.reshape(pairs.shape[0], -1)
    out = _dense(params["out"], nn.relu(_dense(params["hidden"], flat)))
    return out.reshape(queries.shape[0], classes.shape[0])


def _convolved(x: Array, kernel: Array) -> Array:
    """A 3x3 convolution with a border of zeros; of vectors a product of matrices."""
    if x.ndim == 2:
        return x @ kernel
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)


def _finished(block: PyTree, x: Array) -> Array:
    """Bias, norm of each row by itself, ReLU, and halving of the sides."""
    along = lambda name: block[name].reshape((1,) * (x.ndim - 1) + (-1,))
    x = x + along("bias")
    axes = tuple(range(1, x.ndim))
    x = x - x.mean(axes, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axes, keepdims=True) + 1e-6)
    x = nn.relu(x * along("norm_scale") + along("norm_bias"))
    if _halves(x.shape[1:-1]):
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
    return x


def _halves(sides: Any) -> bool:
    """Whether there are sides to halve."""
    return len(sides) > 0 and min(sides) >= 2


def _dense(layer: PyTree, x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"][None]
