"""The data of a task: a support set to adapt to and a query set to be judged on."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import given, mesh
from metalearn.core.keys import check_key
from metalearn.core.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Labelled examples of one task.

    Attributes:
      x: Inputs, a pytree with leaves `[N, ...]`.
      y: Targets, a pytree with leaves `[N, ...]`; int `[N]` class indices or float.
      mask: Mask of the valid rows, bool `[N]`. False marks a padded row, which must not
        count anywhere.
    """

    x: PyTree
    y: PyTree
    mask: Array

    @classmethod
    def of(cls, x: PyTree, y: PyTree, mask: Array | None = None) -> Examples:
        """Examples with all rows valid unless a mask is given.

        Raises:
          TypeError: strings, as labels often are.
          ValueError: the leading axes differ, the mask is not bool `[N]`, values of a
            masked array are masked, or numbers are beyond 32 bits.

        Example:
          >>> examples = ml.Examples.of(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))
          >>> examples.mask.tolist()
          [True, True, True]
        """
        for name, part in (("x", x), ("y", y)):
            _check_numbers(name, part)
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))}
        if len(sizes) != 1 or () in sizes:
            shapes = jax.tree.map(jnp.shape, (x, y))
            lists = isinstance(x, list) or isinstance(y, list)
            hint = " A list is many leaves: give numpy.asarray of it." if lists else ""
            raise ValueError(
                f"x and y have shapes {shapes[0]} and {shapes[1]}. Every leaf of both "
                f"needs the same leading axis [N], one row an example.{hint}"
            )
        (num,) = sizes.pop()
        if mask is None:
            mask = jnp.ones((num,), bool)
        if jnp.shape(mask) != (num,) or jnp.result_type(mask) != jnp.bool_:
            raise ValueError(
                f"mask has shape {jnp.shape(mask)} and dtype {jnp.result_type(mask)}; "
                f"expected bool of shape ({num},), True for a valid example."
            )
        given.check_kept(x, "x")
        given.check_kept(y, "y")
        x, y = jax.tree.map(jnp.asarray, (x, y))
        return cls(x=x, y=y, mask=jnp.asarray(mask))


