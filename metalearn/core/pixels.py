"""Checks of the values and the layout of images, before they are learned from.

Networks expect values of about 0..1, or standardised ones. Floats of 0..255 are no error to
any later code: training merely goes badly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_CHUNK = 2**22  # values that are looked at together, to bound the memory of a check
# Floats of 0..1 and standardised ones are far below. Standardised images with a few bright
# pixels have large values, but their mean square is 1.
_LARGEST, _LARGEST_RMS = 10.0, 5.0
# Arrays of few pixels may be maps of features, and one image may be brighter than others.
_LARGEST_OF_FEW = 64.0
_FLATTENED = 49  # values of the smallest flattened image: 7x7
_PIXELS = 8  # side from which an array is an image rather than a map of features
REMEDY = (
    "If the values are meant so, standardise them, or give check_images=False to take them "
    "as they are."
)


def check_values(
    images: np.ndarray, numbers: Sequence[int] | None = None, *, few: bool = False
) -> None:
    """Refuses images whose values or layout are those of a usual mistake.

    Args:
      images: uint8 or float `[I, ...]`. Arrays `[I, H, W]` with sides of 8 or more and
        `[I, H, W, C]` with up to four channels are images. Others are features, which may
        have any range; only flattened images of whole 0..255, 0..16 or 0..15 are refused.
      numbers: Number of each image for messages; its row if None.
      few: Whether these are the few images of one task, whose range says less than that of
        a set. Only images that are surely unscaled are refused then.

    Raises:
      ValueError: images are not finite, are floats far from 0..1 or whole numbers beyond 3,
        bytes of few levels (0..16 at most), or have their channels first.
    """
    _check_layout(images)
    if images.dtype == np.uint8:
        top = int(images.max()) if images.size else 0
        if top == 1 or (1 < top <= 16 and not few):
            raise ValueError(
                f"images are bytes (uint8) that run from 0 to {top}; expected 0..255, "
                f"which becomes 0..1. Use images * {255 // top}, or floats of 0..1: "
                f"(images / {top}).astype(np.float32)."
            )
        return
    check_finite(images, numbers)
    low, high, row = _span(images)
    told = f"images are {images.dtype} that run from {low:g} to {high:g}"
    sides = _sides(images.shape)
    if few and (sides is None or max(-low, high) <= _LARGEST_OF_FEW):
        return
    if sides is None:
        top = 255 if 127 < high <= 255 else int(high) if _bright(images, high) else None
        if low >= 0 and top and _flattened(images[0].size) and _whole(images):
            raise ValueError(
                f"{told} in whole numbers, as flattened images do; expected about 0..1. "
                f"Divide them by {top}. {REMEDY}"
            )
        return
    if low >= 0 and 0 < high <= 1.001 / 255:
        raise ValueError(
            f"{told}, as bytes divided by 255 twice; expected about 0..1. Multiply them by "
            f"255. {REMEDY}"
        )
    largest = _LARGEST if min(sides) >= _PIXELS else _LARGEST_OF_FEW
    # Up to 3 they may be kinds of cells, such as the stones of a board.
    if low >= 0 and 3 < high <= largest and min(sides) >= _PIXELS and _whole(images):
        raise ValueError(
            f"{told} in whole numbers, as levels of grey do; expected about 0..1. Divide "
            f"them by their largest value. {REMEDY}"
        )
    # Negative values are those of standardised images, which may have bright pixels.
    if max(-low, high) <= largest or (low < 0 and _is_standard(images, few)):
        return
    scale = next((top for top in (255, 65535) if 16 < high <= top), None)
    remedy = "Divide them by their largest value, or standardise them."
    if low >= 0 and scale:
        remedy = f"Divide them by {scale}" + (", or pass uint8." if scale == 255 else ".")
    raise ValueError(
        f"{told} (largest in image {_number(row, numbers)}); expected about 0..1, or "
        f"standardised values. {remedy} {REMEDY}"
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


def _bright(images, high):
    """Whether images of 4 bits: most of them reach the two largest levels."""
    if high not in (15, 16):
        return False
    most = [rows.reshape(len(rows), -1).max(1) for _, rows in _chunks(images)]
    return np.mean(np.concatenate(most) >= high - 1) > 0.5


def _whole(images):
    return all((rows == np.round(rows)).all() for _, rows in _chunks(images))
