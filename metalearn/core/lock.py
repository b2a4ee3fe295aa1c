"""Locks of folders: one process at a time trains there.

The lock is one of the operating system (by the package filelock), so it ends with its
process, however that ends. A file beside it says who holds it, for the message only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metalearn.core import files

LOCK = ".lock"
HOLDER = ".lock.json"
NAMES = (LOCK, HOLDER)
# Somebody who only looks whether the lock is free has it for a moment.
_PATIENCE_S = 0.5


class FolderInUse(ValueError):
    """Another process writes to this folder."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
      pid: Number of the process on its host.
      host: Name of the host.
      since: Time at which it took the lock, in words.
      command: Its command line.
    """

    pid: int
    host: str
    since: str
    command: str = ""

    def __str__(self) -> str:
        if not self.pid:  # it has only just taken the lock
            return "another process"
        running = f" ({self.command})" if self.command else ""
        return f"process {self.pid} on {self.host} since {self.since}{running}"


@dataclasses.dataclass
class _Held:
    lock: Any
    pid: int
    made: list[Path]  # folders that did not exist before, the innermost first
    times: int = 1


_held: dict[Path, _Held] = {}
_guard = threading.RLock()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is created when missing.

    The same process may take the lock again inside.

    Raises:
      FolderInUse: another process holds it; names the process, its host and since when.
      CannotWrite: the folder cannot be written.

    Example:
      >>> with held(Path("runs/glyphs")):
      ...     train()
    """
    take(folder)
    try:
        yield
    finally:
        give_back(folder)


def take(folder: Path) -> None:
    """Takes the lock of a folder until `give_back`; see `held`."""
    with _guard:
        folder = folder.resolve()
        mine = _held.get(folder)
        if mine is not None and mine.pid == os.getpid():  # not one of before a fork
            mine.times += 1
            return
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        with files.writing(folder):
            lock = _taken(folder)
            _write_holder(folder)
        _held[folder] = _Held(lock, os.getpid(), made)


def give_back(folder: Path) -> None:
    """Undoes one `take`."""
    with _guard:
        folder = folder.resolve()
        mine = _held.get(folder)
        if mine is None or mine.pid != os.getpid():
            return
        mine.times -= 1
        if mine.times:
            return
        del _held[folder]
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
            if mine.made and {path.name for path in folder.iterdir()} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)  # nothing came of it
                for path in mine.made:
                    path.rmdir()
        if mine.lock is not None:
            mine.lock.release()


def holder(folder: Path) -> Holder | None:
    """Another process that holds the lock of a folder; None if there is none."""
    with _guard:
        folder = folder.resolve()
        mine = _held.get(folder)
        if (mine is not None and mine.pid == os.getpid()) or not (folder / LOCK).is_file():
            return None
        # Whoever may not open the lock cannot know, and only reads.
        with contextlib.suppress(OSError, NotImplementedError, ImportError):
            found = _lock_of(folder)
            if not _acquired(found, 0):
                return _read_holder(folder)
            found.release()
        return None


def refuse_if_in_use(folder: Path) -> None:
    """Raises `FolderInUse` if another process holds the lock of a folder."""
    found = holder(folder)
    if found is not None:
        raise _in_use(folder, found)


def _in_use(folder: Path, found: Holder) -> FolderInUse:
    stop = f"stop it there (kill {found.pid}), " if found.pid else ""
    return FolderInUse(
        f"{folder} is in use by {found}. Nothing was changed. Wait until it ends, {stop}"
        "or give another folder."
    )


def _taken(folder: Path) -> Any:
    path = folder / LOCK
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock_of(folder)
            if not _acquired(lock, _PATIENCE_S):
                break
            if path.exists():
                return lock
            lock.release()  # of a folder that its holder has just removed
    except (NotImplementedError, ImportError) as error:
        warnings.warn(
            f"{folder} cannot be locked ({error}); see to it that no other process "
            "trains there.",
            stacklevel=4,
        )
        return None
    raise _in_use(folder, _read_holder(folder))


def _lock_of(folder: Path) -> Any:
    import filelock

    return filelock.FileLock(folder / LOCK, thread_local=False)


def _acquired(lock: Any, seconds: float) -> bool:
    import filelock

    try:
        lock.acquire(timeout=seconds, poll_interval=0.02)
    except filelock.Timeout:
        return False
    return True


def _write_holder(folder: Path) -> None:
    me = Holder(
        pid=os.getpid(),
        host=socket.gethostname(),
        since=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        command=" ".join(sys.argv)[:200],
    )
    files.write_text(folder / HOLDER, json.dumps(dataclasses.asdict(me)) + "\n")


def _read_holder(folder: Path) -> Holder:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Holder(**files.read_json(folder / HOLDER))
    return Holder(pid=0, host="", since="")
