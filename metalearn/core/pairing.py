"""Losses and metrics of users that hold every output against every target.

Outputs `[N, 1]` less targets `[N]` are `[N, N]` by broadcasting, and the mean of their
squares learns the mean target. No shape is wrong and nothing fails.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import losses, probe
from metalearn.core.task import Examples
from metalearn.core.trees import leaf_paths
from metalearn.core.types import PyTree


def paired(fn: Callable, outputs: PyTree, examples: Examples) -> Any:
    """What a loss or metric says of a set, if it pairs each output with its own target.

    A broadcast over ranks, such as `x - x.mean(0)`, is a suspicion and no more. Whether
    outputs and targets are paired is then found by numbers: a function that pairs them
    changes when the targets alone change places.

    Args:
      fn: Function `(outputs, examples) -> scalar`.
      outputs: Outputs of the network, `[N, ...]`.
      examples: Examples, `[N, ...]`.

    Raises:
      ValueError: the function broadcasts over ranks, depends on the targets, and does not
        notice when they change places.
    """
    if losses.is_own(fn):  # they compare the shapes themselves
        return fn(outputs, examples)
    try:
        with jax.numpy_rank_promotion("raise"):
            return fn(outputs, examples)
    except ValueError as error:
        if "rank_promotion" not in str(error):
            raise
        if _mixes(fn, outputs, examples):
            raise ValueError(_told(fn, outputs, examples)) from error
    return fn(outputs, examples)


def _mixes(fn: Callable, outputs: PyTree, examples: Examples) -> bool:
    """Whether targets matter to a function, and their order does not."""
    num = examples.mask.shape[0]
    if num < 2:  # one output has one target
        return False
    try:
        with jax.ensure_compile_time_eval(), jax.numpy_rank_promotion("allow"):
            made, x = (probe.sample(probe.like(part), 0) for part in (outputs, examples.x))
            y = jax.tree.map(_targets, probe.like(examples.y))

            def at(y: PyTree) -> np.ndarray:
                rows = Examples(x=x, y=y, mask=jnp.ones(num, bool))
                return np.asarray(fn(made, rows), np.float64)

            here = at(y)
            turned = at(jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), y))
            other = at(jax.tree.map(lambda leaf: jnp.zeros_like(leaf), y))
    except Exception:  # it does not take numbers of our making, which says nothing
        return False
    return np.allclose(here, turned, rtol=1e-5) and not np.allclose(here, other, rtol=1e-5)


def _targets(leaf: jax.ShapeDtypeStruct) -> Any:
    """Targets that are others when they are turned by one."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return probe.sample(leaf, 1)
    first = np.arange(leaf.shape[0]) == 0
    return jnp.asarray(
        np.broadcast_to(first.reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape), leaf.dtype
    )


def _told(fn: Callable, outputs: PyTree, examples: Examples) -> str:
    def shapes(tree: PyTree) -> str:
        pairs = zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True)
        return ", ".join(f"{p} {jnp.shape(v)}".strip() for p, v in pairs)

    name = getattr(fn, "__name__", "the loss")
    return (
        f"{name} broadcasts outputs of shape {shapes(outputs)} against targets y of shape "
        f"{shapes(examples.y)}, each output against each target: it stays the same when "
        "targets change places. Bring both to one shape, such as "
        "outputs.reshape(examples.y.shape), before they are subtracted."
    )
