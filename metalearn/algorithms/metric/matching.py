"""Matching networks: a query takes the labels of the support examples that it resembles.

O. Vinyals, C. Blundell, T. Lillicrap, K. Kavukcuoglu, D. Wierstra. Matching Networks for
One Shot Learning. NeurIPS 2016. Differences:

- The cosines are multiplied by `scale`, 10 unless given. The paper has none, which is
  `scale=1`: the probability of a class among five with one shot each is then at most 0.65,
  and the loss never falls below 0.43.
- Support examples and queries share one encoder, before their contexts.
- The paper leaves the number of reading steps open; it is an argument. It does not say
  where reading begins: here at a state of zero, whose attention is the mean of the support
  set. The code of Ravi and Larochelle (ICLR 2017) begins there too. That code adds to
  example i what the backward LSTM has read of example N + 1 - i; here it is what it has
  read of example i.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    embedded,
    members_of,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, loops
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.rows import drawn_order, unit
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, PyTree
from metalearn.models.cells import lstm_init, lstm_start, lstm_step

Context = Literal["none", "full"]


class _Read(NamedTuple):
    """A support set that was read: embeddings `g(x_i)` `[N, D]` and classes, bool `[N,
    W]`."""

    rows: Array
    members: Array


@takes_options(of=EMBEDDING)
def matching_networks(
    encoder: Model,
    *,
    num_ways: int,
    scale: float = 10.0,
    learn_scale: bool = False,
    context: Context = "none",
    read_steps: int = 10,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by attention over the support set.

    `p(y | x, S) = sum of a_i over y_i = y`, `a = softmax_i(scale cos(f(x), g(x_i)))`. The
    logit of a class is the logarithm of the sum of its `exp(scale cos)`, so that its
    softmax is `p` and the cross-entropy is `-log p`.

    Without context, f and g are the encoder. With full context embeddings LSTMs follow it,
    as wide as the embeddings `f'(x)`. `g(x_i) = f'(x_i) + h_i + k_i` with the states h and
    k of an LSTM that reads the support set forwards and of one that reads it backwards.
    `f(x)` is the last of `read_steps` states `h <- LSTM(h, [f'(x), r]) + f'(x)` from 0 on,
    where `r = sum_i b_i g(x_i)`, `b = softmax_i(h . g(x_i))`.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for. Classes absent from a support set get
        a logit that never wins.
      scale: Multiplies the cosines.
      learn_scale: Whether the scale is learned, from `scale` on.
      context: "none": every example is embedded by itself; "full": LSTMs of the context
        follow. They read the support set in an order that the key of `adapt` draws, in the
        given order without a key, and predictions depend on it.
      read_steps: Number of steps in which a query reads the support set; with full context
        alone.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the embeddings `[N, D]` of the support set and
      their classes, bool `[N, W]`.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4())
      >>> learner = ml.matching_networks(encoder, num_ways=5, context="full")
    """
    checks.number("scale", scale, positive=True)
    checks.one_of("context", context, get_args(Context))
    checks.whole_number("read_steps", read_steps, least=1)
    full = context == "full"

    def init(key: Key, like: Array) -> PyTree:
        params = {}
        if learn_scale:
            # Of its logarithm, which every step of an optimiser leaves in range.
            params["log_scale"] = jnp.log(jnp.asarray(scale, like.dtype))
        if full:
            size, keys = like.shape[-1], jax.random.split(key, 3)
            params["forward"] = lstm_init(keys[0], size, size, like.dtype)
            params["backward"] = lstm_init(keys[1], size, size, like.dtype)
            params["query"] = lstm_init(keys[2], 2 * size, size, like.dtype)
        return params

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> _Read:
        members = members_of(support, num_ways) > 0
        rows = _in_context(params, support, key) if full else support.x
        return _Read(rows, members)

    def score(params: PyTree, read: _Read, x: Array) -> Array:
        if full:
            x = _reading(params["query"], read, x, read_steps)
        sharp = jnp.exp(params["log_scale"]) if learn_scale else scale
        return _log_sums(sharp * unit(x) @ unit(read.rows).T, read.members)

    head = Head(fit=fit, score=score, init=init if learn_scale or full else None)
    settings = {"scale": scale, "learn_scale": learn_scale, "context": context}
    if full:
        settings["read_steps"] = read_steps
    return embedded(
        "matching_networks", encoder, head, num_ways=num_ways, settings=settings, **options
    )


def _in_context(params: PyTree, support: Examples, key: Key | None) -> Array:
    """Embeddings `[N, D]` to which two LSTMs add what they have read."""
    order = drawn_order(key, support.mask)
    x, valid = support.x[order], support.mask[order]
    # Both directions in one loop, on an axis of their own: half the program.
    both_ways = lambda rows: jnp.stack([rows, rows[::-1]], 1)
    cells = jax.tree.map(
        lambda a, b: jnp.stack([a, b]), params["forward"], params["backward"]
    )

    def step(carry, row):
        x, valid = row
        new, _ = jax.vmap(lstm_step)(cells, carry, x)
        # A masked row is passed over.
        carry = jax.tree.map(lambda a, b: jnp.where(valid[:, None], a, b), new, carry)
        return carry, carry[0]

    start = jax.vmap(lstm_start)(cells)
    _, states = loops.scan(step, start, (both_ways(x), both_ways(valid)))
    read = x + states[:, 0] + states[::-1, 1]
    return jnp.zeros_like(read).at[order].set(jnp.where(valid[:, None], read, 0))


def _reading(cell: PyTree, read: _Read, x: Array, num_steps: int) -> Array:
    """Embeddings of queries `[Q, D]`, each after it has read the support set."""
    # Finite, since a row of -inf alone, of an empty support set, has no softmax.
    out = jnp.finfo(x.dtype).min
    valid = read.members.any(-1)[None]

    def step(carry, _):
        attention = jax.nn.softmax(jnp.where(valid, carry[0] @ read.rows.T, out), axis=-1)
        inputs = jnp.concatenate([x, attention @ read.rows], -1)
        (h, c), _ = lstm_step(cell, carry, inputs)
        return (h + x, c), None

    start = lstm_start(cell, x.shape[0])
    (state, _), _ = loops.scan(step, start, None, length=num_steps)
    return state


def _log_sums(scores: Array, members: Array) -> Array:
    """Logarithm `[Q, W]` of the sums, over the members `[N, W]`, of exponentials of `[Q,
    N]`.

    Largest numbers are taken out for each class by itself, so that no class is lost beside
    a much nearer one.
    """
    # A class without members sums ones in their place, which `embedded` masks: the
    # logarithm of 0 has no derivative.
    out = jnp.where(members.any(0), -jnp.inf, 0).astype(scores.dtype)
    of_class = jnp.where(members.T[None], scores[:, None], out[None, :, None])
    return jax.nn.logsumexp(of_class, axis=-1)