def _check_numbers(name: str, tree: PyTree) -> None:
    """Raises a `TypeError` for strings and other objects that are no numbers."""
    for leaf in jax.tree.leaves(tree):
        kind = getattr(getattr(leaf, "dtype", None), "kind", "")
        if isinstance(leaf, (str, bytes)) or kind in ("U", "S", "O", "T"):
            raise TypeError(
                f"{name} holds strings or other objects; expected numbers, and for classes "
                "integers from 0. Number the names: names, y = numpy.unique(y, "
                "return_inverse=True)."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One task; a batch of tasks is a `Task` whose leaves have a leading axis `[T]`.

    Attributes:
      support: Examples that the learner adapts to.
      query: Examples that the adapted learner is judged on.
      info: Arrays that say where the task comes from, e.g. `class_ids` `[W]`.
    """

    support: Examples
    query: Examples
    info: dict[str, Array] = dataclasses.field(default_factory=dict)


class TaskSampler(NamedTuple):
    """A distribution of tasks over arrays that live on the device.

    A call `sampler(key)` draws one task. The arrays are kept apart from the function, so
    that a compiled step takes the arrays as arguments and does not embed them as constants.

    Attributes:
      sample: Function `(data, key) -> Task`, pure and traceable.
      data: Arrays that `sample` reads.
      name: Name in logs and results.
    """

    sample: Callable[[PyTree, Key], Task]
    data: PyTree = ()
    name: str = "tasks"

    def __call__(self, key: Key) -> Task:
        check_key(key)
        return _drawn(self.sample(self.data, key), self.name)

    def first(self, key: Key) -> Task:
        """A task to take shapes from."""
        check_key(key)
        try:
            # One program; without jit every operation would be compiled by itself.
            task = jax.jit(self.sample)(self.data, key)
        except TypeError:
            # What is no task is often no array either, which is all that jit would say.
            task = self.sample(self.data, key)
            if isinstance(task, Task):
                raise
        return _drawn(task, self.name)


def _drawn(task: Any, name: str) -> Task:
    if not isinstance(task, Task):
        raise TypeError(
            f"{name} gave a {type(task).__name__} for a task; expected ml.Task(support="
            "ml.Examples.of(x, y), query=ml.Examples.of(x, y))."
        )
    return task


@dataclasses.dataclass(frozen=True)
class TaskStream:
    """Tasks that are made on the host and brought to the device batch by batch.

    Attributes:
      batches: Function `(num_tasks, start, share=None) -> endless iterator` over batches of
        `num_tasks` tasks, as NumPy arrays `[T, ...]`. The first batch has the number
        `start`. If the slice `share` is given, each batch has the rows of that slice only.
        Equal arguments give equal batches.
      name: Name in logs and results, which includes the seed.
      num_tasks: Number of different tasks, after which they come again; `None` if all are
        different.
    """

    batches: Callable[..., Iterator[Task]]
    name: str = "stream"
    num_tasks: int | None = None

    def first(self, key: Key | None = None) -> Task:
        """The first task of the stream, whatever the key, to take shapes from."""
        batch = _drawn(next_batch(iter(self.batches(1, 0)), 0, 1), self.name)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), batch)


# The tasks that `fit` and `evaluate` accept; `as_tasks` makes a sampler of a function.
Tasks = TaskSampler | TaskStream | Callable[[Key], Task]


def next_batch(batches: Iterator[Task], number: int, size: int) -> Task:
    """The next batch of a stream.

    Args:
      batches: The stream.
      number: Number of the batch, for messages.
      size: Number of tasks that it has to have.

    Raises:
      TypeError: the stream gives something else than tasks.
      ValueError: the stream has ended, or the batch has another number of tasks.
    """
    for batch in batches:
        if not isinstance(batch, Task):
            raise TypeError(
                f"the stream gave a {type(batch).__name__} for a task, in batch {number}; "
                "expected an ml.Task whose leaves are [T, ...]."
            )
        found = jnp.shape(batch.support.mask)[:1]
        if found != (size,):
            raise ValueError(
                f"batch {number} of the stream has masks of shape "
                f"{jnp.shape(batch.support.mask)}; expected {size} tasks, [{size}, N]: "
                "`batches(num_tasks, start, share)` gives as many as it is asked for."
            )
        return batch
    raise ValueError(
        f"the stream of tasks ended before batch {number}; it has to go on for as long as "
        "training and evaluation ask. Repeat its examples, or ask for fewer steps."
    )


def as_tasks(tasks: Tasks) -> TaskSampler | TaskStream:
    """The given sampler or stream, or a sampler made of a plain function `key -> Task`.

    Raises:
      TypeError: `tasks` is none of these.
    """
    if isinstance(tasks, (TaskSampler, TaskStream)):
        return tasks
    if callable(tasks) and not isinstance(tasks, type) and _takes_a_key(tasks):
        return TaskSampler(_Plain(tasks), (), getattr(tasks, "__name__", "tasks"))
    expected = (
        "expected a TaskSampler or a function `key -> Task`, e.g. ml.tasks.sinusoid() or "
        "ml.data.few_shot(...)."
    )
    name = getattr(tasks, "__name__", type(tasks).__name__)
    if isinstance(tasks, type):
        said = f"tasks is the class {name}; {expected} Make an instance of it."
    elif isinstance(tasks, Task):
        said = f"tasks is one Task; {expected} For this task alone: lambda key: task."
    elif isinstance(tasks, (list, tuple)):
        said = (
            f"tasks is a {name} of {len(tasks)}; {expected} ml.tasks.from_tasks(tasks) "
            "draws from such a list."
        )
    elif callable(tasks):
        said = (
            f"tasks is {name}{inspect.signature(tasks)}, which does not take one key; "
            f"{expected} Call it first, if it makes a sampler: {name}(...)."
        )
    elif hasattr(tasks, "__iter__") and not isinstance(tasks, (str, dict)):
        said = (
            f"tasks is a {name}, whose order is its own; {expected} Batches that are made "
            "on the host come as a TaskStream(batches), where batches(num_tasks, start, "
            "share) iterates over Tasks [T, ...] of NumPy arrays from batch `start` on."
        )
    else:
        said = f"tasks is a {name}; {expected}"
    raise TypeError(said)


def _takes_a_key(fn: Callable) -> bool:
    """Whether a function draws a task, and is not one that makes a sampler."""
    try:
        signature = inspect.signature(fn)
    except ValueError:  # written in C: nothing is known
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    first = next(iter(signature.parameters.values()))
    return first.default is first.empty or first.name == "key"


@dataclasses.dataclass(frozen=True)
class _Plain:
    """Ignores `data`. Equal functions give equal samplers, so compilations are shared."""

    fn: Callable[[Key], Task]

    def __call__(self, data: PyTree, key: Key) -> Task:
        del data
        return self.fn(key)


def sample_batch(sampler: TaskSampler, data: PyTree, keys: Key) -> Task:
    """A batch of tasks, one for each key of `keys` `[T]`.

    Raises:
      TypeError: no sampler, or no batch of keys.
    """
    if not isinstance(sampler, TaskSampler):
        raise TypeError(
            f"sampler is a {getattr(sampler, '__name__', type(sampler).__name__)}; "
            "expected a TaskSampler. A function `key -> Task` is one as ml.TaskSampler("
            "lambda data, key: fn(key)); a TaskStream gives batches by itself."
        )
    check_key(keys, "keys", batch=True)

    def drawn(data: PyTree, keys: Key) -> tuple[tuple, Task]:
        return (), jax.vmap(sampler.sample, in_axes=(None, 0))(data, keys)

    return mesh.share(drawn, data, keys)[1]


def stack_tasks(tasks: Sequence[Task]) -> Task:
    """A batch of tasks of equal shapes (`pad_examples` makes shapes equal).

    Example:
      >>> sine = ml.tasks.sinusoid(num_support=5)
      >>> batch = ml.stack_tasks([sine(jax.random.key(seed)) for seed in range(3)])
      >>> batch.support.x.shape
      (3, 5, 1)

    Raises:
      TypeError: something else than tasks.
      ValueError: there is none, or shapes and kinds of numbers differ.
    """
    given = type(tasks).__name__
    if isinstance(tasks, (Task, TaskSampler)) or not hasattr(tasks, "__iter__"):
        raise TypeError(f"tasks is a {given}; expected a list of ml.Task.")
    tasks = list(tasks)
    for i, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise TypeError(f"task {i} is a {type(task).__name__}; expected ml.Task.")
    if not tasks:
        raise ValueError("stack_tasks needs at least one task, got none.")
    shapes = [jax.tree.map(jnp.shape, t) for t in tasks]
    kinds = [jax.tree.map(_kind, t) for t in tasks]
    for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=True)):
        if shape != shapes[0]:
            raise ValueError(
                f"task {i} has shapes {shape}, task 0 has {shapes[0]}. Pad support and "
                "query to common sizes with pad_examples before stacking."
            )
        if kind != kinds[0]:
            raise ValueError(
                f"task {i} has numbers of the kinds {kind}, task 0 of {kinds[0]}. Stacked, "
                "classes would become real numbers; give all tasks the same dtypes."
            )
    return jax.tree.map(lambda *xs: jnp.stack(xs), *tasks)


def _kind(leaf: Any) -> str:
    """Whether numbers are bools, integers or real: kinds that stacking would mix."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    kinds = {"bool": jnp.bool_, "integer": jnp.integer, "real": jnp.floating}
    found = [name for name, kind in kinds.items() if jnp.issubdtype(dtype, kind)]
    return found[0] if found else str(dtype)


def pad_examples(examples: Examples, size: int) -> Examples:
    """Pads examples to `size` rows; the new rows are zero and have the mask False.

    Raises:
      TypeError: not `Examples` of one task.
      ValueError: `size` is no integer, or the examples have more rows already.

    Example:
      >>> examples = ml.Examples.of(jnp.ones((2, 1)), jnp.ones((2, 1)))
      >>> ml.pad_examples(examples, 4).mask.tolist()
      [True, True, False, False]
    """
    if not isinstance(examples, Examples) or jnp.ndim(examples.mask) != 1:
        raise TypeError(
            f"examples is a {type(examples).__name__}; expected ml.Examples of one task, "
            "mask [N], such as task.support."
        )
    whole = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
    if not whole or size < 0:
        raise ValueError(f"size is {size!r}; expected an integer of 0 or more.")
    num = examples.mask.shape[0]
    if num > size:
        raise ValueError(f"examples has {num} rows, more than the asked size {size}.")

    def pad(leaf: Array) -> Array:
        # Zeros and not NaN: masked rows pass through the network, and 0 times NaN is NaN.
        # Zero is False in the mask itself.
        return jnp.pad(leaf, [(0, size - num)] + [(0, 0)] * (leaf.ndim - 1))

    return jax.tree.map(pad, examples)


def concatenate(first: Examples, second: Examples) -> Examples:
    """The examples of both sets in one, `[N1 + N2, ...]`.

    Raises:
      ValueError: one holds integers where the other holds real numbers.
    """
    kinds = [jax.tree.map(_kind, part) for part in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"two sets of examples have numbers of the kinds {kinds[0]} and {kinds[1]}. "
            "Joined, classes would become real numbers; give both the same dtypes."
        )
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def take(examples: Examples, rows: Any) -> Examples:
    """The chosen rows of every leaf."""
    return jax.tree.map(lambda leaf: leaf[rows], examples)
