"""Read-only access to a zip archive or a folder of image files.

Nothing is ever extracted: members are read in memory, so an archive cannot write
anywhere. Paths that lead out of the archive are refused all the same, because no author
of a data set makes such an archive. Every error names the file and the remedy. A
fingerprint of the contents keys the cache of prepared records.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from metalearn.core.optional import require

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
MAX_MEMBER_BYTES = 64 * 2**20


class ImageTree:
    """The files of one zip archive or one folder.

    The tree is a context manager. `paths` maps the "/"-separated path of each file inside
    the tree to a content stamp. The stamp is size and checksum in a zip, and size and time
    of change in a folder, because to hash whole folders at every load would be too slow.

    Raises:
      FileNotFoundError: `root` does not exist.
      ValueError: `root` is not a readable zip, or holds unsafe paths.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._zip = None
        if self.root.is_dir():
            self.paths = _folder_paths(self.root)
        elif self.root.is_file():
            self._zip = _open_zip(self.root)
            try:
                self.paths = _zip_paths(self._zip, self.root)
            except BaseException:
                self._zip.close()
                raise
        else:
            raise FileNotFoundError(
                f"{self.root} does not exist; expected a folder or a zip archive. "
                "Check the path."
            )

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        if self._zip is not None:
            self._zip.close()

    def image_paths(self) -> list[str]:
        """Paths of the image files, sorted."""
        return sorted(p for p in self.paths if p.lower().endswith(IMAGE_SUFFIXES))

    def read(self, path: str) -> bytes:
        """Returns the bytes of one file.

        Raises:
          ValueError: The file is damaged (its checksum does not match) or encrypted.
        """
        if self._zip is None:
            return (self.root / path).read_bytes()
        try:
            return self._zip.read(path)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,
            NotImplementedError,
        ) as error:
            raise ValueError(
                f"{path!r} in {self.root} cannot be read ({error}); expected an "
                "undamaged, unencrypted zip archive. Fetch or make the archive again."
            ) from error

    def read_image(self, path: str, *, mode: str) -> np.ndarray:
        """Decodes one image.

        Args:
          path: Path inside the tree.
          mode: Pillow mode: "L" (greyscale) or "RGB".

        Returns:
          uint8 `[H, W, C]`, C = 1 for "L".

        Raises:
          ValueError: The file is damaged or not an image.
        """
        where = f"{path!r} in {self.root}"
        return decode_image(self.read(path), mode=mode, where=where)


def decode_image(data: bytes, *, mode: str, where: str) -> np.ndarray:
    """Decodes image bytes to uint8 `[H, W, C]`; errors name the source `where`."""
    Image = require("PIL.Image", "to decode images")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I"):  # 16 bits; converting would clip them
                image = image.convert("I").point(lambda v: v / 257).convert("L")
            pixels = np.asarray(image.convert(mode))
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(
            f"{where} cannot be decoded ({error}; {len(data)} bytes); expected a PNG, "
            "JPEG or BMP image. Replace or remove the file."
        ) from error
    # Grey images of Pillow have no axis of channels.
    return pixels[..., None] if pixels.ndim == 2 else pixels


def fingerprint(stamps: Iterable[object]) -> str:
    """Twelve hexadecimal digits that identify the stamps in any order."""
    digest = hashlib.sha256()
    # Sorted, because folders list their files in any order.
    for stamp in sorted(repr(stamp) for stamp in stamps):
        digest.update(stamp.encode() + b"\n")
    return digest.hexdigest()[:12]


def _open_zip(root):
    try:
        return zipfile.ZipFile(root)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"{root} ({root.stat().st_size} bytes) is not a readable zip archive "
            f"({error}); expected a complete zip file. It may be truncated: fetch it "
            "again and compare its size with the source's."
        ) from error


def _zip_paths(archive, root):
    paths = {}
    for member in archive.infolist():
        name = member.filename
        # ZipInfo cuts names at a null byte; the original name is what was written.
        for text in (name, member.orig_filename):
            if _is_unsafe(text):
                raise ValueError(
                    f"{root} holds the path {text!r}, which leads out of the archive; "
                    "expected relative paths only. The archive is refused: fetch it "
                    "from its original source."
                )
        if member.is_dir() or _is_clutter(name):
            continue
        # A small archive may unpack to any size, and members are read into memory.
        if member.file_size > MAX_MEMBER_BYTES:
            raise ValueError(
                f"{name!r} in {root} unpacks to {member.file_size} bytes; expected at "
                f"most {MAX_MEMBER_BYTES} for one file. Remove it from the archive."
            )
        paths[name] = (member.file_size, member.CRC)
    return paths


def _folder_paths(root):
    paths = {}
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if file.is_file() and not _is_clutter(name):
            status = file.stat()
            paths[name] = (status.st_size, status.st_mtime_ns)
    return paths


def _is_unsafe(name):
    return (
        name.startswith(("/", "\\"))
        or re.match(r"^[A-Za-z]:", name) is not None
        or ".." in re.split(r"[/\\]", name)
        or "\0" in name
    )


def _is_clutter(name):
    parts = name.split("/")
    return "__MACOSX" in parts or any(p.startswith(".") and p != "." for p in parts)
