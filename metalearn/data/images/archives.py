"""Read-only access to a zip archive or a folder of image files.

Nothing is ever extracted: members are read in memory, so an archive cannot write
anywhere. Paths that lead out of the archive are refused all the same, because no author
of a data set makes such an archive. Links of a folder are followed wherever they lead,
because they are the user's own. Every error names the file and the remedy. A
fingerprint of the contents keys the cache of prepared records.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from metalearn.data.images.decoding import IMAGE_SUFFIXES, decode, decode_image
from metalearn.data.images.limits import Limits, limits_of

__all__ = ["IMAGE_SUFFIXES", "ImageTree", "decode_image", "fingerprint"]

MAX_DEPTH = 32  # folders inside one another
# Deflate makes no more than 1,032 bytes of one, so an archive that claims more has
# members that share their bytes.
_MOST_UNPACKED = 1032
_USUAL = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ImageTree:
    """The files of one zip archive or one folder.

    The tree is a context manager. `paths` maps the "/"-separated path of each file inside
    the tree to a content stamp. The stamp is size and checksum in a zip, and size and time
    of change in a folder, because to hash whole folders at every load would be too slow.

    Attributes:
      root: The folder or zip.
      paths: Content stamp of each file, by path.
      hidden: Number of files and folders left out because they are hidden.
      special: Number of files left out because they are pipes, sockets or devices.
      empty: Paths of the folders that hold nothing.
      limits: Limits.

    Raises:
      FileNotFoundError: `root` does not exist.
      ValueError: `root` is not a readable zip, or holds unsafe paths, links that lead
        nowhere or in a circle, or more than the limits admit.
    """

    def __init__(self, root: str | Path, limits: Limits | None = None):
        self.root, self.limits = Path(root), limits or limits_of()
        self.hidden = self.special = 0
        self.paths: dict[str, tuple[int, ...]] = {}
        self.empty: list[str] = []
        self._zip, self._members = None, {}
        if self.root.is_dir():
            self._read_folder()
        elif self.root.is_file():
            # Before zipfile makes an object of every member.
            self._check_count(_listed(self.root))
            self._zip = _open_zip(self.root)
            try:
                self._read_zip()
            except BaseException:
                self._zip.close()
                raise
        else:
            raise FileNotFoundError(
                f"{self.root} does not exist; expected a folder or a zip archive. "
                "Check the path."
            )
        for path in self.image_paths():
            self._check_size(path, self.paths[path][0])

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
          ValueError: The file is damaged (its checksum does not match), encrypted or
            larger than the limit.
        """
        self._check_size(path, self.paths[path][0])
        if self._zip is None:
            try:
                return (self.root / path).read_bytes()
            except OSError as error:
                raise self._unreadable(path, error) from error
        try:
            return self._zip.read(self._members[path])
        except Exception as error:  # damaged archives raise anything
            raise ValueError(
                f"{path!r} in {self.root} cannot be read ({error}); expected an "
                "undamaged, unencrypted zip archive. Fetch or make the archive again."
            ) from error

    def read_image(self, path: str, *, mode: str) -> np.ndarray:
        """Decodes one image as a viewer shows it; see `decoding.decode`.

        Args:
          path: Path inside the tree.
          mode: Pillow mode: "L" (greyscale) or "RGB".

        Returns:
          uint8 `[H, W, C]`, C = 1 for "L".

        Raises:
          ValueError: The file is damaged or not an image.
        """
        return self.decode(path, mode=mode)[0]

    def decode(self, path: str, *, mode: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """Pixels of one image, and what was done to it; see `decoding.decode`."""
        where = f"{path!r} in {self.root}"
        return decode(self.read(path), mode=mode, where=where, limits=self.limits)

    def _read_folder(self):
        for path, status in self._walk():
            # The time of change too: copying tools set that of modification as they like.
            times = (status.st_mtime_ns, status.st_ctime_ns)
            self.paths[path] = (status.st_size, *times)
            self._check_count(len(self.paths))

    def _walk(self) -> Iterator[tuple[str, os.stat_result]]:
        """Path and status of each file, links followed; an own stack bounds the depth."""
        waiting = [("", frozenset({_identity(self.root.stat())}))]
        while waiting:
            prefix, above = waiting.pop()
            with self._scan(prefix) as entries:
                names = sorted(entry.name for entry in entries)
            if not names and prefix:
                self.empty.append(prefix)
            for name in names:
                if _is_clutter(name):
                    self.hidden += 1
                    continue
                path = f"{prefix}/{name}" if prefix else name
                status = self._status(path)
                if stat.S_ISREG(status.st_mode):
                    yield path, status
                elif not stat.S_ISDIR(status.st_mode):
                    self.special += 1  # to read a pipe would wait for ever
                elif _identity(status) in above:
                    raise ValueError(
                        f"{path!r} in {self.root} is a link to a folder that holds it; "
                        "expected links that do not lead in a circle. Remove the link."
                    )
                else:
                    self._check_depth(path)
                    waiting.append((path, above | {_identity(status)}))

    def _scan(self, prefix):
        try:
            return os.scandir(self.root / prefix)
        except OSError as error:
            raise ValueError(
                f"The folder {prefix or '.'!r} in {self.root} cannot be read "
                f"({error.strerror}); expected readable folders. Change its permissions, "
                "or move it away."
            ) from error

    def _status(self, path):
        try:
            return os.stat(self.root / path)
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, path, error):
        target = self.root / path
        leads = f", a link to {os.readlink(target)!r}," if target.is_symlink() else ""
        return ValueError(
            f"{path!r} in {self.root}{leads} cannot be read ({error.strerror}); "
            "expected files, and links that lead to some. Mend or remove it."
        )

    def _read_zip(self):
        folders = set()
        for member in self._zip.infolist():
            name = _zip_path(member, self.root)
            if _is_clutter(name):
                self.hidden += 1
                continue
            if stat.S_ISLNK(member.external_attr >> 16) and member.create_system == 3:
                raise ValueError(
                    f"{name!r} in {self.root} is a link; expected files and folders only. "
                    "Make the archive again with the files that its links lead to."
                )
            self._check_depth(name)
            if member.filename.endswith(("/", "\\")) or name == ".":
                folders.add(name)
                continue
            if name in self.paths:
                raise ValueError(
                    f"{self.root} holds {name!r} twice; expected every path once. Make "
                    "the archive again."
                )
            self.paths[name] = (member.file_size, member.CRC)
            self._members[name] = member
        full = {str(p) for name in self.paths for p in PurePosixPath(name).parents}
        self.empty = sorted(folders - full)
        packed = self.root.stat().st_size
        total = sum(
            self._members[path].file_size
            for path in self.image_paths()
            if self._members[path].compress_type in _USUAL
        )
        if total > _MOST_UNPACKED * packed:
            raise ValueError(
                f"{self.root} has {packed} bytes and unpacks to {total}; expected at most "
                f"{_MOST_UNPACKED} times its size. Its members share their bytes, which "
                "no archive of images does: fetch it from its original source."
            )

    def _check_size(self, path, size):
        if size > self.limits.max_file_bytes:
            raise ValueError(
                f"{path!r} in {self.root} unpacks to {size} bytes; expected at most "
                f"max_file_bytes={self.limits.max_file_bytes} for one file. Remove the "
                "file, or raise the option max_file_bytes."
            )

    def _check_count(self, count):
        if count > self.limits.max_files:
            raise ValueError(
                f"{self.root} holds more than {self.limits.max_files} files; expected at "
                "most max_files. Raise the option max_files if that is meant."
            )

    def _check_depth(self, path):
        if path.count("/") >= MAX_DEPTH:
            raise ValueError(
                f"{self.root} holds folders {path.count('/')} deep, such as "
                f"{path[:60]!r}; expected at most {MAX_DEPTH}. Move the classes up."
            )


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
    except Exception as error:  # damaged archives raise anything
        remedy = (
            "It may be truncated: fetch it again and compare its size with the source's."
        )
        if _is_tar(root):
            remedy = "It is a tar archive: unpack it (tar -xf) and give the folder."
        elif root.suffix.lower() in IMAGE_SUFFIXES:
            remedy = "It is one image: give the folder that holds the folders of classes."
        raise ValueError(
            f"{root} ({root.stat().st_size} bytes) is not a readable zip archive "
            f"({error}); expected a complete zip file. {remedy}"
        ) from error


