"""Episodes from sets too large for the device: read, decoded and prefetched by Grain.

Episode i depends only on the seed and on i. Reading can therefore begin at any episode, and
a resumed run needs nothing else. Any number of threads or processes yields the same
episodes.
"""

from __future__ import annotations

import dataclasses
import functools
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from metalearn.core.optional import require
from metalearn.core.pixels import check_finite, check_values
from metalearn.core.task import Examples, Task, TaskStream
from metalearn.data.inputs import (
    check_dtype,
    check_enough,
    range_of,
    unpack,
)
from metalearn.data.labels import count_classes

MANY = 2**40  # episodes; more than anyone draws
_LOOKED_AT = 16  # images that are checked before the first read


def stream(
    images: Sequence[np.ndarray],
    labels: Any = None,
    *,
    num_ways: int = 5,
    num_support: int = 1,
    num_query: int = 15,
    seed: int = 0,
    threads: int = 16,
    workers: int = 0,
    check_images: bool = True,
    name: str | None = None,
) -> TaskStream:
    """A stream of N-way K-shot tasks that reads images only when they are needed.

    The distribution is that of `few_shot` without rotations and ranges, drawn on the host:
    N classes without replacement in random order, K + Q different examples of each class,
    both sets shuffled.

    Args:
      images: Images with random access: `images[i]` is uint8 or float `[H, W, C]`. Several
        threads read them, for example from an array mapped from disk or from an object that
        decodes record i. If the object has a method `__getitems__(rows)`, this method reads
        all images of an episode. With `workers` the object is pickled to each worker,
        except that each worker opens a whole `np.memmap` again. An object may have the
        labels, as a part of `ml.data.load(...)` has.
      labels: Class of each image, `[I]` or `[I, 1]`: any integers, or text.
      num_ways: Number N of classes.
      num_support: Number K of support examples of each class.
      num_query: Number Q of query examples of each class.
      seed: Seed of the episodes.
      threads: Number of threads that read and decode. In this process a thread reads single
        episodes. In a worker a thread reads whole batches, and the worker holds as many
        batches as threads.
      workers: Number of processes that read and decode; 0 reads in this process.
      check_images: Whether images are refused whose values or layout are those of a usual
        mistake, see `few_shot`. Some images are looked at now, others when they are read.
      name: Name in logs and results.

    Returns:
      A `TaskStream` for `fit` and `evaluate`. The label or name of class c of
      `info["class_ids"]` is `tasks.batches.class_names[c]`.

    Raises:
      ImportError: grain is not installed; raised at the first read.
      TypeError: images have another dtype, or a whole data set was given.
      ValueError: there are too few classes or images for these ways and shots, images
        differ in shape or dtype, hold non-finite values or are refused by `check_images`;
        raised when they are read.

    Example:
      >>> images = ml.data.open_records("folder:cifar_fs", image_size=84)
      >>> tasks = ml.data.stream(images, images.labels, num_ways=5, num_support=1)
      >>> ml.fit(trainer, tasks, num_steps=1_000, tasks_per_step=16, key=key)
    """
    if getattr(images, "rotations", False):
        raise ValueError(
            "these images have rotations as further classes, which a stream does not make. "
            "Use few_shot, or give images.images and images.labels to do without."
        )
    images, labels, known = unpack(images, labels, "stream")
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise TypeError(
            f"images are a {type(images).__name__}; expected images with random access: "
            "len(images) and images[i]."
        )
    order, names, starts, counts = count_classes(len(images), labels)
    ways, shots = range_of(num_ways, "num_ways", 2), range_of(num_support, "num_support", 1)
    queries = range_of(num_query, "num_query", 1)
    for limits, option in (
        (ways, "num_ways"),
        (shots, "num_support"),
        (queries, "num_query"),
    ):
        if limits[0] != limits[1]:
            raise ValueError(f"{option} is {limits}; a stream takes one number.")
    for value, option in ((seed, "seed"), (workers, "workers"), (threads, "threads")):
        range_of(value, option, int(option == "threads"))
    check_enough(names, counts, 1, ways[0], shots[0] + queries[0])
    first = _first(images, check_images)
    # Pickling a mapped array would copy the whole file to every worker.
    if isinstance(images, np.memmap) and isinstance(images.base, mmap.mmap):
        images = _Mapped(images.filename, images.dtype, images.shape, images.offset)
    episodes = _Episodes(
        images=images,
        kind=(first.dtype, first.shape),
        checked=bool(check_images),
        order=order,
        starts=starts,
        counts=counts,
        ways=ways[0],
        shots=shots[0],
        queries=queries[0],
        seed=int(seed),
    )
    batches = _Batches(episodes, threads, workers, known or tuple(names.tolist()))
    label = name or f"{num_ways}way-{num_support}shot"
    return TaskStream(batches=batches, name=f"{label} seed {seed}")


