"""Reading prepared records: their folders, and their conversion to arrays.

`builders` writes the records. To decode 26,000 records takes 2.7 s, which a test suite or a
command line would pay every time. So the first read writes the decoded pixels beside the
records, as .npy files. Later loads map these files into memory. tensorflow_datasets is
imported only to decode.

`metadata.json` holds the digest of every file of the folder and of itself. A decoded file
ends with a digest of its pixels and of the records that they come from. Both are compared
at every load, in one pass over each file (1.4 GB/s), so that a changed byte is no pixel.
Damaged records are refused; a damaged cache is decoded again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.core import digest, files
from metalearn.core.cache import cache_root
from metalearn.core.optional import check, require
from metalearn.data.images.decoding import decode_image
from metalearn.data.images.image_sets import PARTS, ImageClasses, ImageDataset
from metalearn.data.images.limits import MOST_PIXELS, Limits

VERSION = "1.1.0"
OLDER = ("1.0.0",)  # without digests; prepared anew
_SCRATCH = ".decoded-"
_OWN = Limits(max_pixels=MOST_PIXELS)  # they were within limits when they were written
_DIGEST_BYTES = hashlib.sha256().digest_size


def record_dir(name: str, config: str) -> Path:
    """Folder of one prepared configuration, whether or not it exists."""
    return cache_root() / name / config / VERSION


def prepared_dirs(name: str) -> list[Path]:
    """Folders of all prepared configurations of one set, sorted by path."""
    return sorted(
        path.parent for path in cache_root().glob(f"{name}/*/{VERSION}/metadata.json")
    )


def read_metadata(directory: Path) -> dict[str, Any]:
    """Stored facts of a prepared set: name, info, and the classes of each part.

    Raises:
      ValueError: The folder is damaged.
    """
    path = directory / "metadata.json"
    try:
        metadata = files.read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(directory, error) from error
    digest.check_seal(metadata, where=path, remedy=_remedy(directory))
    return metadata


def sealed_metadata(directory: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The contents of `metadata.json`: facts, and digests of all files beside it."""
    found = {file.name: digest.of_file(file) for file in sorted(directory.iterdir())}
    return digest.sealed({**facts, "files": found})


def load_records(directory: Path) -> ImageDataset:
    """Reads a prepared set.

    Args:
      directory: Folder that `prepare_records` returned.

    Returns:
      The data set; images are read-only arrays mapped from disk.

    Raises:
      ValueError: The records are damaged.
    """
    metadata = read_metadata(directory)
    parts = dict.fromkeys(PARTS)
    for part, stored in metadata["parts"].items():
        classes = tuple(stored["class_names"])
        groups = stored["class_groups"]
        group_names = tuple(dict.fromkeys(groups))
        index = {group: i for i, group in enumerate(group_names)}
        parts[part] = ImageClasses(
            images=_pixels(directory, metadata, part),
            labels=np.repeat(np.arange(len(classes), dtype=np.int32), stored["counts"]),
            class_names=classes,
            groups=np.asarray([index[group] for group in groups], np.int32),
            group_names=group_names,
            rotations=stored["rotations"],
        )
    return ImageDataset(name=metadata["name"], info=metadata["info"], **parts)


def _pixels(directory, metadata, part):
    """Decoded images of one part, from the .npy file or else from the records."""
    stored = metadata["parts"][part]
    shape = (sum(stored["counts"]), *metadata["image_shape"])
    _check_files(directory, metadata, part)
    of_part = {name: metadata["files"][name] for name in _record_files(metadata, part)}
    source = digest.of_json([part, shape, of_part])
    decoded = directory / f"decoded-{part}-{source[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        if _is_whole(decoded, source):
            images = np.load(decoded, mmap_mode="r", allow_pickle=False)
            if images.shape == shape and images.dtype == np.uint8:
                return images
    images = _decode_records(directory, part, stored["counts"], shape)
    # A read-only cache is no reason to fail: the pixels are in memory already.
    with contextlib.suppress(OSError):
        _save_atomically(decoded, images, source)
    # What is stale or damaged, or was left by a killed process, takes room for nothing.
    _remove(set(directory.glob(f"decoded-{part}-*.npy")) - {decoded})
    _remove(directory.glob(f"{_SCRATCH}{part}-*"))
    # Like the mapped file: a write would change the pixels of this process only.
    images.flags.writeable = False
    return images


def _record_files(metadata: dict[str, Any], part: str) -> list[str]:
    return [name for name in metadata["files"] if f"-{part}.array_record-" in name]


def _check_files(directory: Path, metadata: dict[str, Any], part: str) -> None:
    """Compares the records of one part, and what TFDS says of them, with their digests."""
    mine = _record_files(metadata, part)
    for name, written in metadata["files"].items():
        if ".array_record-" in name and name not in mine:
            continue
        path = directory / name
        try:
            same = digest.of_file(path) == written
        except OSError as error:
            raise _damaged(directory, error) from error
        if not same:
            raise digest.damaged(
                path, "its contents differ from their digest", _remedy(directory)
            )


