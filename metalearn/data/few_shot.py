"""N-way K-shot tasks drawn on the device from images that live there.

Sampling is a gather inside the compiled step, so there is no input pipeline to wait for.
The same key gives the same task whatever the number of devices.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree

Range = int | tuple[int, int]


def few_shot(
    images: Any,
    labels: Any = None,
    *,
    num_ways: Range = 5,
    num_support: Range = 1,
    num_query: int = 15,
    rotations: bool | None = None,
    name: str | None = None,
) -> TaskSampler:
    """A distribution of classification tasks over the classes of a labelled set.

    A task draws N classes without replacement. Their random order gives the labels
    `0..N-1`. The task then draws K + Q different examples of each class: the first K are
    support, the others query. Both sets are shuffled. With ranges, N and K are drawn for
    each task, and the arrays are padded to the largest N and K.

    Args:
      images: Images `[I, ...]`, uint8 (mapped to 0..1) or finite float; or an object with
        `images`, `labels` and `rotations`, such as a part of `ml.data.load(...)`.
      labels: Class of each image, int `[I]`; any integers.
      num_ways: Number N of classes, or an inclusive range of N.
      num_support: Number K of support examples of each class, or an inclusive range of K.
      num_query: Number Q of query examples of each class.
      rotations: Whether the rotations of a class by multiples of 90 degrees are further
        classes (images `[I, S, S, C]` only). Default: the value of `images.rotations` if
        there is one, else False.
      name: Name in logs and results.

    Returns:
      A `TaskSampler`. Tasks have `x`, float32 `[N * K, ...]`, and `y`, int32. Their `info`
      holds `class_ids` `[N]` and `num_ways`. Rotation r of class c has the id
      `c + r * classes`.

    Raises:
      TypeError: images or labels have an unusable dtype.
      ValueError: there are too few classes or images for these ways and shots, images are
        not finite or not square, or shapes do not fit together.

    Example:
      >>> tasks = ml.data.few_shot(dataset.train, num_ways=5, num_support=1)
      >>> task = tasks(jax.random.key(0))
    """
    if images is None:
        raise TypeError(
            "images is None: that part was not loaded, or the data set has none of it. "
            "Load it with ml.data.load(..., parts=('train', 'validation', 'test'))."
        )
    if hasattr(images, "images"):
        rotations = images.rotations if rotations is None else rotations
        images, labels = images.images, images.labels
    rotations = bool(rotations)
    images, names, starts, counts = _by_class(images, labels)
    ways = range_of(num_ways, "num_ways", 2)
    shots = range_of(num_support, "num_support", 1)
    if not isinstance(num_query, (int, np.integer)) or num_query < 1:
        raise ValueError(f"num_query is {num_query}; expected an integer of 1 or more.")
    turns = 4 if rotations else 1
    check_enough(names, counts, turns, ways[1], shots[1] + num_query)
    if rotations and (images.ndim != 4 or images.shape[1] != images.shape[2]):
        raise ValueError(
            f"rotations needs square images [I, S, S, C]; got {images.shape}. Pass "
            "rotations=False."
        )
    data = {
        "images": jnp.asarray(images),
        "starts": jnp.asarray(starts, jnp.int32),
        "counts": jnp.asarray(counts, jnp.int32),
    }
    # Without arrays, so that samplers of equal settings compare equal and share programs.
    sample = _Episode(ways, shots, int(num_query), turns, int(counts.max()))
    label = name or f"{_label(ways)}way-{_label(shots)}shot"
    return TaskSampler(sample, data, label)


@dataclasses.dataclass(frozen=True)
class _Episode:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations.

    Attributes:
      ways: Range of the number N of classes.
      shots: Range of the number K of support examples.
      num_query: Number Q of query examples.
      turns: Number of rotations of a class: 4 if rotations are further classes, else 1.
      largest: Number of images of the largest class.
    """

    ways: tuple[int, int]
    shots: tuple[int, int]
    num_query: int
    turns: int
    largest: int

    def __call__(self, data: PyTree, key: Key) -> Task:
        num_classes, most = data["counts"].shape[0], self.ways[1]
        per_class, cut = self.shots[1] + self.num_query, self.shots[1]
        k_class, k_image, k_size, k_support, k_query = jax.random.split(key, 5)
        ids = _distinct(k_class, num_classes * self.turns, most)
        classes, turn = ids % num_classes, ids // num_classes
        rows = jax.vmap(lambda k, n: _distinct(k, self.largest, per_class, n))(
            jax.random.split(k_image, most), data["counts"][classes]
        )
        # Images are sorted by class, so a row is the start of the class and an offset.
        x = data["images"][data["starts"][classes][:, None] + rows]
        if self.turns > 1:
            x = jax.vmap(_rotate)(x, turn)
        # After the gather: the set stays in bytes, and only the images of a task are
        # floats.
        x = x.astype(jnp.float32) / (255 if x.dtype == jnp.uint8 else 1)
        k_ways, k_shots = jax.random.split(k_size)
        num_way, num_shot = _draw(k_ways, self.ways), _draw(k_shots, self.shots)
        way, shot = jnp.arange(most), jnp.arange(cut)
        y = jnp.broadcast_to(way[:, None], (most, per_class))
        used = jnp.broadcast_to((way < num_way)[:, None], y.shape)

        def part(order_key: Key, x: Array, y: Array, mask: Array) -> Examples:
            order = jax.random.permutation(order_key, y.size)
            x = x.reshape((y.size, *x.shape[2:]))
            return Examples(
                x=x[order], y=y.reshape(-1)[order], mask=mask.reshape(-1)[order]
            )

        support_mask = used[:, :cut] & (shot < num_shot)[None]
        return Task(
            support=part(k_support, x[:, :cut], y[:, :cut], support_mask),
            query=part(k_query, x[:, cut:], y[:, cut:], used[:, cut:]),
            info={"class_ids": ids, "num_ways": num_way},
        )


