"""A memory of keys and values with a fixed number of slots.

Every function is pure: it takes a memory and returns another. A memory is a tuple of
arrays, so it may be the carry of a scan, the state of a learner or a part of a checkpoint.

    memory = store.empty(100, key, value)
    memory = store.write(memory, key, value)
    value = store.read(memory, query)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds, loops, trees
from metalearn.core.rows import unit
from metalearn.core.types import Array, PyTree

Eviction = Literal["fifo", "lru", "clock"]
Kernel = Literal["cosine", "euclidean"]
CLOSE = 1e-3  # added to distances, so that an equal key has a finite weight


class EpisodicMemory(NamedTuple):
    """Slots of keys and values, and what evictions have to know of them.

    A named tuple, since `ml.save` keeps those and no dataclasses.

    Attributes:
      keys: Keys, `[M, K]`.
      values: Values, leaves `[M, ...]`.
      filled: Whether a slot holds anything, bool `[M]`.
      written: Time of the last writing of a slot, int32 `[M]`.
      used: Time of its last use, which is a writing or a `touch`, int32 `[M]`.
      marked: Marks that a `touch` sets and the hand of the clock takes away, bool `[M]`.
      hand: Slot at which the hand of the clock stands, int32.
      time: Number of writings and touches so far, int32.
    """

    keys: Array
    values: PyTree
    filled: Array
    written: Array
    used: Array
    marked: Array
    hand: Array
    time: Array


class Recall(NamedTuple):
    """The slots that are nearest to a query, the nearest first.

    Attributes:
      slots: Numbers of the slots, int32 `[k]`.
      distances: Distances of their keys to the query, `[k]`; infinite where nothing is
        found.
      found: Whether the slot holds anything, bool `[k]`.
    """

    slots: Array
    distances: Array
    found: Array


def empty(capacity: int, key_like: Any, value_like: PyTree) -> EpisodicMemory:
    """A memory without entries.

    Args:
      capacity: M, number of slots.
      key_like: Shape `[K]` and dtype of a key.
      value_like: Shapes and dtypes of a value.

    Raises:
      TypeError: something else than arrays, or their shapes.
      ValueError: no slots, keys that are no vectors of real numbers, or values that are no
        real numbers.

    Example:
      >>> memory = empty(2, jnp.zeros(3), {"cell": jnp.zeros(4)})
      >>> memory.values["cell"].shape
      (2, 4)
    """
    checks.whole_number("capacity", capacity, least=1)
    _check_like("key_like", key_like)
    if len(key_like.shape) != 1 or not jnp.issubdtype(key_like.dtype, jnp.floating):
        raise ValueError(
            f"a key is {key_like.dtype}{list(key_like.shape)}; expected real numbers [K]."
        )

    for path, like in jax.tree_util.tree_leaves_with_path(value_like):
        _check_like("value_like", like)
        if not jnp.issubdtype(like.dtype, jnp.floating):
            at = trees.path_string(path)
            raise ValueError(
                f"a value is {like.dtype}{list(like.shape)}{at and f' at {at}'}; expected "
                "real numbers, for what is read is a mean. Convert it to float32."
            )

    def slots(like: Any) -> Array:
        return jnp.zeros((capacity, *like.shape), like.dtype)

    times = jnp.zeros(capacity, jnp.int32)
    flags, zero = jnp.zeros(capacity, bool), jnp.zeros((), jnp.int32)
    values = jax.tree.map(slots, value_like)
    return EpisodicMemory(slots(key_like), values, flags, times, times, flags, zero, zero)


def write(
    memory: EpisodicMemory,
    key: Array,
    value: PyTree,
    where: Any = True,
    *,
    eviction: Eviction = "fifo",
    replace: bool = False,
) -> EpisodicMemory:
    """Writes one entry, in the place of another if all slots are filled.

    What is stored counts as a constant: no derivative passes through a memory.

    Args:
      memory: The memory.
      key: Key, `[K]`.
      value: Value, leaves `[...]`.
      where: Whether anything is written at all, a bool scalar.
      eviction: Which entry goes: "fifo", the one that was written first; "lru", the one
        whose last use is the longest ago; "clock", the next one without a mark, where the
        hand takes the marks that it passes.
      replace: Whether an entry with an equal key is written over, instead of a second one.

    Raises:
      TypeError: `replace` is no bool.
      ValueError: an unknown eviction, or an entry of other shapes than the slots.
    """
    checks.one_of("eviction", eviction, get_args(Eviction))
    kinds.flag("replace", replace)
    _check_shapes("the key", key, memory.keys)
    _check_shapes("the value", value, memory.values)
    where = jnp.asarray(where, bool)
    slot, marked, hand = _place(memory, eviction)
    fresh = where
    if replace:
        same = memory.filled & jnp.all(memory.keys == key[None], axis=-1)
        known = jnp.any(same)
        slot = jnp.where(known, _int(jnp.argmax(same)), slot)
        fresh = where & ~known
    # Beyond the last slot nothing is written. The alternative, to choose between the old
    # and the new arrays, would copy the whole memory.
    into = jnp.where(where, slot, memory.filled.shape[0])

    def put(leaf: Array, new: Any) -> Array:
        new = jax.lax.stop_gradient(jnp.asarray(new).astype(leaf.dtype))
        return leaf.at[into].set(new, mode="drop")

    return EpisodicMemory(
        keys=put(memory.keys, key),
        values=jax.tree.map(put, memory.values, value),
        filled=put(memory.filled, True),
        written=put(memory.written, memory.time),
        used=put(memory.used, memory.time),
        # A mark is a sign of use, and writing is none.
        marked=put(jnp.where(fresh, marked, memory.marked), False),
        hand=jnp.where(fresh, hand, memory.hand),
        time=memory.time + _int(where),
    )


def write_all(
    memory: EpisodicMemory,
    keys: Array,
    values: PyTree,
    where: Array | None = None,
    *,
    eviction: Eviction = "fifo",
    replace: bool = False,
) -> EpisodicMemory:
    """Writes a batch of entries one after the other, the first row first.

    Args:
      memory: The memory.
      keys: Keys, `[T, K]`.
      values: Values, leaves `[T, ...]`.
      where: Which of them are written, bool `[T]`; all when `None`.
      eviction: See `write`.
      replace: See `write`.

    Raises:
      TypeError: see `write`.
      ValueError: an unknown eviction, or rows of other shapes than the slots.
    """
    _check_shapes("a row of the keys", jax.tree.map(_row, keys), memory.keys)
    _check_shapes("a row of the values", jax.tree.map(_row, values), memory.values)
    if where is None:
        where = jnp.ones(keys.shape[:1], bool)

    def one(memory: EpisodicMemory, entry: tuple) -> tuple[EpisodicMemory, None]:
        return write(memory, *entry, eviction=eviction, replace=replace), None

    return loops.scan(one, memory, (keys, values, where))[0]


def nearest(
    memory: EpisodicMemory, query: Array, k: int = 1, kernel: Kernel = "cosine"
) -> Recall:
    """The k entries whose keys are nearest to a query.

    Distances are `1 - cos(query, key)` or `|query - key|^2`. Of equal distances the latest
    entry is the nearer one. Numbers of slots have no derivative, distances have.

    Args:
      memory: The memory.
      query: Query, `[K]`.
      k: Number of entries, from 1 to M.
      kernel: Distance of keys: "cosine" or "euclidean".

    Raises:
      ValueError: `k` is out of range, an unknown kernel, or a query of another shape.
    """
    capacity = memory.filled.shape[0]
    checks.whole_number("k", k, least=1)
    checks.one_of("kernel", kernel, get_args(Kernel))
    if k > capacity:
        raise ValueError(f"k is {k}; expected at most {capacity}, the number of slots.")
    _check_shapes("the query", query, memory.keys)
    query = query.astype(memory.keys.dtype)
    if kernel == "cosine":
        apart = 1 - unit(memory.keys) @ unit(query)
    else:
        apart = jnp.sum(jnp.square(memory.keys - query[None]), axis=-1)
    apart = jnp.where(memory.filled, apart, jnp.inf)
    slots = _int(jnp.lexsort((-memory.written, apart))[:k])
    return Recall(slots, apart[slots], memory.filled[slots])


def blend(memory: EpisodicMemory, recall: Recall) -> PyTree:
    """The mean of the recalled values, weighted by `1 / (distance + 0.001)`.

    Returns:
      A value; the nearest one itself if one was asked for, zeros if there is none.
    """
    if recall.slots.shape == (1,):
        weights = recall.found.astype(memory.keys.dtype)
    else:
        # Infinite distances of empty slots make weights of zero.
        weights = 1 / (recall.distances + CLOSE)
        total = jnp.sum(weights)
        weights = weights / jnp.where(total > 0, total, 1)

    def mean(leaf: Array) -> Array:
        return jnp.tensordot(weights.astype(leaf.dtype), leaf[recall.slots], 1)

    return jax.tree.map(mean, memory.values)


def read(
    memory: EpisodicMemory, query: Array, k: int = 1, kernel: Kernel = "cosine"
) -> PyTree:
    """The value at the nearest key, or the weighted mean of the k nearest; see `blend`.

    Reading changes no memory; `touch` says that slots were used.

    Args:
      memory: The memory.
      query: Query, `[K]`.
      k: Number of entries, from 1 to M.
      kernel: Distance of keys: "cosine" or "euclidean".

    Example:
      >>> memory = empty(2, jnp.zeros(2), jnp.zeros(1))
      >>> memory = write(memory, jnp.array([1.0, 0.0]), jnp.array([7.0]))
      >>> read(memory, jnp.array([0.9, 0.1])).tolist()
      [7.0]
    """
    return blend(memory, nearest(memory, query, k, kernel))


def touch(memory: EpisodicMemory, recall: Recall, where: Any = True) -> EpisodicMemory:
    """Says that the slots of a recall were used, for "lru" and "clock".

    Args:
      memory: The memory that the recall is of.
      recall: What `nearest` found.
      where: Whether they were used at all, a bool scalar.
    """
    used = recall.found & where
    into = jnp.where(used, recall.slots, memory.filled.shape[0])
    return memory._replace(
        used=memory.used.at[into].set(memory.time, mode="drop"),
        marked=memory.marked.at[into].set(True, mode="drop"),
        time=memory.time + _int(jnp.any(used)),
    )


def _check_like(name: str, given: Any) -> None:
    if not hasattr(given, "shape"):
        raise TypeError(
            f"{name} holds a {type(given).__name__}; expected arrays, such as "
            "jnp.zeros(3), or jax.ShapeDtypeStruct."
        )


def _row(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape of one of a batch of entries."""
    return jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf))


