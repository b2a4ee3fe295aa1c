"""The files of MNIST's test digits, in their original format."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
_MOST_BYTES = 512 * 2**20


def read_digits(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[I, H, W]` and digits int32 `[I]` of a folder.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or the two do not fit together.
    """
    images, labels = (_idx(Path(folder) / file) for file in (IMAGES, LABELS))
    if images.ndim != 3 or labels.shape != images.shape[:1] or not images.size:
        raise ValueError(
            f"{folder} has images {list(images.shape)} and labels {list(labels.shape)}; "
            "expected [I, H, W] and [I]."
        )
    if labels.max() > 9:
        row = int((labels > 9).argmax())
        raise ValueError(
            f"{Path(folder) / LABELS} has the label {labels[row]} in row {row}, counted "
            "from 0; expected 0..9."
        )
    return images, labels.astype(np.int32)


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in the idx format of MNIST, packed by gzip."""
    try:
        with gzip.open(path) as file:
            found = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}). Fetch it again.") from error
    if len(found) > _MOST_BYTES:
        raise ValueError(f"{path} unpacks to more than {_MOST_BYTES:,} bytes.")
    if len(found) < 4 or found[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of bytes; expected 0, 0, 8 at its start.")
    start = 4 + 4 * found[3]
    shape = struct.unpack(f">{found[3]}I", found[4:start].ljust(4 * found[3], b"\xff"))
    if len(found) - start != int(np.prod(shape, dtype=object)):
        raise ValueError(
            f"{path} has {len(found) - start:,} values for an array {list(shape)}; it is "
            "cut or damaged. Fetch it again."
        )
    return np.frombuffer(found, np.uint8, offset=start).reshape(shape)
