"""The data of a task: a support set to adapt to and a query set to be judged on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalearn.core import mesh
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
          ValueError: the leading axes differ, or the mask is not bool `[N]`.

        Example:
          >>> examples = ml.Examples.of(jnp.zeros((3, 2)), jnp.array([0, 1, 1]))
          >>> examples.mask.tolist()
          [True, True, True]
        """
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))}
        if len(sizes) != 1 or () in sizes:
            shapes = jax.tree.map(jnp.shape, (x, y))
            raise ValueError(
                f"x and y have shapes {shapes[0]} and {shapes[1]}. Every leaf of both "
                "needs the same leading axis [N], one row an example."
            )
        (num,) = sizes.pop()
        if mask is None:
            mask = jnp.ones((num,), bool)
        if jnp.shape(mask) != (num,) or jnp.result_type(mask) != jnp.bool_:
            raise ValueError(
                f"mask has shape {jnp.shape(mask)} and dtype {jnp.result_type(mask)}; "
                f"expected bool of shape ({num},), True for a valid example."
            )
        x, y = jax.tree.map(jnp.asarray, (x, y))
        return cls(x=x, y=y, mask=jnp.asarray(mask))


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
        return self.sample(self.data, key)

    def first(self, key: Key) -> Task:
        """A task to take shapes from."""
        # One program; without jit every operation would be compiled by itself.
        return jax.jit(self.sample)(self.data, key)


@dataclasses.dataclass(frozen=True)
class TaskStream:
    """Tasks that are made on the host and brought to the device batch by batch.

    Attributes:
      batches: Function `(num_tasks, start, share=None) -> endless iterator` over batches of
        `num_tasks` tasks, as NumPy arrays `[T, ...]`. The first batch has the number
        `start`. If the slice `share` is given, each batch has the rows of that slice only.
        Equal arguments give equal batches.
      name: Name in logs and results, which includes the seed.
    """

    batches: Callable[..., Iterator[Task]]
    name: str = "stream"

    def first(self, key: Key | None = None) -> Task:
        """The first task of the stream, whatever the key, to take shapes from."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), next(self.batches(1, 0)))


# The tasks that `fit` and `evaluate` accept; `as_tasks` makes a sampler of a function.
Tasks = TaskSampler | TaskStream | Callable[[Key], Task]


def next_batch(batches: Iterator[Task], number: int) -> Task:
    """The next batch of a stream.

    Raises:
      ValueError: the stream has ended.
    """
    for batch in batches:
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
    if callable(tasks):
        return TaskSampler(_Plain(tasks), (), getattr(tasks, "__name__", "tasks"))
    raise TypeError(
        f"tasks is a {type(tasks).__name__}; expected a TaskSampler or a function "
        "`key -> Task`, e.g. ml.tasks.sinusoid() or ml.data.few_shot(...)."
    )


@dataclasses.dataclass(frozen=True)
class _Plain:
    """Ignores `data`. Equal functions give equal samplers, so compilations are shared."""

    fn: Callable[[Key], Task]

    def __call__(self, data: PyTree, key: Key) -> Task:
        del data
        return self.fn(key)


def sample_batch(sampler: TaskSampler, data: PyTree, keys: Key) -> Task:
    """A batch of tasks, one for each key of `keys` `[T]`."""

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
    """
    if not tasks:
        raise ValueError("stack_tasks needs at least one task, got none.")
    shapes = [jax.tree.map(jnp.shape, t) for t in tasks]
    for i, other in enumerate(shapes):
        if other != shapes[0]:
            raise ValueError(
                f"task {i} has shapes {other}, task 0 has {shapes[0]}. Pad support and "
                "query to common sizes with pad_examples before stacking."
            )
    return jax.tree.map(lambda *xs: jnp.stack(xs), *tasks)


def pad_examples(examples: Examples, size: int) -> Examples:
    """Pads examples to `size` rows; the new rows are zero and have the mask False.

    Raises:
      ValueError: the examples have more than `size` rows already.

    Example:
      >>> examples = ml.Examples.of(jnp.ones((2, 1)), jnp.ones((2, 1)))
      >>> ml.pad_examples(examples, 4).mask.tolist()
      [True, True, False, False]
    """
    num = examples.mask.shape[0]
    if num > size:
        raise ValueError(f"examples has {num} rows, more than the asked size {size}.")

    def pad(leaf: Array) -> Array:
        # Zeros and not NaN: masked rows pass through the network, and 0 times NaN is NaN.
        # Zero is False in the mask itself.
        return jnp.pad(leaf, [(0, size - num)] + [(0, 0)] * (leaf.ndim - 1))

    return jax.tree.map(pad, examples)


def concatenate(first: Examples, second: Examples) -> Examples:
    """The examples of both sets in one, `[N1 + N2, ...]`."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)


def take(examples: Examples, rows: Any) -> Examples:
    """The chosen rows of every leaf."""
    return jax.tree.map(lambda leaf: leaf[rows], examples)