def _is_whole(decoded: Path, source: str) -> bool:
    """Whether a decoded file ends with the digest of its contents and of its source."""
    found = hashlib.sha256(source.encode())
    with decoded.open("rb") as file:
        left = decoded.stat().st_size - _DIGEST_BYTES
        while left > 0 and (chunk := file.read(min(left, 2**20))):
            found.update(chunk)
            left -= len(chunk)
        return left == 0 and file.read() == found.digest()


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # another process may be faster
            path.unlink()


def _decode_records(directory, part, counts, shape):
    records = _open(directory, part)
    try:
        rows = records.__getitems__(list(range(len(records))))
    except Exception as error:  # array_record raises bare RuntimeError, IndexError, ...
        raise _damaged(directory, error) from error
    labels = [int(row["label"]) for row in rows]
    first = min(labels, default=0)
    # Images and classes are joined by position alone, so the order is checked here.
    if labels != np.repeat(np.arange(len(counts)) + first, counts).tolist():
        raise _damaged(directory, "labels differ from metadata.json")
    mode = "RGB" if shape[-1] == 3 else "L"
    images = np.empty(shape, np.uint8)
    for i, row in enumerate(rows):
        where = f"record {i} of {part}"
        images[i] = decode_image(row["image"], mode=mode, where=where, limits=_OWN)
    return images


class RecordImages:
    """Images of one part of a prepared set, decoded when they are read.

    `images[i]` is uint8 `[H, W, C]`, in the order of `labels`. To read several images at
    once, `images.__getitems__(rows)` is faster. Several threads may read at the same time.
    The object can be sent to other processes, which open the records again.

    Attributes:
      labels: Class of each image, int32 `[I]`.
    """

    def __init__(self, directory: Path, part: str):
        stored = read_metadata(directory)
        if part not in stored["parts"]:
            raise ValueError(
                f"{stored['name']!r} has no part {part!r}; there are "
                f"{', '.join(stored['parts'])}."
            )
        counts = stored["parts"][part]["counts"]
        # Once, and not in every process that gets a copy.
        _check_files(directory, stored, part)
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._directory, self._part = directory, part
        self._mode = "RGB" if stored["image_shape"][-1] == 3 else "L"
        self._source = None

    def __getstate__(self) -> dict[str, Any]:
        # An open reader cannot be pickled.
        return {**self.__dict__, "_source": None}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.__getitems__([i])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[np.ndarray]:
        if self._source is None:
            self._source = _open(self._directory, self._part)
        try:
            # The bytes are read without the features of TFDS, which take as long as
            # decoding the image does.
            records = self._source.data_source.__getitems__(rows)
            encoded = [_image_of(record) for record in records]
        except Exception as error:  # array_record raises bare RuntimeError, ...
            raise _damaged(self._directory, error) from error
        return [
            decode_image(
                data, mode=self._mode, where=f"record {i} of {self._part}", limits=_OWN
            )
            for i, data in zip(rows, encoded, strict=True)
        ]


def _image_of(record: bytes) -> bytes:
    example = require("tensorflow_datasets.proto", "to read records").tf_example_pb2.Example
    (data,) = example.FromString(record).features.feature["image"].bytes_list.value
    return data


def _open(directory, part):
    tfds = require("tensorflow_datasets", "to read prepared records")
    check("to read prepared records", "array_record")

    try:
        return tfds.builder_from_directory(directory).as_data_source(
            split=part, decoders={"image": tfds.decode.SkipDecoding()}
        )
    except Exception as error:  # array_record raises bare RuntimeError, IndexError, ...
        raise _damaged(directory, error) from error


def _save_atomically(path: Path, images: np.ndarray, source: str) -> None:
    part = path.name.split("-")[1]
    handle, scratch = tempfile.mkstemp(prefix=f"{_SCRATCH}{part}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            found = _Hashing(stream, source)
            np.lib.format.write_array(found, images, allow_pickle=False)
            stream.write(found.digest())
        # In one move, because another process may read the file at the same time.
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


class _Hashing:
    """A file to write to that computes the digest of what was written."""

    def __init__(self, stream: Any, source: str):
        self._stream, self._found = stream, hashlib.sha256(source.encode())

    def write(self, data: bytes) -> int:
        self._found.update(data)
        return self._stream.write(data)

    def digest(self) -> bytes:
        return self._found.digest()


def _remedy(directory: Path) -> str:
    return f"Delete {directory} and load again to rebuild it."


def _damaged(directory, reason):
    return ValueError(
        f"The prepared records in {directory} cannot be read ({reason}); expected an "
        f"undamaged data set. Delete that folder and load again to rebuild it."
    )