def _check_shapes(name: str, given: PyTree, slots: PyTree) -> None:
    """Refuses what does not fill one slot `[M, ...]`, rather than repeat it there."""
    found, wanted = (jax.tree_util.tree_leaves_with_path(tree) for tree in (given, slots))
    if [path for path, _ in found] != [path for path, _ in wanted]:
        raise ValueError(
            f"{name} has the structure {jax.tree.structure(given)}; expected "
            f"{jax.tree.structure(slots)}, that of store.empty."
        )
    for (path, leaf), (_, slot) in zip(found, wanted, strict=True):
        shape, one = jnp.shape(leaf), slot.shape[1:]
        if shape != one:
            at = f" at {trees.path_string(path)}" if path else ""
            batch = (
                " A batch of entries is for store.write_all." if shape[1:] == one else ""
            )
            raise ValueError(
                f"{name} has the shape {shape}{at}; expected {one}, as the memory was made "
                f"for by store.empty.{batch}"
            )


def _place(memory: EpisodicMemory, eviction: Eviction) -> tuple[Array, Array, Array]:
    """The slot of a new entry; marks and hand if one has to go for it."""
    capacity = memory.filled.shape[0]
    marked, hand = memory.marked, memory.hand
    if eviction == "clock":
        # The slots in the order in which the hand meets them.
        met = (memory.hand + jnp.arange(capacity, dtype=jnp.int32)) % capacity
        kept = memory.marked[met]
        # The first without a mark. If all have one it is the first, after a whole round.
        turn = jnp.argmin(kept)
        passed = (jnp.arange(capacity) < turn) | jnp.all(kept)
        marked = memory.marked.at[met].set(kept & ~passed)
        oldest = met[turn]
        hand = (oldest + 1) % capacity
    else:
        oldest = _int(jnp.argmin(memory.written if eviction == "fifo" else memory.used))
    full = jnp.all(memory.filled)
    slot = jnp.where(full, oldest, _int(jnp.argmin(memory.filled)))
    return (
        slot,
        jnp.where(full, marked, memory.marked),
        jnp.where(full, hand, memory.hand),
    )


def _int(number: Array) -> Array:
    return number.astype(jnp.int32)
