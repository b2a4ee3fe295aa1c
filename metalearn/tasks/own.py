"""Tasks of the user: a list of tasks of any sizes, kept and drawn on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import kinds
from metalearn.core.keys import of_seed
from metalearn.core.task import Examples, Task, TaskSampler, TaskStream
from metalearn.core.types import Array, Key, PyTree
from metalearn.tasks import arrays
from metalearn.tasks.arrays import PARTS, HostTask


def from_tasks(
    tasks: Sequence[Any],
    *,
    labels: str | Sequence[str] | None = None,
    check_images: bool = True,
    name: str = "own tasks",
) -> TaskSampler:
    """A distribution of tasks over a list of them, which may differ in size.

    Each draw takes one task of the list, all with the same probability. Tasks are padded to
    the largest support and the largest query set when they are drawn; on the device the
    examples lie without padding. A task keeps its support and its query as they are given.

    Args:
      tasks: Tasks, each an `ml.Task` or a tuple `(support_x, support_y, query_x, query_y)`
        of arrays with a row for each example. Inputs are numbers; uint8 is mapped to 0..1.
        Targets are floats for regression, and integers from 0 or text for classes. Classes
        may have any numbers of shots.
      labels: How labels become class indices. `None` takes integers as they are, and text
        if all tasks have the same classes; "shared" numbers the classes of all tasks
        together, "own" those of each task from 0, in sorted order; a list gives the names.
      check_images: Whether images `[N, H, W, C]`, also flattened ones, are refused whose
        values are those of a usual mistake, as by `ml.data.few_shot`.
      name: Name in logs and results.

    Returns:
      A sampler. `info` holds `task`, the number in the list, and what the tasks have in
      `info`. `sampler.sample.num_tasks` is the length of the list, and
      `sampler.sample.classes` holds names of classes: of all tasks, or a tuple a task.

    Raises:
      TypeError: a task is something else, or an array has an unusable dtype.
      ValueError: there is no task, a set is empty, tasks do not fit together, a number is
        not finite, a label is negative, or `check_images` refuses images.

    Example:
      >>> x, y = jnp.ones((7, 2)), jnp.zeros(7)
      >>> tasks = ml.tasks.from_tasks([(x[:3], y[:3], x[3:], y[3:]), (x[:5], y[:5], x, y)])
      >>> task = tasks(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.shape
      ((5, 2), (7, 2))
    """
    host = host_tasks(tasks)
    found = arrays.labels_of(host, labels)
    classes: tuple = ()
    if found is not None:
        pairs = [arrays.coded(t, found, f"task {i}") for i, t in enumerate(host)]
        host, names = [task for task, _ in pairs], tuple(names for _, names in pairs)
        classes = names if found.names is None else found.names
    check_alike(host)
    data = {part: _flat([getattr(task, part) for task in host]) for part in PARTS}
    for part in PARTS if check_images else ():
        arrays.check_images(data[part]["x"], f"{part} x of the tasks")
    data["info"] = _stacked_info(host)
    sizes = tuple(max(getattr(task, part).num for task in host) for part in PARTS)
    sample = ListedTasks(len(host), sizes, classes)
    return TaskSampler(sample, jax.tree.map(jnp.asarray, data), name)


def in_order(tasks: TaskSampler, *, seed: int = 0) -> TaskStream:
    """The tasks of a finite sampler one after the other, then again from the first.

    With it `evaluate` judges every task once, and none twice.

    Args:
      tasks: Sampler of `from_tasks`, `from_table` or `histories`, or of `from_generator`
        with a number of tasks.
      seed: Seed of the examples that are drawn from a group of a table.

    Raises:
      TypeError: the sampler is another one, whose tasks have no order.

    Example:
      >>> every = ml.tasks.in_order(tasks)
      >>> ml.evaluate(learner, variables, every, num_tasks=tasks.sample.num_tasks, key=key)
    """
    kinds.count("seed", seed, least=0)
    sample = getattr(tasks, "sample", None)
    if not isinstance(tasks, TaskSampler) or not hasattr(sample, "one"):
        given = getattr(tasks, "name", type(tasks).__name__)
        raise TypeError(
            f"tasks is {given!r}, which has no finite list of tasks; expected a sampler of "
            "ml.tasks.from_tasks or ml.tasks.from_table."
        )

    @jax.jit
    def drawn(data: PyTree, key: Key, numbers: Array) -> Task:
        one = lambda n: sample.one(data, n % sample.num_tasks, jax.random.fold_in(key, n))
        return jax.vmap(one)(numbers)

    def batches(num_tasks: int, start: int, share: slice | None = None) -> Iterator[Task]:
        # Made here: a key of before may belong to another backend or mesh.
        key = of_seed(seed)
        while True:
            numbers = np.arange(start * num_tasks, (start + 1) * num_tasks)
            # Of the place in the list and not of the batch, so that the examples of a
            # task do not depend on the number of tasks in a batch.
            numbers = (numbers % sample.num_tasks)[share or slice(None)]
            yield jax.device_get(drawn(tasks.data, key, numbers.astype(np.int32)))
            start += 1

    name = f"{tasks.name} in order seed {seed}"
    return TaskStream(batches=batches, name=name, num_tasks=sample.num_tasks)


@dataclasses.dataclass(frozen=True)
class ListedTasks:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations.

    Attributes:
      num_tasks: Number of tasks.
      sizes: Rows of the padded support and query set.
      classes: Names of classes where labels were text: of all tasks, or a tuple a task.
    """

    num_tasks: int
    sizes: tuple[int, ...]
    classes: tuple = dataclasses.field(default=(), compare=False)

    def __call__(self, data: PyTree, key: Key) -> Task:
        return self.one(data, jax.random.randint(key, (), 0, self.num_tasks), key)

    def one(self, data: PyTree, number: Array, key: Key) -> Task:
        """Task `number`; the key is not used, since nothing is left to draw."""
        del key
        sets = {
            part: _padded(data[part], number, size)
            for part, size in zip(PARTS, self.sizes, strict=True)
        }
        info = jax.tree.map(lambda leaf: leaf[number], data["info"])
        return Task(**sets, info={**info, "task": jnp.asarray(number, jnp.int32)})


def _padded(flat: PyTree, number: Array, size: int) -> Examples:
    """The examples of one task `[size, ...]`, padded rows zero."""
    place, count = jnp.arange(size), flat["counts"][number]
    mask = place < count
    rows = flat["starts"][number] + jnp.minimum(place, count - 1)

    def gathered(leaf: Array) -> Array:
        found = leaf[rows]
        # Zero as in `pad_examples`, and not another task's rows.
        return jnp.where(mask.reshape((-1,) + (1,) * (found.ndim - 1)), found, 0)

    x, y = jax.tree.map(gathered, (flat["x"], flat["y"]))
    return Examples(x=arrays.scaled(x), y=y, mask=mask)


def host_tasks(tasks: Any) -> list[HostTask]:
    """The tasks of a user as checked arrays.

    Raises:
      TypeError: `tasks` is no sequence of tasks.
      ValueError: it is empty, or a task is wrong.
    """
    if type(tasks) not in (list, tuple):
        kind = type(tasks).__name__
        remedy = {
            "Task": "Put it into a list.",
            "TaskSampler": "It can be given to fit and evaluate as it is.",
            "TaskStream": "It can be given to fit and evaluate as it is.",
            "generator": "Give it to ml.tasks.from_generator.",
        }.get(kind, "Make a list of them.")
        raise TypeError(f"tasks is a {kind}; expected a list of tasks. {remedy}")
    if len(tasks) == 4 and hasattr(tasks[0], "shape") and not isinstance(tasks[0], Task):
        raise TypeError(
            "tasks are four arrays; expected a list of tasks. One task is the tuple "
            "(support_x, support_y, query_x, query_y): put it into a list."
        )
    if not len(tasks):
        raise ValueError("tasks is empty; expected one task or more.")
    return [arrays.host_task(task, f"task {i}") for i, task in enumerate(tasks)]


def check_alike(
    tasks: Sequence[HostTask], first: HostTask | None = None, start: int = 0
) -> None:
    """Checks that tasks agree in all but their sizes.

    Args:
      tasks: Tasks with the numbers from `start` on.
      first: Task 0; default: the first of the tasks.
      start: Number of the first of the tasks, for messages.

    Raises:
      ValueError: shapes or kinds of rows differ, or a label is negative.
    """
    like = tasks[0] if first is None else first
    for i, task in enumerate(tasks, start):
        for part in PARTS:
            for field in ("x", "y"):
                found, wanted = (
                    _rows_of(getattr(getattr(t, part), field), field) for t in (task, like)
                )
                if found != wanted:
                    raise ValueError(
                        f"task {i}: {part} {field} has rows of {found}, those of task 0 "
                        f"are {wanted}. Give all tasks rows of one shape and kind, such as "
                        "float32."
                    )
            _check_labels(getattr(task, part).y, f"task {i}: {part}")
        _check_parts_alike(task, i)
        found, wanted = (
            {k: v.shape for k, v in sorted(t.info.items())} for t in (task, like)
        )
        if found != wanted:
            raise ValueError(
                f"task {i} has in info entries of shapes {found}, task 0 has {wanted}. "
                "Give all tasks the same entries of the same shapes, or none."
            )


def _check_parts_alike(task: HostTask, number: int) -> None:
    """Raises a `ValueError` if a network would meet other inputs at test."""
    rows = [_rows_of(getattr(task, part).x, "x") for part in PARTS]
    if rows[0] != rows[1]:
        raise ValueError(
            f"task {number}: support x has rows of {rows[0]}, query x of {rows[1]}; "
            "expected one shape and kind (bytes, uint8, are mapped to 0..1, and floats are "
            "taken as they are). Give both alike."
        )


def _rows_of(tree: PyTree, field: str) -> str:
    def word(leaf: np.ndarray) -> str:
        # Whole numbers among floats are floats: [1, 2] beside [1.5]. Not so targets,
        # whose integers are classes.
        either = field == "x" and leaf.dtype in (np.int32, np.float32)
        return f"{'numbers' if either else leaf.dtype}{list(leaf.shape[1:])}"

    return str(jax.tree.map(word, tree))


def _check_labels(y: PyTree, where: str) -> None:
    for leaf in jax.tree.leaves(y):
        if leaf.dtype == np.int32 and leaf.min() < 0:
            raise ValueError(
                f"{where} has the label {leaf.min()}; integer targets are classes, counted "
                "from 0. Number them so, say labels='own' or 'shared', or give floats for "
                "numbers."
            )


def _flat(sets: Sequence[arrays.Rows]) -> dict[str, PyTree]:
    """The examples of all tasks one after the other, and where each task begins."""
    counts = np.asarray([rows.num for rows in sets], np.int32)

    def joined(*leaves: np.ndarray) -> np.ndarray:
        if len({leaf.dtype for leaf in leaves}) > 1:
            # NumPy would make float64 of int32 beside float32.
            leaves = tuple(leaf.astype(np.float32) for leaf in leaves)
        return np.concatenate(leaves)

    return {
        "x": jax.tree.map(joined, *(rows.x for rows in sets)),
        "y": jax.tree.map(joined, *(rows.y for rows in sets)),
        "starts": np.cumsum(counts, dtype=np.int32) - counts,
        "counts": counts,
    }


def _stacked_info(tasks: Sequence[HostTask]) -> dict[str, np.ndarray]:
    info = {}
    for name, like in tasks[0].info.items():
        if like.dtype.kind not in "biuf":
            raise ValueError(
                f"info[{name!r}] has dtype {like.dtype}; expected numbers, which a device "
                "can hold. Leave it out, or give a number in its place."
            )
        if name != "task":  # the number in this list takes its place
            info[name] = np.stack([task.info[name] for task in tasks])
    return info
