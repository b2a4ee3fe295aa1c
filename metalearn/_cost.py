"""How many tasks to handle at once: a count of the memory traffic of one task.

On a CPU a task whose arrays fit the cache should be finished before the next begins;
only tasks so small that the cost of launching operations dominates are worth batching.
Accelerators want all tasks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# Traffic of the tasks handled at once, counted before the compiler fuses anything, up to
# which batching wins on a CPU (measured: benchmarks/NOTES.md, "Tasks at once").
CPU_BYTES_AT_ONCE = 600 * 2**20
EVERYTHING = 1 << 30


def tasks_at_once(fn: Callable[..., Any], *one_task: Any) -> int:
    """Tasks to handle at once on the default backend.

    Args:
      fn: The computation on a batch of tasks.
      *one_task: Its arguments for a batch of one task.
    """
    if jax.default_backend() != "cpu":
        return EVERYTHING
    traffic = traced_bytes(jax.make_jaxpr(fn)(*one_task).jaxpr)
    return max(1, int(CPU_BYTES_AT_ONCE // max(traffic, 1)))


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
