"""Whether settings fit the memory of a machine, by shapes alone."""

from __future__ import annotations

import math
from typing import Any

import jax

from metalearn.core.cost import available, check_bytes


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
    check_bytes(what, copies * each, remedy, available())
