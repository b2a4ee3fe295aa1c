"""Which errors were meant, and what to say of damaged files.

An error that a file of this package raises by `raise` has a message for its reader. An
error that the interpreter or another library raises has none: its cause is a fault of a
program, or a file whose contents are not what they should be.
"""

from __future__ import annotations

import contextlib
import linecache
from collections.abc import Iterator
from pathlib import Path

import jax

_PACKAGE = Path(__file__).parents[1]


def is_said(error: BaseException) -> bool:
    """Whether a file of this package raised the error by `raise`, with its own message.

    Args:
      error: Error that was caught.

    Example:
      >>> try:
      ...     ml.task_mesh(0)
      ... except ValueError as error:
      ...     print(is_said(error))
      True
    """
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    # A call or a look-up that fails stands in a line of this package as well; what that
    # line says tells it from `raise`.
    line = linecache.getline(file, trace.tb_lineno, trace.tb_frame.f_globals)
    return line.split()[:1] == ["raise"] and Path(file).is_relative_to(_PACKAGE)


@contextlib.contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Names what was being read in errors that nobody meant.

    Files that somebody edited or a disk damaged break whatever interprets them, with any
    error. Errors with a message of this package, errors of the system and a lack of memory
    or of a package pass as they are.

    Args:
      what: What is read, as the start of a sentence.
      remedy: What to do about it, as a sentence.

    Raises:
      ValueError: anything else went wrong inside.
    """
    try:
        yield
    except Exception as error:
        passes = (OSError, MemoryError, ImportError, jax.errors.JaxRuntimeError)
        if isinstance(error, passes) or is_said(error):
            raise
        raise ValueError(f"{what} cannot be read ({in_short(error)}). {remedy}") from error


def in_short(error: BaseException, limit: int = 300) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0][:limit] + ("..." if len(lines[0]) > limit else "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