def _first(images: Sequence[np.ndarray], checked: bool) -> np.ndarray:
    """The first image, after a look at some of all."""
    places = sorted({i * (len(images) - 1) // (_LOOKED_AT - 1) for i in range(_LOOKED_AT)})
    some = [np.asarray(images[i]) for i in places]
    for image in some:
        check_dtype(image)
    rows = _stacked(some, places, (some[0].dtype, some[0].shape))
    _check(rows, checked, places)
    return some[0]


def _check(
    images: np.ndarray, checked: bool, numbers: list[int], *, few: bool = False
) -> None:
    if checked:
        check_values(images, numbers, few=few)
    elif images.dtype != np.uint8:
        check_finite(images, numbers)


@dataclasses.dataclass(frozen=True)
class _Batches:
    """Function `(num_tasks, start, share=None) -> iterator` of a stream.

    Attributes:
      episodes: Function `number -> arrays of a task`.
      threads: Number of threads.
      workers: Number of processes.
      class_names: Label or name of each class.
    """

    episodes: _Episodes
    threads: int
    workers: int
    class_names: tuple

    def __call__(
        self, num_tasks: int, start: int, share: slice | None = None
    ) -> Iterator[Task]:
        return _read(self.episodes, num_tasks, start, self.threads, self.workers, share)


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """An array on disk, opened in the process that reads it."""

    filename: Any
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> np.ndarray:
        return _opened(self)[i]


@functools.lru_cache(maxsize=8)
def _opened(mapped: _Mapped) -> np.memmap:
    return np.memmap(mapped.filename, mapped.dtype, "r", mapped.offset, mapped.shape)


@dataclasses.dataclass(frozen=True)
class _Episodes:
    """Function `number -> arrays of a task`, for any order of numbers and any thread."""

    images: Sequence[np.ndarray]
    kind: tuple[np.dtype, tuple[int, ...]]
    checked: bool
    order: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    ways: int
    shots: int
    queries: int
    seed: int

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        # Of the number of the episode, so that no generator has to be carried or stored.
        rng = np.random.default_rng((self.seed, int(number)))
        per_class = self.shots + self.queries
        classes = rng.permutation(len(self.counts))[: self.ways]
        rows = np.stack(
            [
                self.starts[c] + rng.choice(self.counts[c], per_class, replace=False)
                for c in classes
            ]
        )
        places = self.order[rows.reshape(-1)].tolist()
        images = _stacked(_images(self.images, places), places, self.kind)
        if images.dtype != np.uint8:
            _check(images, self.checked, places, few=True)
        images = images.reshape(*rows.shape, *images.shape[1:])
        arrays = {"class_ids": classes.astype(np.int32)}
        for part, chosen in (
            ("support", slice(0, self.shots)),
            ("query", slice(self.shots, None)),
        ):
            x = images[:, chosen].reshape(-1, *images.shape[2:])
            y = np.repeat(np.arange(self.ways, dtype=np.int32), len(x) // self.ways)
            shuffled = rng.permutation(len(x))
            arrays[f"{part}_x"], arrays[f"{part}_y"] = _scaled(x[shuffled]), y[shuffled]
        return arrays


def _images(images: Sequence[np.ndarray], rows: list[int]) -> list[np.ndarray]:
    """Several images, in one read if the source has `__getitems__`."""
    read = getattr(images, "__getitems__", None)
    return [np.asarray(x) for x in (read(rows) if read else map(images.__getitem__, rows))]


def _stacked(
    images: list[np.ndarray], rows: list[int], kind: tuple[np.dtype, tuple[int, ...]]
) -> np.ndarray:
    """The images in one array; to stack bytes and floats would leave bytes unscaled."""
    for row, image in zip(rows, images, strict=True):
        if (image.dtype, image.shape) != kind:
            raise ValueError(
                f"image {row} is {image.dtype} {image.shape}, image 0 is {kind[0]} "
                f"{kind[1]}; expected one dtype and one shape. Convert or resize it."
            )
    return np.stack(images)


def _scaled(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1)


def _read(
    episodes: _Episodes,
    num_tasks: int,
    start: int,
    threads: int,
    workers: int,
    share: slice | None,
) -> Iterator[Task]:
    """Batches of tasks from batch `start` on, each cut to the rows of `share`."""
    grain = require("grain", "to read a stream")
    flags = require("absl.flags", "to read a stream")
    kept = range(num_tasks)[share or slice(None)]

    def number(place: int) -> int:
        batch, row = divmod(place, len(kept))
        return (start + batch) * num_tasks + kept[row]

    dataset = grain.MapDataset.range(MANY).map(lambda place: episodes(number(place)))
    if workers:
        if not flags.FLAGS.is_parsed():  # the workers of Grain read flags
            flags.FLAGS.mark_as_parsed()
        # Batches are made before the workers split the work; otherwise each worker would
        # fill its batches with every other episode.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        rows = dataset.batch(len(kept)).to_iter_dataset(options)
        rows = rows.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    else:
        buffer = max(threads, 2 * len(kept))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        rows = dataset.to_iter_dataset(options).batch(len(kept))
    for arrays in rows:
        yield _as_task(arrays)


def _as_task(arrays: dict[str, np.ndarray]) -> Task:
    def part(name: str) -> Examples:
        y = arrays[f"{name}_y"]
        return Examples(x=arrays[f"{name}_x"], y=y, mask=np.ones(y.shape, bool))

    return Task(
        support=part("support"),
        query=part("query"),
        info={"class_ids": arrays["class_ids"]},
    )
