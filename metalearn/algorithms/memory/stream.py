"""How a learner of sequences sees a task: as a stream of items and late labels.

The examples of the support set arrive one after another, each with the label of the one
before. A query is what might come next: every query follows the same stream, and none
follows another. A file of the family says how one item is read: a `Reader`.

The papers have no queries. Their episode is one long sequence in which every item is
asked, then told. Such an episode is a support set here, and `presentations` judges its
reading as they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import Head
from metalearn.core import checks, loops, metrics
from metalearn.core.losses import cross_entropy
from metalearn.core.rows import drawn_order
from metalearn.core.task import Examples, concatenate, take
from metalearn.core.types import Array, Key, PyTree


class Reader(NamedTuple):
    """How a sequence is read, one item at a time.

    Attributes:
      init: Function `(key, like, num_ways) -> params`, where `like` has the shape `[N, D]`
        and the dtype of embeddings. The params are cast to that dtype.
      start: Function `params -> carry`: what is known before the first item.
      step: Function `(params, carry, x, label) -> (carry, logits [W])` of one item, where
        label is the one-hot label `[W]` of the item before, or zeros.
      view: Function `(params, x [N, D]) -> [N, E]`: what can be computed of all items at
        once. Its rows are the x of `step`.
    """

    init: Callable[[Key, Any, int], PyTree]
    start: Callable[[PyTree], PyTree]
    step: Callable[[PyTree, PyTree, Array, Array], tuple[PyTree, Array]]
    view: Callable[[PyTree, Array], Array] = lambda params, x: x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What reading a support set leaves behind; rows are in the order of reading.

    Attributes:
      carry: What the reader knows after the last item.
      label: Label of the last item, one-hot `[W]`, which no step has seen yet; zeros if
        there is none.
      logits: Answers `[N, W]`, each given before the label of its item was told. Classes
        that the task lacks are not masked, for the reader cannot know them beforehand.
      labels: Classes of the items, int32 `[N]`.
      seen: Number of earlier items of the same class, int32 `[N]`.
      mask: Mask of the valid rows, bool `[N]`.
    """

    carry: PyTree
    label: Array
    logits: Array
    labels: Array
    seen: Array
    mask: Array


def streamed(reader: Reader, num_ways: int) -> Head:
    """A head that reads the support set as a stream.

    The order of reading is drawn by the key of `fit`, so training sees a new one at every
    step; without a key it is the given order. A masked row leaves no trace: not in the
    carry, not as a previous label, and not in the order of the others.

    The loss is the mean cross-entropy over all items of the stream and all queries
    together: the papers' sum over a sequence, divided by its length.

    Args:
      reader: How one item is read.
      num_ways: W, number of logits.

    Returns:
      A `Head` that leaves a `Reading` behind and reports `support/loss` and
      `support/accuracy`.
    """

    def init(key: Key, like: Any) -> PyTree:
        params = reader.init(key, like, num_ways)
        return jax.tree.map(lambda leaf: leaf.astype(like.dtype), params)

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> Reading:
        if key is not None:
            support = take(support, drawn_order(key, support.mask))

        def read(before: tuple[PyTree, Array], item: tuple[Array, Array, Array]):
            (carry, label), (x, told, valid) = before, item
            carry, logits = reader.step(params, carry, x, label)
            keep = lambda new, old: jnp.where(valid, new, old)
            return jax.tree.map(keep, (carry, told), before), logits

        labels = jax.nn.one_hot(support.y, num_ways, dtype=support.x.dtype)
        nothing = reader.start(params), jnp.zeros((num_ways,), support.x.dtype)
        items = reader.view(params, support.x), labels, support.mask
        (carry, label), logits = loops.scan(read, nothing, items)
        return Reading(
            carry=carry,
            label=label,
            logits=logits,
            labels=support.y,
            seen=_seen(support, num_ways),
            mask=support.mask,
        )

    def score(params: PyTree, reading: Reading, x: Array) -> Array:
        def step(row: Array) -> Array:
            return reader.step(params, reading.carry, row, reading.label)[1]

        return jax.vmap(step)(reader.view(params, x))

    def loss(params, reading: Reading, support, query: Examples, logits: Array, *, key):
        stream = Examples(x=(), y=reading.labels, mask=reading.mask)
        asked = Examples(x=(), y=query.y, mask=query.mask)
        report = metrics.of_task(cross_entropy, reading.logits, stream)
        both = jnp.concatenate([reading.logits, logits])
        mean = cross_entropy(both, concatenate(stream, asked))
        return mean, {f"support/{name}": value for name, value in report.items()}

    return Head(fit=fit, score=score, init=init, loss=loss)


def presentations(reading: Reading, most: int) -> tuple[Array, Array]:
    """Right answers by how often the class of an item had been presented before.

    The papers print these as accuracies at the first, second, ... presentation of a class:
    `hits.sum(0) / counts.sum(0)` over many tasks, by `jax.vmap` of this function. At the
    first the label of the class was never told, so that nothing of the item itself helps.
    A learner is right more often than one time in W all the same, because a new class is
    none of those that were told: the last one of W is certain.

    Args:
      reading: What a support set left behind: `adapted.fitted` of a learner that reads.
      most: Number of presentations to count; later ones are left out.

    Returns:
      `(hits, counts)`, each `[most]`: right answers, of which ties count in parts, and
      items.

    Raises:
      TypeError: something else than a `Reading`.
      ValueError: `most` is no integer of 1 or more.
    """
    if not isinstance(reading, Reading):
        raise TypeError(
            f"reading is a {type(reading).__name__}; expected a Reading: adapted.fitted of "
            "ml.rnn or ml.mann."
        )
    checks.whole_number("most", most, least=1)

    def of(times: Array) -> tuple[Array, Array]:
        chosen = reading.mask & (reading.seen == times)
        items = Examples(x=(), y=reading.labels, mask=chosen)
        share = metrics.accuracy(reading.logits, items)
        count = jnp.sum(chosen).astype(share.dtype)
        return share * count, count

    return jax.vmap(of)(jnp.arange(most, dtype=reading.seen.dtype))


def _seen(support: Examples, num_ways: int) -> Array:
    """Number of earlier valid rows of the class of each row, int32 `[N]`."""
    rows = jax.nn.one_hot(support.y, num_ways, dtype=jnp.int32)
    rows = jnp.where(support.mask[:, None], rows, 0)
    before = jnp.cumsum(rows, axis=0, dtype=jnp.int32) - rows
    return jnp.sum(before * rows, axis=-1, dtype=jnp.int32)
