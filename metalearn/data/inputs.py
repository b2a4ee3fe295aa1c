"""Checks of the images and options that users hand to `few_shot` and `stream`.

Networks expect values of about 0..1, or standardised ones. Floats of 0..255 are no error to
any later code: training merely goes badly. So the usual mistakes are named before the first
task is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.data.labels import as_array

Range = int | tuple[int, int]

_CHUNK = 2**22  # values that are looked at together, to bound the memory of a check
# Floats of 0..1 and standardised ones are far below. Standardised images with a few bright
# pixels have large values, but their mean square is 1.
_LARGEST, _LARGEST_RMS = 10.0, 5.0
# Arrays of few pixels may be maps of features, and one image may be brighter than others.
_LARGEST_OF_FEW = 64.0
_FLATTENED = 49  # values of the smallest flattened image: 7x7
_PIXELS = 8  # side from which an array is an image rather than a map of features
_REMEDY = (
    "If the values are meant so, standardise them, or give check_images=False to take them "
    "as they are."
)


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


def check_values(
    images: np.ndarray, numbers: Sequence[int] | None = None, *, few: bool = False
) -> None:
    """Refuses images whose values or layout are those of a usual mistake.

    Args:
      images: uint8 or float `[I, ...]`. Arrays `[I, H, W]` with sides of 8 or more and
        `[I, H, W, C]` with up to four channels are images. Others are features, which may
        have any range; only flattened images of whole 0..255 or 0..16 are refused.
      numbers: Number of each image for messages; its row if None.
      few: Whether these are the few images of one task, whose range says less than that of
        a set. Only images that are surely unscaled are refused then.

    Raises:
      ValueError: images are not finite, are floats far from 0..1, bytes of 0..1, or have
        their channels first.
    """
    _check_layout(images)
    if images.dtype == np.uint8:
        if images.size and images.max() == 1:
            raise ValueError(
                "images are bytes (uint8) that run from 0 to 1; expected 0..255, which "
                "becomes 0..1. Use images * 255, or images.astype(np.float32)."
            )
        return
    check_finite(images, numbers)
    low, high, row = _span(images)
    told = f"images are floats ({images.dtype}) that run from {low:g} to {high:g}"
    sides = _sides(images.shape)
    if few and (sides is None or max(-low, high) <= _LARGEST_OF_FEW):
        return
    if sides is None:
        top = 16 if high == 16 else 255 if 127 < high <= 255 else None
        if low >= 0 and top and _flattened(images[0].size) and _whole(images):
            raise ValueError(
                f"{told} in whole numbers, as flattened images do; expected about 0..1. "
                f"Divide them by {top}. {_REMEDY}"
            )
        return
    if low >= 0 and 0 < high <= 1.001 / 255:
        raise ValueError(
            f"{told}, as bytes divided by 255 twice; expected about 0..1. Multiply them by "
            f"255. {_REMEDY}"
        )
    largest = _LARGEST if min(sides) >= _PIXELS else _LARGEST_OF_FEW
    # Negative values are those of standardised images, which may have bright pixels.
    if max(-low, high) <= largest or (low < 0 and _is_standard(images, few)):
        return
    scale = next((top for top in (255, 65535) if 16 < high <= top), None)
    remedy = "Divide them by their largest value, or standardise them."
    if low >= 0 and scale:
        remedy = f"Divide them by {scale}" + (", or pass uint8." if scale == 255 else ".")
    raise ValueError(
        f"{told} (largest in image {_number(row, numbers)}); expected about 0..1, or "
        f"standardised values. {remedy} {_REMEDY}"
    )


def check_finite(images: np.ndarray, numbers: Sequence[int] | None = None) -> None:
    """Raises a `ValueError` for floats that are NaN or infinite."""
    count, row = 0, None
    for start, rows in _chunks(images):
        bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(1)
        if bad.any() and row is None:
            row = start + int(bad.argmax())
        count += int(bad.sum())
    if count:
        raise ValueError(
            f"{count} of {len(images)} images hold non-finite values, the first is number "
            f"{_number(row, numbers)}; expected finite pixels."
        )


def _number(row, numbers):
    return row if numbers is None else numbers[row]


def _check_layout(images):
    shape = images.shape
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[3] <= 4:
        return
    square = shape[2] == shape[3]
    large = min(shape[2:]) >= _PIXELS
    if large and (square or images.dtype == np.uint8):
        raise ValueError(
            f"images have shape {shape}, with the channels first; expected [I, H, W, C]. "
            "Use np.moveaxis(images, 1, -1)."
        )


def _sides(shape):
    """Height and width of the images, or None of features."""
    image = len(shape) == 3 and min(shape[1:]) >= _PIXELS
    return shape[1:3] if image or (len(shape) == 4 and shape[3] <= 4) else None


def _chunks(images):
    size = max(1, _CHUNK // max(1, images[0].size))
    for start in range(0, len(images), size):
        yield start, images[start : start + size]


def _span(images):
    """Least and largest value, and the row of the value farthest from 0."""
    low, high, row = np.inf, -np.inf, 0
    for start, rows in _chunks(images):
        flat = rows.reshape(len(rows), -1)
        if not flat.size:
            continue
        least, most = float(flat.min()), float(flat.max())
        if max(-least, most) > max(-low, high):
            far = np.maximum(-flat.min(1), flat.max(1))
            row = start + int(far.argmax())
        low, high = min(low, least), max(high, most)
    return (0.0, 0.0, 0) if low > high else (low, high, row)


def _is_standard(images, few):
    """Whether the mean square is near 1, and no image is as bright as one of bytes."""
    squares = np.concatenate(
        [
            np.square(rows, dtype=np.float64).reshape(len(rows), -1).mean(1)
            for _, rows in _chunks(images)
        ]
    )
    usual = few or squares.mean() <= _LARGEST_RMS**2
    return usual and squares.max() <= _LARGEST_OF_FEW**2


def _flattened(size):
    """Whether rows of this size may be square images of one or three channels."""
    sides = [round(n**0.5) for n in (size, size / 3)]
    square = sides[0] ** 2 == size or 3 * sides[1] ** 2 == size
    return square and size >= _FLATTENED


def _whole(images):
    return all((rows == np.round(rows)).all() for _, rows in _chunks(images))
