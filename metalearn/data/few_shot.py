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

from metalearn.core import given
from metalearn.core.pixels import check_finite, check_values
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree
from metalearn.data.inputs import (
    Range,
    as_images,
    check_enough,
    range_of,
    unpack,
)
from metalearn.data.labels import count_classes


def few_shot(
    images: Any,
    labels: Any = None,
    *,
    num_ways: Range = 5,
    num_support: Range = 1,
    num_query: int = 15,
    rotations: bool | None = None,
    unequal_shots: bool = False,
    check_images: bool = True,
    name: str | None = None,
) -> TaskSampler:
    """A distribution of classification tasks over the classes of a labelled set.

    A task draws N classes without replacement. Their random order gives the labels
    `0..N-1`. The task then draws K + Q different examples of each class: the first K are
    support, the others query. Both sets are shuffled. With ranges, N and K are drawn for
    each task, and the arrays are padded to the largest N and K.

    Args:
      images: Images `[I, ...]`, uint8 (mapped to 0..1) or finite float (taken as they are);
        or an object with `images`, `labels` and `rotations`, such as a part of
        `ml.data.load(...)`. The networks of this library want `[I, H, W, C]`.
      labels: Class of each image, `[I]` or `[I, 1]`: any integers, or text.
      num_ways: Number N of classes, or an inclusive range of N.
      num_support: Number K of support examples of each class, or an inclusive range of K.
      num_query: Number Q of query examples of each class.
      rotations: Whether the rotations of a class by multiples of 90 degrees are further
        classes (images `[I, S, S, C]` only). Default: the value of `images.rotations` if
        there is one, else False.
      unequal_shots: Whether K is drawn for each class of a task instead of once for the
        task. A class may then have fewer than K + Q images: it gives one query at least,
        and rows that it cannot fill have the mask False.
      check_images: Whether images are refused whose values or layout are those of a usual
        mistake: floats far from 0..1 that are not standardised (0..255, 0..16), bytes of
        0..1, channels first.
      name: Name in logs and results.

    Returns:
      A `TaskSampler`. Tasks have `x`, float32 `[N * K, ...]`, and `y`, int32. Their `info`
      holds `class_ids` `[N]` and `num_ways`. Rotation r of class c has the id
      `c + r * classes`. The label or name of class c is `tasks.sample.class_names[c]`;
      classes are in the order of their labels.

    Raises:
      TypeError: images or labels have an unusable dtype, or a whole data set was given.
      ValueError: there are too few classes or images for these ways and shots, images are
        not finite or not square, `check_images` refuses them, labels are one-hot or
        missing, or shapes do not fit together.

    Example:
      >>> tasks = ml.data.few_shot(dataset.train, num_ways=5, num_support=1)
      >>> task = tasks(jax.random.key(0))
    """
    if rotations is None:
        rotations = getattr(images, "rotations", False)
    flags = {"unequal_shots": unequal_shots, "check_images": check_images}
    for flag, value in (flags | {"rotations": rotations}).items():
        given.flag(flag, value)
    images, labels, known = unpack(images, labels, "few_shot")
    images, names, starts, counts = _by_class(images, labels, check_images)
    ways = range_of(num_ways, "num_ways", 2)
    shots = range_of(num_support, "num_support", 1)
    whole = isinstance(num_query, (int, np.integer)) and not isinstance(num_query, bool)
    if not whole or num_query < 1:
        raise ValueError(f"num_query is {num_query!r}; expected an integer of 1 or more.")
    turns = 4 if rotations else 1
    # Unequal classes give what they have, but at least the fewest shots and one query.
    needed = shots[0] + 1 if unequal_shots else shots[1] + num_query
    told = known if len(known) == len(counts) else names
    things = "images" if images.ndim == 4 else "examples"
    check_enough(told, counts, turns, ways[1], needed, things)
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
    most = int(counts.max())
    sample = _Episode(
        ways=ways,
        shots=shots,
        num_query=int(num_query),
        turns=turns,
        largest=max(most, shots[1] + int(num_query)) if unequal_shots else most,
        unequal=bool(unequal_shots),
        class_names=known or tuple(names.tolist()),
    )
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
      largest: Number of images of the largest class, or of a task if that is more.
      unequal: Whether K is drawn for each class.
      class_names: Label or name of each class. Samplers of other names share programs.
    """

    ways: tuple[int, int]
    shots: tuple[int, int]
    num_query: int
    turns: int
    largest: int
    unequal: bool = False
    class_names: tuple = dataclasses.field(default=(), compare=False, repr=False)

    def __call__(self, data: PyTree, key: Key) -> Task:
        num_classes, most = data["counts"].shape[0], self.ways[1]
        per_class, cut = self.shots[1] + self.num_query, self.shots[1]
        k_class, k_image, k_size, k_support, k_query = jax.random.split(key, 5)
        ids = _distinct(k_class, num_classes * self.turns, most)
        classes, turn = ids % num_classes, ids // num_classes
        size = data["counts"][classes]
        rows = jax.vmap(lambda k, n: _distinct(k, self.largest, per_class, n))(
            jax.random.split(k_image, most), size
        )
        if self.unequal:  # a small class fills the rows that will be masked
            rows = jnp.minimum(rows, size[:, None] - 1)
        # Images are sorted by class, so a row is the start of the class and an offset.
        x = data["images"][data["starts"][classes][:, None] + rows]
        if self.turns > 1:
            x = jax.vmap(_rotate)(x, turn)
        # After the gather: the set stays in bytes, and only the images of a task are
        # floats.
        x = x.astype(jnp.float32) / (255 if x.dtype == jnp.uint8 else 1)
        k_ways, k_shots = jax.random.split(k_size)
        num_way = _draw(k_ways, self.ways)
        way, shot = jnp.arange(most), jnp.arange(cut)
        y = jnp.broadcast_to(way[:, None], (most, per_class))
        used = jnp.broadcast_to((way < num_way)[:, None], y.shape)

        def part(order_key: Key, x: Array, y: Array, mask: Array) -> Examples:
            order = jax.random.permutation(order_key, y.size)
            x = x.reshape((y.size, *x.shape[2:]))
            return Examples(
                x=x[order], y=y.reshape(-1)[order], mask=mask.reshape(-1)[order]
            )

        query_x, query_mask = x[:, cut:], used[:, cut:]
        if self.unequal:
            # One image of each class is left for the queries.
            num_shot = jnp.minimum(_draw(k_shots, self.shots, (most,)), size - 1)[:, None]
            asked = num_shot + jnp.arange(self.num_query)[None]
            query_x = jax.vmap(lambda images, rows: images[rows])(x, asked)
            query_mask &= asked < size[:, None]
        else:
            num_shot = _draw(k_shots, self.shots)[None, None]
        support_mask = used[:, :cut] & (shot[None] < num_shot)
        return Task(
            support=part(k_support, x[:, :cut], y[:, :cut], support_mask),
            query=part(k_query, query_x, y[:, cut:], query_mask),
            info={"class_ids": ids, "num_ways": num_way},
        )


def _by_class(images: Any, labels: Any, checked: bool) -> tuple[np.ndarray, ...]:
    """Images sorted by class, then label, first row and size of each class."""
    images = as_images(images)
    order, *found = count_classes(len(images), labels)
    if checked:
        check_values(images)
    elif images.dtype != np.uint8:
        check_finite(images)
    if images.dtype == np.float64:
        # Tasks are float32 anyway, and doubles would take twice the memory of the device.
        images = images.astype(np.float32)
    return images[order], *found


def _label(limits: tuple[int, int]) -> str:
    return str(limits[0]) if limits[0] == limits[1] else f"{limits[0]}to{limits[1]}"


def _draw(key: Key, limits: tuple[int, int], shape: tuple[int, ...] = ()) -> Array:
    if limits[0] == limits[1]:
        return jnp.full(shape, limits[0], jnp.int32)
    return jax.random.randint(key, shape, limits[0], limits[1] + 1)


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
