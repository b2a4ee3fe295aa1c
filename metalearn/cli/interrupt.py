"""Ctrl-C at any moment of a command, also while a program is compiled.

Python would raise `KeyboardInterrupt` in whatever it runs next: after minutes of native
code, in a callback of the garbage collector, which drops it, or in one of native code,
which may not survive it; and to leave the interpreter while native threads compile can end
in a segmentation fault. So a thread waits for the signal and ends the process from there,
with nothing to unwind. Every file of a run is written whole or not at all, as for SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
GRACE_S = 5.0

_state = {"armed": False, "say": lambda: "Interrupted."}
_at_once = threading.Event()


def arm() -> None:
    """Sees to it that SIGINT is never lost; for a process that is a command and no more.

    At first `KeyboardInterrupt` has five seconds to unwind what is being prepared; after
    `at_once` there is nothing to unwind.
    """
    if _state["armed"] or threading.current_thread() is not threading.main_thread():
        return
    _state["armed"] = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_wait, args=(reader,), daemon=True, name="signals").start()
    # Written by the handler in C, whatever the main thread does meanwhile.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


def at_once(say: Callable[[], str]) -> None:
    """From here on SIGINT and SIGTERM end the process at once, with a message.

    Without effect in a process that only calls the commands, such as a test. A signal that
    the process was started to ignore is ignored from here on as well.

    Args:
      say: Function that returns the message, for standard error.
    """
    _state["say"] = say
    if _state["armed"] and not _at_once.is_set():
        for number in STATUS:
            # A shell lets what a script runs in the background ignore SIGINT: who
            # interrupts the script does not mean it.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _nothing)
        _at_once.set()


def _nothing(number: int, frame: object) -> None:
    """Handler in place of the one that raises; `_wait` does the work."""


def _wait(reader: int) -> None:
    while number := os.read(reader, 1):
        if number[0] in STATUS:
            _at_once.wait(GRACE_S)
            _end(number[0])


def _end(number: int) -> None:
    with contextlib.suppress(BaseException):  # nothing may keep the process from its end
        os.write(2, f"\n{_state['say']()}\n".encode(errors="backslashreplace"))
    with contextlib.suppress(BaseException):
        if "multiprocessing" in sys.modules:  # readers of a stream
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()
    os._exit(STATUS[number])
