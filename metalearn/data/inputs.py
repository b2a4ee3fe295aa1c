"""Checks of the images and options that users hand to `few_shot` and `stream`.

The usual mistakes are named before the first task is drawn; those of values and layout by
`metalearn.core.pixels`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.data.labels import as_array

Range = int | tuple[int, int]


def unpack(images: Any, labels: Any, caller: str) -> tuple[Any, Any, tuple[str, ...]]:
    """Images, labels and names of classes of what was given as images.

    Args:
      images: Arrays, or an object with `images` and `labels`, or one with `labels`.
      labels: Labels, or None if `images` has them.
      caller: Name of the function for messages.

    Returns:
      The images, the labels, and the names of the classes, empty if there are none.

    Raises:
      TypeError: `images` is a whole data set, a path or no images at all, or labels are
        missing or given twice.
    """
    if images is None:
        raise TypeError(
            "images is None: that part was not loaded, or the data set has none of it. "
            "Load it with ml.data.load(..., parts=('train', 'validation', 'test'))."
        )
    if isinstance(images, (str, bytes, Path)):
        raise TypeError(
            f"{images!r} was given as images; expected arrays or a part of a data set. "
            f"Load it first: {caller}(ml.data.load({str(images)!r}).train, ...)."
        )
    if hasattr(images, "sample") and hasattr(images, "data"):
        raise TypeError(
            f"tasks ({type(images).__name__}) were given as images; expected arrays or a "
            "part of a data set. Tasks go to fit and evaluate as they are."
        )
    parts = hasattr(images, "train") and hasattr(images, "test")
    if isinstance(images, Mapping) or parts or callable(getattr(images, "part", None)):
        raise TypeError(
            f"a whole data set ({type(images).__name__}) was given as images; expected one "
            f"of its parts. Write {caller}(dataset.train, ...), or .validation or .test."
        )
    if hasattr(images, "images") and not hasattr(images, "labels"):
        raise TypeError(
            f"{type(images).__name__} has images but no labels; expected both. Write "
            f"{caller}(dataset.images, labels, ...)."
        )
    names = ()
    if hasattr(images, "labels"):
        stored, names = images.labels, tuple(getattr(images, "class_names", ()))
        images = getattr(images, "images", images)
        # `stream(images, images.labels)` says the same twice.
        if labels is not None and not np.array_equal(np.asarray(labels), stored):
            raise TypeError(
                f"labels were given with images that have labels of their own; expected "
                f"one of the two. Write {caller}(dataset.images, labels, ...)."
            )
        labels = stored if labels is None else labels
    if labels is None:
        raise TypeError(
            f"labels is None; expected the class of each image. Write {caller}(images, "
            "labels, ...), or give a part of a data set, which has labels."
        )
    return images, labels, names


def check_enough(
    names: Sequence[Any] | np.ndarray,
    counts: np.ndarray,
    turns: int,
    ways: int,
    per_class: int,
    things: str = "images",
) -> None:
    """Raises a `ValueError` if there are too few classes, or too few images of a class."""
    if len(counts) * turns < ways:
        raise ValueError(
            f"{ways}-way tasks need {ways} classes, the set has {len(counts) * turns}. "
            "Ask for fewer ways or bring more classes."
        )
    if counts.min() < per_class:
        raise ValueError(
            f"class {names[counts.argmin()]} has {int(counts.min())} {things}, but "
            f"support and query take {per_class} different ones of a class. Ask for fewer "
            "shots or queries, or leave that class out."
        )


def range_of(value: Range, name: str, least: int) -> tuple[int, int]:
    """The smallest and the largest value of an option that may be a range."""
    limits = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    low, high = limits if len(limits) == 2 else (None, None)
    integers = all(
        isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in (low, high)
    )
    if not integers or not least <= low <= high:
        raise ValueError(
            f"{name} is {value!r}; expected an integer of {least} or more, or a range "
            "(low, high) of such."
        )
    return int(low), int(high)


def as_images(images: Any) -> np.ndarray:
    """Images as an array.

    Raises:
      TypeError: images have no shape in common or a dtype other than uint8 and floats.
    """
    found = as_array(images)
    if found.ndim == 0:
        raise TypeError(
            f"images are a {type(images).__name__}; expected an array [I, ...] or a part "
            "of a data set. Collect the images in one array first."
        )
    if found.dtype.name == "bfloat16":
        found = found.astype(np.float32)
    check_dtype(found)
    return found


def check_dtype(images: np.ndarray) -> None:
    """Raises a `TypeError` for a dtype other than uint8 and floats."""
    dtype = images.dtype
    if dtype == np.uint8 or np.issubdtype(dtype, np.floating):
        return
    remedy = "Convert them to such an array."
    if dtype.kind == "b":
        remedy = "Use images.astype(np.float32) for 0 and 1."
    elif dtype.kind in "iu" and images.size:
        low, high = int(images.min()), int(images.max())
        remedy = f"They run from {low} to {high}: " + (
            "use images.astype(np.uint8)."
            if low >= 0 and 16 < high <= 255
            else "scale them to floats of 0..1."
        )
    elif dtype.kind == "O":
        remedy = "Images of different sizes make no array: resize them to one."
    elif "float" in dtype.name:  # bfloat16 and smaller ones
        remedy = "Use images.astype(np.float32)."
    raise TypeError(
        f"images have dtype {dtype}; expected uint8 (0..255) or float. {remedy}"
    )
