"""Limits of what a source of images may ask of this machine.

A file of 164 kB may decode to half a gigabyte, and an archive may list millions of files.
Sizes are therefore compared with these limits before anything is decoded. Every limit is
an option of `ml.data.load` and of the commands, and every message names that option.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

from metalearn.core.cost import in_bytes

# Pillow itself refuses more pixels than these.
MOST_PIXELS = 178_956_970


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest sizes that are accepted.

    Attributes:
      max_pixels: Pixels of one image, before and after resizing. The default admits the
        photographs of every usual camera and telephone.
      max_bytes: Bytes of all prepared images together, which `load` holds decoded.
      max_file_bytes: Bytes of one image file.
      max_files: Files of one folder or archive.

    Raises:
      ValueError: a limit is not a whole number of 1 or more.
    """

    max_pixels: int = 64 * 2**20
    max_bytes: int = 8 * 2**30
    max_file_bytes: int = 64 * 2**20
    max_files: int = 2 * 2**20

    def __post_init__(self):
        for name, value in vars(self).items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or value < 1:
                raise ValueError(
                    f"{name}={value!r} was given; expected a whole number of 1 or more."
                )
        if self.max_pixels > MOST_PIXELS:
            raise ValueError(
                f"max_pixels={self.max_pixels} was given; expected at most {MOST_PIXELS}, "
                "which is the limit of Pillow. Make the images smaller."
            )


_AROUND: contextvars.ContextVar[Limits] = contextvars.ContextVar("limits of images")


def limits_of(**given: int | None) -> Limits:
    """The limits that are given, else those of `within`, else the defaults."""
    found = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(_AROUND.get(Limits()), **found)


@contextlib.contextmanager
def within(**given: int | None) -> Iterator[None]:
    """Limits of all images that are read inside, where a call gives none of its own.

    Raises:
      ValueError: as `Limits`.
    """
    token = _AROUND.set(limits_of(**given))
    try:
        yield
    finally:
        _AROUND.reset(token)


def check_total(
    count: int, shape: tuple[int, int, int], limits: Limits, where: str
) -> None:
    """Refuses a set whose decoded images take more than `max_bytes`.

    Args:
      count: Number of images.
      shape: `(H, W, C)` of one image, one byte a value.
      limits: Limits.
      where: Source of the images, for the message.

    Raises:
      ValueError: the set is too large.
    """
    height, width, channels = shape
    total = count * height * width * channels
    if total > limits.max_bytes:
        raise ValueError(
            f"{count} images of {height}x{width}x{channels} in {where} take "
            f"{in_bytes(total)}; expected at most max_bytes={limits.max_bytes} "
            f"({in_bytes(limits.max_bytes)}). Choose a smaller image_size, or raise the "
            "option max_bytes and read the set with ml.data.open_records and "
            "ml.data.stream."
        )
