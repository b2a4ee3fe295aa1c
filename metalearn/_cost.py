"""How many tasks to handle at once: a count of the memory traffic of one task.

On a CPU a task whose arrays fit the cache should be finished before the next begins;
only tasks so small that the cost of launching operations dominates are worth batching.
Accelerators want all tasks at once.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# Traffic of the tasks handled at once, counted before the compiler fuses anything, up to
# which batching wins on a CPU (measured: benchmarks/NOTES.md, "Tasks at once").
CPU_BYTES_AT_ONCE = 600 * 2**20
EVERYTHING = 1 << 30


@dataclasses.dataclass
class Choice:
    """What was chosen while a program was traced.

    Attributes:
      limit: Tasks at once that are not to be exceeded.
      chosen: The number taken, once something was traced.
    """

    limit: int = EVERYTHING
    chosen: int | None = None


_CHOICE_DEFAULT = Choice()
_CHOICE: contextvars.ContextVar[Choice] = contextvars.ContextVar(
    "tasks at once", default=_CHOICE_DEFAULT
)


@contextlib.contextmanager
def choosing(limit: int = EVERYTHING) -> Iterator[Choice]:
    """Keeps `"auto"` at or below a limit inside the block, and tells what it took."""
    choice = Choice(limit)
    token = _CHOICE.set(choice)
    try:
        yield choice
    finally:
        _CHOICE.reset(token)


def tasks_at_once(fn: Callable[..., Any], *one_task: Any) -> int:
    """Tasks to handle at once on the default backend, within the limit of `choosing`.

    Args:
      fn: The computation on a batch of tasks.
      *one_task: Its arguments for a batch of one task.
    """
    limit = _CHOICE.get().limit
    if jax.default_backend() != "cpu":
        return limit
    traffic = traced_bytes(jax.make_jaxpr(fn)(*one_task).jaxpr)
    return min(limit, max(1, int(CPU_BYTES_AT_ONCE // max(traffic, 1))))


def note(chosen: int) -> None:
    """Remembers the number taken for the block of `choosing` around, if any."""
    choice = _CHOICE.get()
    if choice is not _CHOICE_DEFAULT:
        choice.chosen = chosen


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


def _bytes(aval: Any) -> int:
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return int(np.prod(getattr(aval, "shape", ()))) * itemsize
