"""Class indices and the logits that have to hold them, counted on the device."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from metalearn.core import losses, trees
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, PyTree

PARTS = ("support", "query")


def num_classes(loss_fn: Callable | None, outputs: PyTree, y: PyTree) -> int | None:
    """W of logits `[N, W]` where the targets `y` are class indices; `None` elsewhere.

    Integers `[N]` are class indices. One output a row says nothing of classes, unless the
    loss is one of classes: it may be a count, or the logit of yes against no.

    Args:
      loss_fn: Loss of the outputs, if known.
      outputs: Predictions, or their shapes.
      y: Targets, or their shapes.
    """
    if not is_classes(y) or y.ndim != 1 or getattr(outputs, "ndim", 0) != 2:
        return None
    ways = int(outputs.shape[-1])
    return ways if ways > 1 or losses.takes_classes(loss_fn) else None


def is_classes(y: PyTree) -> bool:
    """Whether targets are an array of integers."""
    return hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.integer)


def outside(examples: Examples, ways: int) -> Array:
    """Valid labels that no logit stands for, int32 `[]`, or `[T]` of a batch of tasks."""
    y, mask = examples.y, examples.mask
    if not is_classes(y) or y.ndim != mask.ndim:
        return jnp.zeros(mask.shape[:-1], jnp.int32)
    if y.dtype.itemsize < 4:  # W may lie beyond what its dtype holds
        y = y.astype(jnp.int32)
    return jnp.sum(((y < 0) | (y >= ways)) & mask, axis=-1, dtype=jnp.int32)


def outside_of(tasks: Task, ways: int) -> Array:
    """`outside` of support and query, int32 `[2]`, or `[T, 2]` of a batch of tasks."""
    return jnp.stack([outside(getattr(tasks, part), ways) for part in PARTS], axis=-1)


def message(number: int, where: str, part: str, ways: int, several: str = "") -> str:
    """What to say of labels outside the logits.

    Args:
      number: Number of such labels.
      where: Task that holds the first of them.
      part: Word of `PARTS`.
      ways: W.
      several: What else was found, such as the number of tasks.
    """
    return (
        f"{where} holds labels outside the logits of the model in {part}.y: {number} "
        f"valid labels{several} are not in 0..{ways - 1}. Give the model at least as many "
        "outputs as the tasks have ways, and labels from 0; mask padded rows. Targets that "
        "are no classes have to be floats."
    )


def not_finite(examples: Examples) -> Array:
    """Whether x or y hold what is no finite number, a bool scalar."""
    return ~trees.all_finite((examples.x, examples.y))
