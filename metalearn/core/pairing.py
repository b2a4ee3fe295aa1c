"""Losses and metrics of users that mix the examples of a set.

Outputs `[N, 1]` less targets `[N]` are `[N, N]` by broadcasting, and the mean of their
squares learns the mean target. Errors `[N, 1]` times the mask `[N]` are `[N, N]` as well:
their sum counts every example N times, the masked ones too. No shape is wrong and nothing
fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import cost, losses, probe
from metalearn.core.task import Examples
from metalearn.core.trees import leaf_paths
from metalearn.core.types import Array, PyTree


def paired(fn: Callable, outputs: PyTree, examples: Examples) -> Any:
    """What a loss or metric says of a set, if it pairs each output with its own target.

    A broadcast over ranks, such as `x - x.mean(0)`, or an array `[N, N]` is a suspicion and
    no more. What is mixed is then found by numbers: a function that pairs outputs and
    targets changes when the targets alone change places, and one that heeds the mask does
    not look at the target of a masked row.

    Args:
      fn: Function `(outputs, examples) -> scalar`.
      outputs: Outputs of the network, `[N, ...]`.
      examples: Examples, `[N, ...]`.

    Raises:
      ValueError: the function is suspicious, and either depends on the targets and
        does not notice when they change places, or reads the mask and counts a masked row.
    """
    if losses.is_own(fn):  # they compare the shapes themselves
        return fn(outputs, examples)
    try:
        with jax.numpy_rank_promotion("raise"):
            found, suspicious = fn(outputs, examples), _squares(fn, outputs, examples)
    except ValueError as error:
        if "rank_promotion" not in str(error):
            raise
        found, suspicious = fn(outputs, examples), True
    if suspicious and (fault := _fault(fn, outputs, examples)):
        raise ValueError(fault)
    return found


def _squares(fn: Callable, outputs: PyTree, examples: Examples) -> bool:
    """Whether a function makes arrays of more axes of length N than it is given."""
    num = examples.mask.shape[0]

    def most(shapes: Iterable[tuple[int, ...]]) -> int:
        return max((shape.count(num) for shape in shapes), default=0)

    def made(jaxpr: Any) -> Iterator[tuple[int, ...]]:
        for eqn in jaxpr.eqns:
            yield from (getattr(var.aval, "shape", ()) for var in eqn.outvars)
            for inner in cost.subjaxprs(eqn):
                yield from made(inner)

    try:
        program = jax.make_jaxpr(fn)(outputs, examples).jaxpr
    except Exception:  # it wants numbers, which says nothing
        return False
    given = [jnp.shape(leaf) for leaf in jax.tree.leaves((outputs, examples))]
    return most(made(program)) > most(given)


def _fault(fn: Callable, outputs: PyTree, examples: Examples) -> str | None:
    """What a function mixes, in words; `None` if nothing is found."""
    num = examples.mask.shape[0]
    if num < 2:  # one output has one target
        return None
    try:
        with jax.ensure_compile_time_eval(), jax.numpy_rank_promotion("allow"):
            made, x = (probe.sample(probe.like(part), 0) for part in (outputs, examples.x))
            y = jax.tree.map(_targets, probe.like(examples.y))

            def at(y: PyTree, mask: Array) -> np.ndarray:
                return np.asarray(fn(made, Examples(x=x, y=y, mask=mask)), np.float64)

            valid = jnp.ones(num, bool)
            here = at(y, valid)
            turned = at(jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), y), valid)
            other = at(jax.tree.map(lambda leaf: jnp.zeros_like(leaf), y), valid)
            # The first target is one that `_targets` makes no zero.
            some = valid.at[0].set(False)
            hidden = jax.tree.map(lambda leaf: leaf.at[0].set(0), y)
            counts = not _close(at(y, some), at(hidden, some))
            program = jax.make_jaxpr(lambda mask: fn(made, Examples(x=x, y=y, mask=mask)))(
                valid
            ).jaxpr
            reads = any(program.invars[0] in eqn.invars for eqn in program.eqns)
    except Exception:  # it does not take numbers of our making, which says nothing
        return None
    if _close(here, turned) and not _close(here, other):
        return _told(fn, outputs, examples)
    if reads and counts:
        return _told_of_mask(fn, examples)
    return None


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=1e-5)


def _targets(leaf: jax.ShapeDtypeStruct) -> Any:
    """Targets that are others when they are turned by one."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return probe.sample(leaf, 1)
    first = np.arange(leaf.shape[0]) == 0
    return jnp.asarray(
        np.broadcast_to(first.reshape(-1, *[1] * (leaf.ndim - 1)), leaf.shape), leaf.dtype
    )


def _told_of_mask(fn: Callable, examples: Examples) -> str:
    name = getattr(fn, "__name__", "the loss")
    return (
        f"{name} reads the mask of shape {examples.mask.shape} and counts masked rows all "
        "the same: it broadcasts the mask against errors of another shape, each with each. "
        "Bring the errors to one number an example, [N], before they are weighed: "
        "ml.masked_mean(errors, examples.mask)."
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
