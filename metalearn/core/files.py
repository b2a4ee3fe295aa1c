"""Files that are written whole or not at all, and what to say where they cannot be."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PART = ".part"

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EFBIG: "the file would exceed the largest size that is allowed",
    errno.EIO: "the disk reports an error",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "the path is a folder",
    errno.ENAMETOOLONG: "the name is too long",
}
_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Libraries in other languages put the error of the system into their text.
_IN_TEXT = re.compile(r"os_error_code='(\d+)'|OS error (\d+)|[Ee]rrno[ :=]*(\d+)")
_WORDS = {"No space left on device": errno.ENOSPC, "Disk quota exceeded": errno.EDQUOT}


class CannotWrite(OSError):
    """A file cannot be written; the message has its path, the cause and the remedy."""

    def __str__(self) -> str:
        return str(self.strerror)


@contextlib.contextmanager
def writing(path: Path | str, *, kept: str = "") -> Iterator[None]:
    """Turns an error of the disk, or of its permissions, into one message.

    Args:
      path: File or folder that the block writes.
      kept: What is whole all the same, in a sentence.

    Raises:
      CannotWrite: the block failed by an error of the system.

    Example:
      >>> with writing(path, kept="The results are complete."):
      ...     figure.savefig(path)
    """
    try:
        yield
    except CannotWrite:
        raise
    except Exception as error:
        number = _errno_of(error, Path(path))
        if number is None:
            raise
        raise cannot_write(path, number, kept) from error


def cannot_write(path: Path | str, number: int, kept: str = "") -> CannotWrite:
    """The error of a path that cannot be written, for an error number of the system."""
    reason = _REASONS.get(number, os.strerror(number))
    remedy = "Make it writable, or give another place."
    if number in _SPACE:
        remedy = "Free space there, or give a place on another disk."
    words = f"{in_ascii(path)} cannot be written: {reason}. {kept} {remedy}"
    return CannotWrite(number, words.replace("  ", " "))


def _errno_of(error: BaseException | None, path: Path) -> int | None:
    """Error number behind a failure to write `path`; None if it failed otherwise."""
    while error is not None:
        found = None
        if isinstance(error, OSError):
            if _concerns(error.filename, path):
                found = error.errno
        elif match := _IN_TEXT.search(str(error)):
            found = int(next(filter(None, match.groups())))
        else:
            found = next((n for words, n in _WORDS.items() if words in str(error)), None)
        if found in _REASONS:
            return found
        error = error.__cause__ or error.__context__
    return None


def _concerns(named: Any, path: Path) -> bool:
    """Whether the file that an error names is near `path`; others were read, perhaps."""
    if not isinstance(named, (str, bytes, os.PathLike)):
        return True
    named, path = Path(os.fsdecode(named)).absolute(), path.absolute()
    return named.is_relative_to(path.parent) or path.is_relative_to(named)


@contextlib.contextmanager
def replacing(path: Path, *, kept: str = "") -> Iterator[Path]:
    """Gives a path beside `path` to write to, which then takes its place in one move.

    A reader sees the old file or the new one, and never half of one, also if two write
    at a time or the power fails.

    Raises:
      CannotWrite: the disk is full, say; the old file stays and nothing is left beside it.
    """
    with writing(path, kept=kept):
        # Where a link leads, since a move would put the file in place of the link.
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_file():
            raise OSError(errno.EISDIR if path.is_dir() else errno.EPERM, "no file")
        part = path.with_name(f".{secrets.token_hex(6)}{PART}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            with part.open("rb") as file:
                # Before the move: the name must not be of an empty file.
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str, *, kept: str = "") -> None:
    """Replaces a text file in one move.

    Raises:
      CannotWrite: as `replacing`.
    """
    with replacing(path, kept=kept) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Parses a JSON file.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is not JSON; names the file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def check_name(path: Path | str, option: str) -> None:
    """Refuses a path that libraries in other languages cannot open.

    Raises:
      TypeError: it is no path, or an empty one.
      ValueError: the path is a URL, is not text in UTF-8, or holds a NUL.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise TypeError(f"{option} is {path!r}; expected a path, such as 'runs/a'.")
    text = os.fspath(path)
    if re.match(r"[a-z0-9]+://", text):
        raise ValueError(
            f"{option} is {text!r}, a URL; expected a path on a disk of this machine. "
            "Write there, and copy it afterwards."
        )
    try:
        text.encode("utf-8")
        fine = "\0" not in text
    except UnicodeEncodeError:
        fine = False
    if not fine:
        raise ValueError(
            f"{option} is {in_ascii(text)}, which is not text in UTF-8; nothing can be "
            "written there. Give another path."
        )


def in_ascii(path: Path | str) -> str:
    """The path as it is, or with escapes where a terminal could not print it."""
    text = os.fspath(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return ascii(text)
    return text
