"""Whether settings fit the memory of a machine, by shapes alone."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import jax

from metalearn.core.cost import in_bytes


def check_fits(what: str, tree: Any, remedy: str, *, copies: int = 1) -> None:
    """Refuses arrays that are larger than all memory, before any is made.

    Args:
      what: What the arrays are, as the start of a sentence.
      tree: Arrays, or their shapes and dtypes.
      remedy: What to do, as a sentence.
      copies: Number of times that the arrays are needed.

    Raises:
      ValueError: the arrays need more than the machine has.
    """
    leaves = jax.tree.leaves(tree)
    # In Python's integers, for the products may be beyond 64 bits.
    each = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    needed, there = copies * each, available()
    if needed > there:
        raise ValueError(
            f"{what} would take {in_bytes(needed)}, and this machine has "
            f"{in_bytes(there)} of memory. {remedy}"
        )


def available() -> int:
    """Bytes of memory of this machine or of its devices, whichever is more.

    With several processes, the memory of as many machines.
    """
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    devices = sum(int(numbers.get("bytes_limit", 0)) for numbers in stats)
    return max(found, devices) * jax.process_count()
