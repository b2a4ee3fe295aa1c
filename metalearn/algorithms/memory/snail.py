"""SNAIL: causal convolutions and attention read the support set as a stream.

N. Mishra, M. Rohaninejad, X. Chen, P. Abbeel. A Simple Neural Attentive Meta-Learner. ICLR
2018. Its classifier of few shots, with these differences:

- Convolutions have the dilations 1, 2, 4, and so on. The paper prints 2, 4, 8: with a
  kernel of two steps these reach even offsets only, and never the step before.
- The support set is read once. Each query is then the last step of a stream of its own,
  with the keys, values and rows that were kept. Its logits are those of the whole stream.
- How many convolutions there are follows from `length`, or from the task of `init`. Longer
  streams are read too: attention sees all of them, convolutions the last steps.
- Attention is a softmax over keys. A port in PyTorch takes it over queries, where weights
  do not sum to 1 and early steps see later ones.
- The encoder is any network; the paper trains one of its own for each data set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import EMBEDDING, EmbeddingOptions, Head, embedded
from metalearn.algorithms.options import takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.rows import drawn_order
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, PyTree
from metalearn.models.dense import dense, linear


class Stream(NamedTuple):
    """A support set that was read, in the order in which it was.

    Attributes:
      valid: Steps that hold an example, bool `[N]`. The others come first.
      past: What each block keeps, from the first to the last: an attention block its keys
        `[N, K]` and values `[N, V]`; a convolution the row `[D]` that it adds to a query.
    """

    valid: Array
    past: tuple[PyTree, ...]


@takes_options(of=EMBEDDING)
def snail(
    encoder: Model,
    *,
    num_ways: int,
    key_sizes: tuple[int, ...] = (64, 256, 512),
    value_sizes: tuple[int, ...] = (32, 128, 256),
    filters: int = 128,
    length: int | None = None,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies the last item of a stream of labelled examples.

    A step of the stream is `u = [f(x); one-hot label]`, whose label is zero for a query. An
    attention block gives `[u; softmax(q k' / sqrt(K)) v]` over the steps up to its own.
    Between two of them stand convolutions of dilation `r = 1, 2, 4, ...`; each gives
    `[u; tanh(C1) sigmoid(C2)]`, `C = A u_t + B u_(t-r) + b`. A linear layer follows.

    The order of the support set matters. The key of `adapt` draws it; without a key it is
    the given one.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes of labels and logits. Classes absent from a support set get a
        logit that never wins.
      key_sizes: Sizes of the keys of each attention block.
      value_sizes: Sizes of the values of each attention block, as many.
      filters: Number of filters of each convolution.
      length: Steps of the longest stream that convolutions see whole, the query counted;
        those of the task that `init` is given when `None`. Longer streams are allowed.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Stream`.

    Raises:
      TypeError: sizes that are no sequence.
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4())
      >>> learner = ml.snail(encoder, num_ways=5, key_sizes=(16, 32), value_sizes=(16, 16))
    """
    key_sizes = _sizes("key_sizes", key_sizes)
    value_sizes = _sizes("value_sizes", value_sizes)
    if not key_sizes or len(key_sizes) != len(value_sizes):
        raise ValueError(
            f"key_sizes is {key_sizes} and value_sizes is {value_sizes}; expected a size "
            "in each for every attention block, and at least one block."
        )
    checks.whole_number("filters", filters, least=1)
    if length is not None:
        checks.whole_number("length", length, least=2)

    def init(key: Key, like: Array) -> PyTree:
        steps = length or like.shape[0] + 1
        # Dilations of 1, 2, ..., 2^(depth-1) reach every offset up to 2^depth - 1.
        depth, size = (steps - 1).bit_length(), like.shape[-1] + num_ways
        params = {"attention": [], "convolutions": []}
        for i, (of_keys, of_values) in enumerate(zip(key_sizes, value_sizes)):
            key, k_convolutions, *ks = jax.random.split(key, 5)
            if i:
                each = jax.random.split(k_convolutions, depth)
                sizes = range(size, size + depth * filters, filters)
                params["convolutions"].append(
                    [dense(k, 2 * s, 2 * filters) for k, s in zip(each, sizes)]
                )
                size += depth * filters
            outputs = {"query": of_keys, "key": of_keys, "value": of_values}
            params["attention"].append(
                {name: dense(k, size, outputs[name]) for name, k in zip(outputs, ks)}
            )
            size += of_values
        params["logits"] = dense(key, size, num_ways)
        return jax.tree.map(lambda leaf: leaf.astype(like.dtype), params)

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> Stream:
        order = drawn_order(key, support.mask, masked="first")
        labels = jax.nn.one_hot(support.y, num_ways, dtype=support.x.dtype)
        steps = jnp.concatenate([support.x, labels], -1)[order]
        return _read(params, steps, support.mask[order])

    def score(params: PyTree, stream: Stream, x: Array) -> Array:
        unlabelled = jnp.zeros((x.shape[0], num_ways), x.dtype)
        return _answer(params, stream, jnp.concatenate([x, unlabelled], -1))

    settings = {
        "key_sizes": key_sizes,
        "value_sizes": value_sizes,
        "filters": filters,
        "length": length,
    }
    head = Head(fit=fit, score=score, init=init)
    return embedded("snail", encoder, head, num_ways=num_ways, settings=settings, **options)


