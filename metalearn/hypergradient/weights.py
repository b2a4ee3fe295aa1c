"""Weights of examples: from scores to weights, from groups to their members."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.types import Array


def normalised(scores: Array, mask: Array | None = None) -> Array:
    """The positive part of scores, divided by its sum; zeros where none is positive.

    A step on losses with weights of zero leaves the parameters where they are.

    Args:
      scores: Scores `[N]`.
      mask: Mask of the valid rows, bool `[N]`; all if `None`. The others get a weight of 0.

    Returns:
      Weights `[N]` of 0 or more, whose sum is 1 or 0; NaN if a score is infinite or NaN.

    Raises:
      TypeError: the scores are not floating numbers, or the mask is not of bools.
      ValueError: the scores are not `[N]`, or the mask has another shape.

    Example:
      >>> normalised(jnp.array([3.0, -2.0, 1.0]))
      Array([0.75, 0.  , 0.25], dtype=float32)
    """
    scores = jnp.asarray(scores)
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(
            f"scores are of the dtype {scores.dtype}; expected floating numbers. Write "
            "scores.astype(float)."
        )
    if scores.ndim != 1:
        raise ValueError(
            f"scores are an array {list(scores.shape)}; expected [N]. Use jax.vmap for "
            "several sets of them."
        )
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.dtype != jnp.bool_:
            raise TypeError(f"mask is of the dtype {jnp.result_type(mask)}; expected bool.")
        if jnp.shape(mask) != scores.shape:
            raise ValueError(
                f"mask is an array {list(jnp.shape(mask))} and scores are an array "
                f"{list(scores.shape)}; expected the same shape."
            )
        scores = jnp.where(mask, scores, 0)
    positive = jnp.maximum(scores, 0)
    most = jnp.max(positive, initial=0)
    some = ~(most <= 0)  # also where a score is NaN, which then shows in all weights
    # By the largest first: in half precision a sum is soon infinite.
    shares = positive / jnp.where(some, most, 1)
    shares = shares.astype(jnp.promote_types(scores.dtype, jnp.float32))
    weights = shares / jnp.where(some, jnp.sum(shares), 1)
    return weights.astype(scores.dtype)


def by_group(values: Array, groups: Array) -> Array:
    """The value of each example's group.

    Args:
      values: Values `[G]`, one a group.
      groups: Group of each example, integers `[N]` of `0..G-1`.

    Returns:
      Values `[N]`. A group out of range gives NaN within `jit`, where it cannot be refused.

    Raises:
      TypeError: the groups are not integers, or the values not floating numbers.
      ValueError: a shape is wrong, or a group is out of range.

    Example:
      >>> by_group(jnp.array([0.5, 2.0]), jnp.array([1, 1, 0]))
      Array([2. , 2. , 0.5], dtype=float32)
    """
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(
            f"values are of the dtype {values.dtype}; expected floating numbers."
        )
    groups = jnp.asarray(groups)
    if not jnp.issubdtype(groups.dtype, jnp.integer):
        raise TypeError(
            f"groups are of the dtype {jnp.result_type(groups)}; expected integers 0..G-1."
        )
    if values.ndim != 1 or jnp.ndim(groups) != 1:
        raise ValueError(
            f"values are an array {list(values.shape)} and groups an array "
            f"{list(jnp.shape(groups))}; expected [G] and [N]."
        )
    num = values.shape[0]
    if not isinstance(groups, jax.core.Tracer):
        found = np.asarray(groups)
        if found.size and (found.min() < 0 or found.max() >= num):
            raise ValueError(
                f"groups are {found.min()}..{found.max()}; expected 0..{num - 1}, for "
                f"there are {num} values."
            )
    if groups.dtype.itemsize < 4:  # G may lie beyond what its dtype holds
        groups = groups.astype(jnp.int32)
    # A negative number would count from the end.
    groups = jnp.where(groups < 0, num, groups)
    return values.at[groups].get(mode="fill", fill_value=jnp.nan)
