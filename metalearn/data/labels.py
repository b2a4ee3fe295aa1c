"""Labels that users hand to `few_shot` and `stream`: integers or names of classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from metalearn.core import given


def as_labels(labels: Any) -> np.ndarray:
    """Labels as an array of integers or text, `[I]`.

    Text is brought to one Unicode form (NFC), so that equal words are equal classes.

    Args:
      labels: Integers or text: an array `[I]` or `[I, 1]`, a list, or a column of a table.

    Raises:
      TypeError: labels are neither integers nor text.
      ValueError: labels are one-hot or missing.
    """
    found = as_array(labels)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.dtype.kind in "fiub" and found.ndim == 2 and _one_hot(found):
        raise ValueError(
            f"labels of shape {found.shape} are one-hot; expected the class of each image, "
            "[I]. Use labels.argmax(1)."
        )
    if found.dtype.kind == "O":
        found = _of_objects(found)
    if found.dtype.kind == "S":
        found = np.char.decode(found, "utf-8")
    if found.dtype.kind in "UT":
        return given.one_form(found)
    if found.dtype.kind == "f" and np.isnan(found).any():
        raise _missing(np.isnan(found.reshape(-1)))
    if found.dtype.kind not in "iu":
        remedy = "Give each class a number or a name."
        if found.dtype.kind in "fb" and np.all(np.mod(found.astype(float), 1) == 0):
            remedy = "Use .astype(int)."
        raise TypeError(
            f"labels have dtype {found.dtype}; expected integers or text [I]. {remedy}"
        )
    return found


def count_classes(num_images: int, labels: Any) -> tuple[np.ndarray, ...]:
    """The order that sorts images by class, then label, first row and size of each class.

    Raises:
      TypeError: labels are neither integers nor text.
      ValueError: the number of labels differs from the number of images, or is 0.
    """
    labels = as_labels(labels)
    if labels.shape != (num_images,) or not num_images:
        raise ValueError(
            f"there are {num_images} images and labels of shape {labels.shape}; expected "
            "[I, ...] and [I] with the same I >= 1."
        )
    # Stable, so that equal sets give equal tasks on every machine.
    order = np.argsort(labels, kind="stable")
    found = np.unique(labels[order], return_index=True, return_counts=True)
    return order, *found


def as_array(values: Any) -> np.ndarray:
    """Values as an array; of objects where they have no shape or type in common.

    Raises:
      ValueError: values of a masked array are masked.
    """
    if np.ma.is_masked(values):
        raise ValueError(
            f"{int(np.ma.getmaskarray(values).sum())} values of a masked array are masked; "
            "expected none. Leave those examples out."
        )
    if isinstance(values, (list, tuple)):
        # NumPy would make text of a missing value among text.
        kinds = {type(value) for value in values}
        if any(issubclass(kind, str) for kind in kinds) and len(kinds) > 1:
            return np.asarray(values, dtype=object)
    try:
        return np.asarray(values)
    except ValueError:  # rows of different shapes
        found = np.empty(len(values), dtype=object)
        found[:] = list(values)
        return found


def _one_hot(labels):
    return (
        labels.shape[1] > 1
        and bool(np.isin(labels, (0, 1)).all())
        and bool((labels.sum(1) == 1).all())
    )


def _of_objects(labels: np.ndarray) -> np.ndarray:
    """Objects as integers or text."""
    flat = labels.reshape(-1)
    # NaN is the only value that differs from itself.
    missing = np.asarray(
        [v is None or (np.ndim(v) == 0 and bool(v != v)) for v in flat], bool
    )
    if missing.any():
        raise _missing(missing)
    if all(isinstance(value, str) for value in flat):
        return labels.astype(str)
    if all(
        isinstance(v, (int, np.integer)) and not isinstance(v, (bool, np.bool_))
        for v in flat
    ):
        return labels.astype(np.int64)
    kinds = sorted({type(value).__name__ for value in flat})
    raise TypeError(
        f"labels are objects of the types {kinds}; expected integers or text [I]. Give "
        "each class a number or a name."
    )


def _missing(places: np.ndarray) -> ValueError:
    return ValueError(
        f"{int(places.sum())} of {len(places)} labels are missing, the first is number "
        f"{int(places.argmax())}; expected one for each image. Leave those images out."
    )