def _by_class(images: Any, labels: Any) -> tuple[np.ndarray, ...]:
    """Images sorted by class, then label, first row and size of each class."""
    images = np.asarray(images)
    if not (images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)):
        raise TypeError(
            f"images have dtype {images.dtype}; expected uint8 (0..255) or float."
        )
    if images.dtype == np.float64:
        # Tasks are float32 anyway, and doubles would take twice the memory of the device.
        images = images.astype(np.float32)
    order, *found = count_classes(len(images) if images.ndim else 0, labels)
    if np.issubdtype(images.dtype, np.floating):
        bad = ~np.isfinite(images.reshape(len(images), -1)).all(1)
        if bad.any():
            raise ValueError(
                f"{int(bad.sum())} of {len(images)} images hold non-finite values, the "
                f"first is number {int(bad.argmax())}; expected finite pixels."
            )
    return images[order], *found


def count_classes(num_images: int, labels: Any) -> tuple[np.ndarray, ...]:
    """The order that sorts images by class, then label, first row and size of each class.

    Raises:
      TypeError: labels are not integers.
      ValueError: the number of labels differs from the number of images, or is 0.
    """
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels have dtype {labels.dtype}; expected integers [I].")
    if labels.shape != (num_images,) or not num_images:
        raise ValueError(
            f"there are {num_images} images and labels of shape {labels.shape}; expected "
            "[I, ...] and [I] with the same I >= 1."
        )
    # Stable, so that equal sets give equal tasks on every machine.
    order = np.argsort(labels, kind="stable")
    found = np.unique(labels[order], return_index=True, return_counts=True)
    return order, *found


def check_enough(
    names: np.ndarray, counts: np.ndarray, turns: int, ways: int, per_class: int
) -> None:
    """Raises a `ValueError` if there are too few classes, or too few images of a class."""
    if len(counts) * turns < ways:
        raise ValueError(
            f"{ways}-way tasks need {ways} classes, the set has {len(counts) * turns}. "
            "Ask for fewer ways or bring more classes."
        )
    if counts.min() < per_class:
        raise ValueError(
            f"class {names[counts.argmin()]} has {int(counts.min())} images, but support "
            f"and query take {per_class} different ones of a class. Ask for fewer shots "
            "or queries, or leave that class out."
        )


def range_of(value: Range, name: str, least: int) -> tuple[int, int]:
    """The smallest and the largest value of an option that may be a range."""
    limits = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    low, high = limits if len(limits) == 2 else (None, None)
    integers = all(isinstance(v, (int, np.integer)) for v in (low, high))
    if not integers or not least <= low <= high:
        raise ValueError(
            f"{name} is {value!r}; expected an integer of {least} or more, or a range "
            "(low, high) of such."
        )
    return int(low), int(high)


def _label(limits: tuple[int, int]) -> str:
    return str(limits[0]) if limits[0] == limits[1] else f"{limits[0]}to{limits[1]}"


def _draw(key: Key, limits: tuple[int, int]) -> Array:
    if limits[0] == limits[1]:
        return jnp.asarray(limits[0], jnp.int32)
    return jax.random.randint(key, (), limits[0], limits[1] + 1)


def _distinct(key: Key, population: int, num: int, limit: Array | None = None) -> Array:
    """`num` different integers of `0..limit-1` in random order, int32 `[num]`.

    Every integer gets a random 24-bit score, and the largest scores win. The draw is
    uniform up to ties, which are broken by index. Ties touch fewer than one draw in a
    thousand for a million items. The scores are floats, because the compiler has a fast
    path for the largest floats and none for the largest integers.
    """
    scores = (jax.random.bits(key, (population,), jnp.uint32) >> 8).astype(jnp.float32)
    if limit is not None:
        # All scores are 0 or more. A score of -1 is chosen last, and `check_enough` made
        # sure that no class has fewer than `num` images.
        scores = jnp.where(jnp.arange(population) < limit, scores, -1)
    return jax.lax.top_k(scores, num)[1]


def _rotate(images: Array, turn: Array) -> Array:
    """Images `[..., S, S, C]` turned by `turn` times 90 degrees."""
    axes = (images.ndim - 3, images.ndim - 2)
    turned = [jnp.rot90(images, k, axes) for k in range(4)]
    # All four turns are made and one is kept, as a switch under `vmap` would do.
    return jax.lax.select_n(turn, *turned)
