"""One boundary between errors and the user of the command line.

Every expected failure becomes one message on the standard error and an exit status:

0    success
1    failure: training diverged, memory or disk is full, a package is missing, a fault
2    wrong usage or input: options, files, folders, data
130  interrupted

A failure that nobody expected says so. Its traceback goes to a file, or with `--traceback`
(or the environment variable METALEARN_TRACEBACK=1) to the standard error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from metalearn.core import optional
from metalearn.core.errors import in_short, is_said
from metalearn.runs import environment

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def guarded(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs a command; whatever it raises becomes a message and an exit status.

    Args:
      command: Function of the arguments that returns an exit status.
      argv: Arguments. `--traceback`, or its other name `--debug`, is taken out.
    """
    switches = ("--traceback", "--debug")
    shows = any(word in switches for word in argv)
    shows |= os.environ.get("METALEARN_TRACEBACK", "") not in ("", "0")
    rest = [word for word in argv if word not in switches]
    # A "±", or a file of any name, must not end a command on a narrow terminal.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command(rest)
    except SystemExit as stop:
        return _stopped(stop)
    except KeyboardInterrupt as error:
        _show(error, shows)
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        # Python flushes stdout at exit; into a closed pipe that would print another error.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        found = expected(error)
        if found is None:
            return _unexpected(error, rest, shows)
        status, message = found
        _show(error, shows)
        print(f"metalearn: error: {message}", file=sys.stderr)
        return status


def expected(error: Exception) -> tuple[int, str] | None:
    """Exit status and message of an expected failure; `None` for any other."""
    if isinstance(error, FloatingPointError):  # `NonFiniteGradient` is one
        return FAILED, str(error)
    if isinstance(error, MemoryError) or _device_is_full(error):
        if is_said(error):
            return FAILED, str(error)
        return FAILED, (
            f"memory has run out ({in_short(error)}). Take fewer tasks in a step "
            "(--tasks-per-step), smaller images or a smaller network, or a machine with "
            "more memory."
        )
    # What several processes wait for: only a message of the runtime says that one is gone.
    if isinstance(error, RuntimeError) and jax.distributed.is_initialized():
        return FAILED, str(error)
    if isinstance(error, ImportError) and (found := _missing_package(error)):
        return FAILED, found
    if is_said(error):
        return USER_ERROR, str(error)
    if isinstance(error, OSError):
        return _of_the_system(error)
    return None


def _device_is_full(error: Exception) -> bool:
    words = ("RESOURCE_EXHAUSTED", "out of memory", "OOM")
    is_jax = isinstance(error, jax.errors.JaxRuntimeError)
    return is_jax and any(word.lower() in str(error).lower() for word in words)


def _missing_package(error: ImportError) -> str | None:
    """What to say of a package that is not there; `None` for a fault in an import."""
    if is_said(error):
        return str(error)
    package = (error.name or "").partition(".")[0]
    if package not in optional.PACKAGES:
        return None
    return optional.message(package, "for this command")


def _of_the_system(error: OSError) -> tuple[int, str]:
    place = error.filename2 or error.filename
    where = "" if place is None else f" ({place})"
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FAILED, (
            f"the disk is full{where}: {reason}. Free some space, then go on with the same "
            "command; training goes on from its last checkpoint with --resume."
        )
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO):
        return FAILED, f"the system refuses: {reason}{where}."
    remedies = {
        FileNotFoundError: "Check the path.",
        PermissionError: "Choose a place that may be read and written, or change its mode.",
        IsADirectoryError: "Give a file.",
        NotADirectoryError: "Give a folder.",
        FileExistsError: "Give another path.",
    }
    remedy = next((r for kind, r in remedies.items() if isinstance(error, kind)), "")
    return USER_ERROR, f"{reason}{where}. {remedy}".rstrip()


def _stopped(stop: SystemExit) -> int:
    """The status of a parser, which has printed a message; or of somebody's `sys.exit`."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        return stop.code
    print(f"metalearn: error: {stop.code}", file=sys.stderr)
    return USER_ERROR


def _show(error: BaseException, shows: bool) -> None:
    if shows:
        traceback.print_exception(error, file=sys.stderr)


def _unexpected(error: Exception, argv: Sequence[str], shows: bool) -> int:
    versions = environment.versions()
    names = ("metalearn", "jax", "python")
    found = ", ".join(f"{name} {versions[name]}" for name in names)
    command = shlex.join(["metalearn", *argv])
    report = f"{command}\n{found}, {platform.platform()}\n\n"
    report += "".join(traceback.format_exception(error))
    place = None if shows else _written(report)
    if place is None:
        print(report, file=sys.stderr)
        rest = "Its traceback is above."
    else:
        rest = f"Its traceback is in {place}; --traceback shows it here."
    print(
        f"metalearn: unexpected error: {in_short(error)} {_place(error)}\n"
        f"Nobody expected this: it is a fault of metalearn, of a package that it uses, or "
        f"of code of yours that it calls ({found}). {rest} Please report it with the "
        f"traceback and the command:\n  {command}",
        file=sys.stderr,
    )
    return FAILED


def _place(error: Exception) -> str:
    """File and line that raised the error."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _written(report: str) -> str | None:
    """Path of a new file with the report; `None` if no file can be written."""
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="metalearn-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(report)
        return path
    return None
