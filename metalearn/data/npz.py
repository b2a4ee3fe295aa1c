"""Arrays of a file of `numpy.savez`: sizes are checked first, nothing is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.core.cost import in_bytes

MOST_BYTES = 4 * 2**30


def read_arrays(
    path: Path, wanted: Collection[str], *, most: int = MOST_BYTES
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The wanted arrays that a file has, and names of others, which are not read.

    Args:
      path: Path of the file.
      wanted: Names of arrays.
      most: Largest number of bytes of the wanted arrays together.

    Raises:
      ValueError: it is no such file, damaged, too large, or an array is of objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        names = [name.removesuffix(".npy") for name in sizes if name.endswith(".npy")]
        taken = sorted(set(wanted) & set(names))
        total = sum(sizes[f"{name}.npy"] for name in taken)
        if total > most:
            raise ValueError(
                f"its arrays take {in_bytes(total)}; expected at most {in_bytes(most)}."
            )
        with np.load(path, allow_pickle=False) as stored:
            found = {name: _stored(stored, name) for name in taken}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError) as error:
        raise ValueError(
            f"it is no file of numpy.savez, or damaged: {error}. Fetch or write it again."
        ) from error
    return found, sorted(set(names) - set(wanted))


def _stored(stored: Any, name: str) -> np.ndarray:
    try:
        return stored[name]
    except (ValueError, MemoryError) as error:  # a header may claim any shape
        raise ValueError(
            f"{name} cannot be read ({error}); expected an array of numbers or text, since "
            "objects would be unpickled, which may run code."
        ) from error