def _sizes(name: str, given: Any) -> tuple[int, ...]:
    """Sizes of all attention blocks, as a tuple."""
    if not isinstance(given, (tuple, list)):
        raise TypeError(
            f"{name} is {given!r}; expected a size for every attention block, such as "
            "(64, 256)."
        )
    for i, size in enumerate(given):
        checks.whole_number(f"{name}[{i}]", size, least=1)
    return tuple(given)


def _blocks(params: PyTree) -> Iterator[tuple[int | None, PyTree]]:
    """Dilation, or `None` for attention, and parameters of each block."""
    for i, attention in enumerate(params["attention"]):
        if i:
            for power, convolution in enumerate(params["convolutions"][i - 1]):
                yield 2**power, convolution
        yield None, attention


def _read(params: PyTree, u: Array, valid: Array) -> Stream:
    """What the blocks keep of the steps `[N, D]` of a support set."""
    num, past = len(u), []
    before = jnp.tri(num, k=-1, dtype=bool) & valid[None]
    for dilation, block in _blocks(params):
        # As the zeros that stand to the left of a stream.
        u = jnp.where(valid[:, None], u, 0)
        if dilation is None:
            kept = linear(block["key"], u), linear(block["value"], u)
            u = _attend(block, u, *kept, before)
        else:
            earlier = jnp.pad(u, ((dilation, 0), (0, 0)))  # row t is u_(t-r)
            kept = earlier[num]
            u = _convolve(block, u, earlier[:num])
        past.append(kept)
    return Stream(valid, tuple(past))


def _answer(params: PyTree, stream: Stream, u: Array) -> Array:
    """Logits of queries `[Q, D]`, each of which follows the support set."""
    for (dilation, block), kept in zip(_blocks(params), stream.past):
        if dilation is None:
            u = _attend(block, u, *kept, stream.valid[None])
        else:
            u = _convolve(block, u, kept[None])
    return linear(params["logits"], u)


def _attend(params: PyTree, u: Array, keys: Array, values: Array, seen: Array) -> Array:
    """`[u; read]`: each row reads the past `[N]` that it sees, and itself."""
    query, key, value = (linear(params[name], u) for name in ("query", "key", "value"))
    past = jnp.where(seen, query @ keys.T, -jnp.inf)
    own = jnp.sum(query * key, -1, keepdims=True)
    scores = jnp.concatenate([past, own], -1) / math.sqrt(keys.shape[-1])
    weights = jax.nn.softmax(scores, axis=-1)
    read = weights[:, :-1] @ values + weights[:, -1:] * value
    return jnp.concatenate([u, read], -1)


def _convolve(params: PyTree, u: Array, earlier: Array) -> Array:
    """`[u; tanh(C1) sigmoid(C2)]`; one earlier row serves all rows of queries."""
    of_earlier, of_now = jnp.split(params["w"], 2)
    sums = u @ of_now + earlier @ of_earlier + params["b"][None]
    value, gate = jnp.split(sums, 2, axis=-1)
    return jnp.concatenate([u, jnp.tanh(value) * jax.nn.sigmoid(gate)], -1)