def _listed(path):
    """Number of members that the directory of a zip lists; 0 if there is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = max(0, size - 2**16 - 22)  # the last record and the longest comment
        file.seek(start)
        tail = file.read()
        at = tail.rfind(b"PK\5\6")
        if at < 0 or at + 22 > len(tail):
            return 0
        (length,), end = struct.unpack_from("<L", tail, at + 12), start + at
        if tail[max(0, at - 20) : at].startswith(b"PK\6\7"):  # large archives have another
            (end,) = struct.unpack_from("<Q", tail, at - 12)
            file.seek(min(end, size))
            record = file.read(56)
            length = struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else 0
        place, count = max(0, end - length), 0
        file.seek(min(place, size))
        # The length of the directory, and not the count beside it, is what zipfile obeys.
        while place < end and (chunk := file.read(min(2**20, end - place))):
            count += chunk.count(b"PK\1\2")
            place += len(chunk)
    return count


def _is_tar(path):
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error, ValueError):
        return False


def _zip_path(member, root):
    """Path of a member, with "/" between folders."""
    # ZipInfo cuts names at a null byte; the original name is what was written.
    for text in (member.filename, member.orig_filename):
        if _is_unsafe(text):
            raise ValueError(
                f"{root} holds the path {text!r}, which leads out of the archive; "
                "expected relative paths only. The archive is refused: fetch it "
                "from its original source."
            )
    name = member.filename.replace("\\", "/")  # as some programs of Windows write
    if not member.flag_bits & 0x800:
        # The Finder writes UTF-8 without saying so, and zipfile then reads cp437.
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return PurePosixPath(name).as_posix()


def _identity(status):
    return status.st_dev, status.st_ino


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
