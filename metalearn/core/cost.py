"""How many tasks to handle at once: by the memory traffic of one, fewer if memory ends.

On a CPU a task whose arrays fit the cache should be finished before the next begins;
only tasks so small that the cost of launching operations dominates are worth batching.
Accelerators want all tasks at once.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

# Traffic of the tasks handled at once, counted before the compiler fuses anything, up to
# which batching wins on a CPU (measured: benchmarks/NOTES.md, "Tasks at once").
CPU_BYTES_AT_ONCE = 64 * 2**20
EVERYTHING = 1 << 30


@dataclasses.dataclass
class Choice:
    """What is chosen while a program is traced.

    Attributes:
      limit: Number of tasks at once that is not to be exceeded.
      chosen: Number of tasks at once that was taken; `None` until a program is traced.
    """

    limit: int = EVERYTHING
    chosen: int | None = None


_CHOICE: contextvars.ContextVar[Choice | None] = contextvars.ContextVar(
    "tasks at once", default=None
)


@contextlib.contextmanager
def choosing(choice: Choice) -> Iterator[None]:
    """Around what is traced: keeps `"auto"` within the limit, notes what was taken."""
    choice.chosen = None  # a program may be traced again, for another mesh
    token = _CHOICE.set(choice)
    try:
        yield
    finally:
        _CHOICE.reset(token)


def note(chosen: int) -> None:
    """Remembers the number taken for the block of `choosing` around, if any."""
    if choice := _CHOICE.get():
        # The remainder that does not divide over devices is traced for itself.
        choice.chosen = max(chosen, choice.chosen or 0)


class OutOfMemory(MemoryError):
    """A program does not fit the memory of the device."""


def with_room(
    make: Callable[[int], tuple[Callable, Choice]], call: Callable, *args: Any
) -> tuple[Callable, Any, Choice]:
    """Runs a program, made again for fewer tasks at once each time that memory ends.

    Args:
      make: `limit -> (program, its choice)`.
      call: `(program, *args)`, runs it and waits; has to leave the arguments whole.
      *args: Further arguments of `call`.

    Returns:
      The program that fits, its first result, and its choice.

    Raises:
      OutOfMemory: not even one task at a time fits, or several processes would have to
        agree on less; says what else to try.
    """
    limit = EVERYTHING
    while True:
        program, choice = make(limit)
        try:
            return program, call(program, *args), choice
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            # More than the limit: a fixed task_chunk, which is the user's word.
            fixed = choice.chosen is None or choice.chosen > limit
            if fixed or choice.chosen == 1 or jax.process_count() > 1:
                raise OutOfMemory(_NO_ROOM.format(choice.chosen, error)) from error
            limit = choice.chosen // 2


_NO_ROOM = (
    "a step with {} tasks at once does not fit the memory of the device ({}). Lower "
    "task_chunk, if it is not 1 already, and the number of tasks of a step. Then store "
    "less of the inner loop: "
    "differentiation='mixed', 'remat' or 'nested' in place of 'reverse', or fewer inner "
    "steps; or take a smaller network or fewer queries."
)


def check_room(name: str, num: int, one_task: Any) -> None:
    """Refuses a batch of tasks that does not fit the memory, before it is asked for.

    Args:
      name: Argument that asks for `num` tasks.
      num: Number of tasks of the batch.
      one_task: A task, or the shapes of one.

    Raises:
      ValueError: the examples alone are larger than the memory.
    """
    each, room = sum(map(_bytes, jax.tree.leaves(one_task))), memory()
    if room is not None and num * each > room:
        raise ValueError(
            f"{name} is {num}, but {num} tasks of {in_bytes(each)} are "
            f"{in_bytes(num * each)}, and the memory is {in_bytes(room)}. Ask for at most "
            f"{room // each} tasks, and far fewer for activations to fit."
        )


def check_bytes(what: str, needed: int, remedy: str, room: int | None) -> None:
    """Refuses what is larger than the memory, before it is made.

    Args:
      what: What would be made, as the start of a sentence.
      needed: Bytes of it.
      remedy: What to do, as a sentence.
      room: Bytes of the memory; None where they are not known, and nothing is refused.

    Raises:
      ValueError: the machine has less memory.
    """
    if room is not None and needed > room:
        raise ValueError(
            f"{what} would take {in_bytes(needed)}, and this machine has "
            f"{in_bytes(room)} of memory. {remedy}"
        )


def available() -> int | None:
    """Bytes of memory of this machine or of its devices, whichever is more, if known.

    With several processes, the memory of as many machines.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    devices = sum(int(numbers.get("bytes_limit", 0)) for numbers in stats)
    most = max(host_memory() or 0, devices)
    return most * jax.process_count() if most else None


def host_memory() -> int | None:
    """Bytes of memory of this machine beside that of its devices, if known.

    What is read on the host is measured by it: to ask for devices would start them, after
    which `jax.distributed.initialize` is refused.
    """
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


def memory() -> int | None:
    """Bytes of the memory in which arrays of the default device lie, if known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats["bytes_limit"]) if "bytes_limit" in stats else host_memory()


def tasks_at_once(fn: Callable[..., Any], *one_task: Any) -> int:
    """Tasks to handle at once on the default backend, within the limit of `choosing`.

    Args:
      fn: Computation on a batch of tasks. That of a jitted function is traced once, for
        the count and for the program.
      *one_task: Arguments of `fn` for a batch of one task.
    """
    choice = _CHOICE.get()
    limit = EVERYTHING if choice is None else choice.limit
    if jax.default_backend() != "cpu":
        return limit
    traffic = traced_bytes(jax.make_jaxpr(fn)(*one_task).jaxpr)
    return min(limit, max(1, int(CPU_BYTES_AT_ONCE // max(traffic, 1))))


def traced_bytes(jaxpr: Any) -> int:
    """Bytes written by all equations, loop bodies counted as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if inner := subjaxprs(eqn):
            times = eqn.params.get("length", 1)
            total += times * sum(traced_bytes(sub) for sub in inner)
        else:
            total += sum(_bytes(var.aval) for var in eqn.outvars)
    return total


def subjaxprs(eqn: Any) -> list[Any]:
    """The jaxprs inside an equation: of a loop, a branch, a call."""
    return [
        getattr(sub, "jaxpr", sub)
        for value in eqn.params.values()
        for sub in (value if isinstance(value, (tuple, list)) else (value,))
        if hasattr(getattr(sub, "jaxpr", sub), "eqns")
    ]


def in_bytes(number: float) -> str:
    """A number of bytes in words.

    Example:
      >>> in_bytes(0), in_bytes(2_352), in_bytes(8 * 2**30)
      ('0 bytes', '2.352 kB', '8.59 GB')
    """
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(max(number, 1))) // 3, len(units) - 1)
    return f"{number / 1000**power:,.4g} {units[power]}"


def _bytes(aval: Any) -> int:
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return math.prod(getattr(aval, "shape", ())) * itemsize
