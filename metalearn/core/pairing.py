"""Losses and metrics of users that mix the examples of a set.

Outputs `[N, 1]` less targets `[N]` are `[N, N]` by broadcasting, and the mean of their
squares learns the mean target. Errors `[N, 1]` times the mask `[N]` are `[N, N]` as well:
their sum counts every example N times, the masked ones too. No shape is wrong and nothing
fails.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import cost, flow, losses, probe
from metalearn.core.task import Examples
from metalearn.core.trees import leaf_paths
from metalearn.core.types import PyTree

# By how many places examples are turned: what counts hits stays the same by chance.
TURNS = (1, 2)
# What was found out about a function for arguments of certain shapes: a fault in words.
_VERDICTS: weakref.WeakKeyDictionary[Any, dict[tuple, str | None]] = (
    weakref.WeakKeyDictionary()
)


def paired(fn: Callable, outputs: PyTree, examples: Examples) -> Any:
    """What a loss or metric says of a set, if it keeps the examples of the set apart.

    A broadcast over ranks, such as `x - x.mean(0)`, or an array `[N, N]` is a suspicion and
    no more. What is mixed is then found by numbers, once for each function and shape: one
    that heeds the mask does not look at a masked row, and one that pairs outputs and
    targets changes when either alone changes places. The latter is asked only after a
    broadcast over ranks: a distance of two sets does not change either, and
    who writes one says so by explicit axes.

    Args:
      fn: Function `(outputs, examples) -> scalar`.
      outputs: Outputs of the network, `[N, ...]`.
      examples: Examples, `[N, ...]`.

    Raises:
      ValueError: the function is suspicious, and either depends on the targets and does not
        notice when they change places, or reads the mask and counts a masked row.
    """
    if losses.is_own(fn):  # they compare the shapes themselves
        return fn(outputs, examples)
    verdicts = probe.memory(_VERDICTS, fn, dict)
    asked = probe.signature(outputs, examples)
    if asked not in verdicts:
        verdicts[asked] = _verdict(fn, outputs, examples)
    if verdicts[asked] is not None:
        raise ValueError(verdicts[asked])
    return fn(outputs, examples)


def _verdict(fn: Callable, outputs: PyTree, examples: Examples) -> str | None:
    """What a function mixes, in words; `None` if nothing is found."""
    num = examples.mask.shape[0]
    if num < 3:  # two classes that change places are the same pairs of classes
        return None
    parts = probe.like((outputs, examples))

    def most(shapes: Iterable[tuple[int, ...]]) -> int:
        return max((shape.count(num) for shape in shapes), default=0)

    try:
        with jax.numpy_rank_promotion("raise"):
            made = _shapes(jax.make_jaxpr(fn)(*parts).jaxpr)
    except ValueError as error:
        promotes = "rank_promotion" in str(error)
        suspicious = promotes
    except Exception:  # the call itself will tell
        return None
    else:
        given = (leaf.shape for leaf in jax.tree.leaves(parts))
        promotes, suspicious = False, most(made) > most(given)
    if not suspicious:
        return None
    try:
        with jax.ensure_compile_time_eval(), jax.numpy_rank_promotion("allow"):
            turned, counts = _found_by_numbers(fn, *parts)
    except Exception:  # it does not take numbers of our making, which says nothing
        return None
    if promotes and turned:
        return _told(fn, outputs, examples)
    return _told_of_mask(fn, examples) if counts else None


def _shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all that a program makes."""
    for eqn in jaxpr.eqns:
        yield from (getattr(var.aval, "shape", ()) for var in eqn.outvars)
        for inner in cost.subjaxprs(eqn):
            yield from _shapes(inner)


def _found_by_numbers(
    fn: Callable, outputs: PyTree, examples: Examples
) -> tuple[bool, bool]:
    """Whether the order of targets that matter is no matter; whether masked rows count.

    What counts hits agrees by chance, hence several draws, of which all have to agree.
    """
    valid = jnp.ones(examples.mask.shape[0], bool)
    some = valid.at[0].set(False)
    at = jax.jit(
        lambda out, x, y, mask: jnp.asarray(fn(out, Examples(x=x, y=y, mask=mask)), float)
    )
    found = []
    for out, x, y in _draws(outputs, examples):
        # The first target is one that `_targets` makes no zero.
        nothing = jax.tree.map(jnp.zeros_like, y)
        cases = {
            "here": (out, x, y, valid),
            **{("targets", n): (out, x, _turned(y, n), valid) for n in TURNS},
            **{("outputs", n): (_turned(out, n), x, y, valid) for n in TURNS},
            "no target": (out, x, nothing, valid),
            "masked": (out, x, y, some),
            "unseen": (_without_first(out), x, _without_first(y), some),
        }
        values = {name: np.asarray(at(*case)) for name, case in cases.items()}
        if not all(np.isfinite(value).all() for value in values.values()):
            continue  # it wants numbers of another kind
        same = {name: _close(values["here"], value) for name, value in values.items()}
        turned = any(all(same[part, n] for n in TURNS) for part in ("targets", "outputs"))
        counts = not _close(values["masked"], values["unseen"])
        found.append((turned and not same["no target"], counts))
    if not found:
        return False, False
    turned, counts = (all(part) for part in zip(*found, strict=True))
    if counts:  # a function that does not read the mask may count masked rows
        program = jax.make_jaxpr(lambda mask: at(out, x, y, mask))(valid)
        counts = 0 in flow.of_outputs(program.jaxpr, program.consts)[0].sources
    return turned, counts


def _draws(outputs: PyTree, examples: Examples) -> Iterator[tuple[PyTree, PyTree, PyTree]]:
    """Outputs, inputs and targets: of both signs, wide ones, and positive ones below 1."""
    for seed, change in enumerate([lambda t: t, *[lambda t: 9 * t] * 5, jnp.abs, jnp.abs]):
        drawn = [probe.sample(part, 5 * seed) for part in (outputs, examples.x)]
        y = jax.tree.map(lambda leaf, seed=seed: _targets(leaf, seed), examples.y)
        yield tuple(jax.tree.map(_of_reals(change), part) for part in (*drawn, y))


def _of_reals(change: Callable) -> Callable:
    return lambda t: change(t) if jnp.issubdtype(t.dtype, jnp.inexact) else t


def _turned(tree: PyTree, by: int) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.roll(leaf, by, axis=0), tree)


def _without_first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.at[0].set(leaf[-1]), tree)


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=1e-5)


def _targets(leaf: jax.ShapeDtypeStruct, seed: int) -> Any:
    """Targets that are others when they are turned by one."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return probe.sample(leaf, 5 * seed + 1)
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
        "either changes places. Bring both to one shape, such as "
        "outputs.reshape(examples.y.shape), before they are subtracted."
    )
