"""Arrays of steps `[..., H]` of episodes: their shapes, their masks and their averages."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.types import Array

Over = Literal["episodes", "steps"]


def check(mask: Array, **arrays: Array) -> None:
    """Checks arrays that have one value a step.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: an array has another shape than the mask.
    """
    checks.mask_of_bools(mask, "mask")
    for name, array in arrays.items():
        if jnp.shape(array) != jnp.shape(mask):
            raise ValueError(
                f"{name} has shape {jnp.shape(array)}, but mask has {jnp.shape(mask)}; "
                "expected one value a step, [E, H]. For a batch of tasks use jax.vmap."
            )


def average(values: Array, mask: Array, over: str) -> Array:
    """The mean over episodes of sums over their steps, or the mean over valid steps.

    Args:
      values: Values of steps, float `[E, H]`.
      mask: Mask of the valid steps, bool `[E, H]`.
      over: "episodes" or "steps".

    Raises:
      ValueError: `over` is something else, or the arrays are not `[E, H]`.
    """
    checks.one_of("over", over, ("episodes", "steps"))
    if jnp.ndim(mask) != 2:
        raise ValueError(
            f"mask has shape {jnp.shape(mask)}; expected [E, H], steps of episodes of one "
            "task. For a batch of tasks use jax.vmap."
        )
    total = jnp.sum(jnp.where(mask, values, 0.0))
    if over == "episodes":
        return total / mask.shape[0]
    return total / jnp.maximum(jnp.sum(mask, dtype=total.dtype), 1)
