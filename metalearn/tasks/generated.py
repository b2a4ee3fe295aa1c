"""Tasks that a Python function or an iterable of the user makes on the host."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from metalearn.core import checks
from metalearn.core.task import Examples, Task, TaskSampler, TaskStream
from metalearn.tasks import arrays
from metalearn.tasks.arrays import PARTS, HostTask, Rows
from metalearn.tasks.own import check_alike, from_tasks


def from_generator(
    source: Callable[..., Any] | Iterable[Any],
    *,
    num_tasks: int | None = None,
    seed: int = 0,
    num_support: int | None = None,
    num_query: int | None = None,
    labels: str | Sequence[str] | None = None,
    check_images: bool = True,
    name: str | None = None,
) -> TaskSampler | TaskStream:
    """Tasks that Python makes on the host: a simulator, a reader of files.

    A function of a random generator is called for every task while training goes on, and
    the tasks form a `TaskStream`. With `num_tasks` so many tasks are made now, kept on the
    device and drawn from, as by `from_tasks`. The tasks of an iterable, or of a function
    without arguments that returns one, are always made now.

    Args:
      source: Function `(rng: np.random.Generator) -> task`, an iterable over tasks, or a
        function `() -> iterable`. A task is an `ml.Task` or a tuple `(support_x,
        support_y, query_x, query_y)`. Task i of a function has a generator of its own,
        seeded by `seed` and i, so a resumed run sees the same tasks.
      num_tasks: Number of tasks that are made now. An iterable without a length needs it.
      seed: Seed of the tasks of a function.
      num_support: Rows to which the support sets of a stream are padded; default: those of
        the first task. Tasks that are made now need none.
      num_query: Rows to which the query sets of a stream are padded, likewise.
      labels: How labels become class indices, as in `from_tasks`; text in a stream needs
        "own" or the names of all classes.
      check_images: Whether unscaled images are refused, as in `from_tasks`; of a stream
        those of the first task are looked at.
      name: Name in logs and results; default: the name of the function.

    Returns:
      A `TaskStream` for a function of a random generator without `num_tasks`, otherwise a
      `TaskSampler`.

    Raises:
      TypeError: `source` is something else, or gives something else than tasks.
      ValueError: the iterable ends too early, or its tasks do not fit together.

    Example:
      >>> def line(rng):
      ...     x = rng.uniform(-1, 1, (20, 1))
      ...     y = rng.normal() * x + rng.normal()
      ...     return x[:5], y[:5], x[5:], y[5:]
      >>> stream = ml.tasks.from_generator(line)
      >>> next(stream.batches(8, 0)).support.x.shape
      (8, 5, 1)
    """
    if num_tasks is not None:
        checks.whole_number("num_tasks", num_tasks, least=1)
    checks.whole_number("seed", seed, least=0, most=2**64 - 1)
    name = name or getattr(source, "__name__", "generated tasks")
    if _takes_rng(source):
        if num_tasks is None:
            padded = (num_support, num_query)
            return _stream(
                _Episodes(source, seed, labels, padded).prepared(check_images), name
            )
        made: Iterable[Any] = map(_call_with_rng(source, seed), range(num_tasks))
    else:
        made = source() if callable(source) else source
        if not isinstance(made, Iterable) or isinstance(made, (Task, str, dict)):
            raise TypeError(
                f"source gives a {type(made).__name__}; expected tasks one after the "
                "other, or a function (rng: np.random.Generator) -> task."
            )
        if num_tasks is None and not hasattr(made, "__len__"):
            raise ValueError(
                "the tasks of an iterable are made now, and this one may never end. Give "
                "num_tasks=1_000, or a function (rng) -> task for a stream without end."
            )
    if num_support is not None or num_query is not None:
        raise ValueError(
            "num_support and num_query are of streams; tasks that are made now are padded "
            "to the largest. Leave them out."
        )
    found = list(itertools.islice(made, num_tasks))
    if num_tasks is not None and len(found) < num_tasks:
        raise ValueError(
            f"source ended after {len(found)} tasks; expected num_tasks={num_tasks}. Ask "
            "for fewer, or let it go on."
        )
    return from_tasks(found, labels=labels, check_images=check_images, name=name)


def _takes_rng(source: Any) -> bool:
    """Whether the source is a function with one argument that must be given."""
    if not callable(source):
        return False
    try:
        parameters = inspect.signature(source).parameters.values()
    except (TypeError, ValueError):  # some functions in C have no signature
        return True
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind in kinds]
    if len(needed) > 1:
        raise TypeError(
            f"source takes {', '.join(p.name for p in needed)}; expected a function (rng: "
            "np.random.Generator) -> task, or one without arguments. Use functools.partial "
            "for the others."
        )
    return bool(needed)


def _call_with_rng(source: Callable[..., Any], seed: int) -> Callable[[int], Any]:
    # A generator for each task: no state to carry, and any task can be the first.
    return lambda number: source(np.random.default_rng((seed, number)))


def _stream(episodes: _Episodes, name: str) -> TaskStream:
    def batches(num_tasks: int, start: int, share: slice | None = None) -> Iterator[Task]:
        while True:
            numbers = range(start * num_tasks, (start + 1) * num_tasks)
            rows = [episodes(number) for number in numbers[share or slice(None)]]
            yield jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
            start += 1

    return TaskStream(batches=batches, name=f"{name} seed {episodes.seed}")


@dataclasses.dataclass(frozen=True)
class _Episodes:
    """Function `number -> Task` of NumPy arrays, all of one shape.

    Attributes:
      source: Function of a random generator.
      seed: Seed of all tasks.
      labels: How labels become class indices, see `from_tasks`.
      sizes: Rows of the support and query sets; `None` for those of the first task.
      first: Task 0, which the others have to fit.
    """

    source: Callable[[np.random.Generator], Any]
    seed: int
    labels: Any
    sizes: tuple[int | None, int | None]
    first: HostTask | None = None

    def prepared(self, check_images: bool) -> _Episodes:
        """The same with the sizes of the first task where none are given."""
        first = self._made(0)
        for part in PARTS if check_images else ():
            arrays.check_images(getattr(first, part).x, f"{part} x of task 0", few=True)
        rows = [getattr(first, part).num for part in PARTS]
        for option, size in zip(("num_support", "num_query"), self.sizes, strict=True):
            checks.whole_number(option, 1 if size is None else size, least=1)
        sizes = tuple(r if s is None else s for r, s in zip(rows, self.sizes, strict=True))
        done = dataclasses.replace(self, first=first, sizes=sizes)
        done(0)
        return done

    def __call__(self, number: int) -> Task:
        task = self._made(number)
        check_alike([task], self.first, start=number)
        sets = {
            part: _padded(
                getattr(task, part), getattr(self.first, part), size, part, number
            )
            for part, size in zip(PARTS, self.sizes, strict=True)
        }
        return Task(**sets, info={**task.info, "task": np.int32(number)})

    def _made(self, number: int) -> HostTask:
        where = f"task {number}"
        task = arrays.host_task(_call_with_rng(self.source, self.seed)(number), where)
        if self.labels is None and not arrays.is_text((task.support.y, task.query.y)):
            return task
        if self.labels in (None, "shared"):
            raise ValueError(
                f"{where} has labels of text, and the classes of later tasks of a stream "
                "are not known. Say labels='own', or give the names of all classes."
            )
        how = arrays.labels_of([task], self.labels)
        return arrays.coded(task, how, where)[0]


def _padded(rows: Rows, like: Rows, size: int, part: str, number: int) -> Examples:
    if rows.num > size:
        raise ValueError(
            f"task {number} has {rows.num} rows of {part}, and the stream is padded to "
            f"{size}. Give num_{part}={rows.num} or more."
        )

    def pad(leaf: np.ndarray, like: np.ndarray) -> np.ndarray:
        if leaf.dtype == np.float32 and like.dtype == np.int32:
            raise ValueError(
                f"task {number} has floats in its {part} x where task 0 has integers. Give "
                "floats in all tasks, as by x.astype(np.float32)."
            )
        # Bytes become floats of 0..1, and whole numbers floats where task 0 has floats.
        leaf = leaf / np.float32(255) if leaf.dtype == np.uint8 else leaf.astype(like.dtype)
        return np.pad(leaf, [(0, size - rows.num)] + [(0, 0)] * (leaf.ndim - 1))

    x, y = jax.tree.map(pad, (rows.x, rows.y), (like.x, like.y))
    return Examples(x=x, y=y, mask=np.arange(size) < rows.num)
