"""The state of a model whose running averages equal the statistics of one batch.

A running average is a number `s` that a training pass moves to `m s + (1 - m) b`, where `b`
is the statistic of the batch and the decay `m` is a constant, as every batch norm does it.
Other state exists: counters, running maxima, averages of weights, vectors of power
iterations. `kinds` finds out what each number is before any of them is relied on.
"""

from __future__ import annotations

import weakref
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import probe, trees
from metalearn.core.model import Model, Variables, run
from metalearn.core.task import Examples
from metalearn.core.types import Array, PyTree

# How the value for a batch is found.
#   "average": by two training passes, one from zero and one from a large number.
#   "fresh": by a training pass from a state of zeros, as an average that is corrected for
#     its start is the statistic of the batch after one pass.
#   "kept": it is the old value. Nothing moves it, or it is an integer or a counter, which
#     knows nothing of the batch.
Kind = Literal["average", "fresh", "kept"]

_FOUND: weakref.WeakKeyDictionary[Any, dict] = weakref.WeakKeyDictionary()
_TOLERANCE = 1e-3
_ROWS = 64  # of the probe: between n and n - 1 in a variance there is little difference


def batch_statistics(
    model: Model, params: PyTree, state: PyTree, examples: Examples, *, key: Any = None
) -> PyTree:
    """The state in which running averages equal the statistics of `examples`.

    One pass from `s = 0` and one from a large `s` give `m`, and `m` gives `b`. The second
    `s` is large, so that `m` keeps its digits whatever the size of `b`. The convolutions of
    both passes are the same computation, and the compiler merges them. The result is
    differentiable in `params`. Without a valid row the result is `state`.

    Raises:
      ValueError: a number of the state is no running average; names it.
    """
    found = kinds(model, params, state, examples.x)
    if set(found) <= {"kept"}:
        return state
    narrow = state
    # The decay is a difference of two numbers near one another: 16 bits do not hold it.
    state = jax.tree.map(lambda s: trees.widened(s) if _is_float(s) else s, state)

    # No weight is above 1, so the threshold 2 means that nothing moves. The test is part of
    # the threshold because an `&` in `solve` was seen to change last digits.
    least = jnp.where(jnp.any(examples.mask), 1e-6, 2.0)

    def moved(fill: float) -> PyTree:
        # Integers, such as counters, have no average to solve for.
        start = jax.tree.map(
            lambda s: jnp.full_like(s, fill * _large(s)) if _is_float(s) else s, state
        )
        return _after(model, params, start, examples.x, key, examples.mask)

    def solve(old: Array, from_zero: Array, from_large: Array) -> Array:
        decay = (from_large - from_zero) / _large(old)
        # The decay is a constant of the model. A derivative of this difference could only
        # be rounding error.
        weight = 1 - jax.lax.stop_gradient(decay)
        moves = weight > least
        # A leaf that no pass moves has the weight 0. The unused branch divides by 1 then: a
        # division by 0 would make NaN of the derivative, although its value is dropped.
        return jnp.where(moves, from_zero / jnp.where(moves, weight, 1), old)

    first, second = moved(0.0), moved(1.0)
    fresh = first
    if "fresh" in found:
        # With counters at zero as well.
        start = jax.tree.map(_zero, state)
        fresh = _after(model, params, start, examples.x, key, examples.mask)
        fresh = jax.tree.map(lambda f, s: jnp.where(least < 2, f, s), fresh, state)

    def value(kind: Kind, old: Array, *after: Array) -> Array:
        if kind == "average":
            return solve(old, *after[:2])
        return after[2] if kind == "fresh" else old

    leaves = zip(*map(jax.tree.leaves, (state, first, second, fresh)), strict=True)
    solved = [value(kind, *each) for kind, each in zip(found, leaves, strict=True)]
    pairs = zip(solved, jax.tree.leaves(narrow), strict=True)
    solved = [s.astype(n.dtype) if _is_float(n) else s for s, n in pairs]
    return jax.tree.unflatten(jax.tree.structure(state), solved)


def kinds(model: Model, params: PyTree, state: PyTree, x: PyTree) -> list[Kind]:
    """How each leaf of the state is found for a batch, in the order of `jax.tree.leaves`.

    The program of a training pass tells it of linen's and nnx's batch norm, without running
    anything. Of what is more involved, numbers do: the pass has to be affine in the leaf,
    with a slope in [0, 1) that other data do not change, and may not move the leaf from
    the value that was solved for. With all solved, evaluation has to agree with the pass.
    The answer is kept for as long as the model lives.

    Args:
      model: The network.
      params: Its parameters, of which shapes matter.
      state: Its state.
      x: Inputs of a support set.

    Raises:
      ValueError: a leaf is none of these kinds.
    """
    asked = probe.signature(params, state, x)
    known = probe.memory(_FOUND, model.split or model.apply, dict)
    if asked not in known:
        known[asked] = _kinds(model, *probe.like((params, state, x)))
    return known[asked]


def _kinds(model: Model, params: PyTree, state: PyTree, x: PyTree) -> list[Kind]:
    def traced(batch: bool) -> probe.Traced:
        def run(params, state, x, key):
            return _outputs(model, params, state, x, key, batch=batch)

        return probe.trace(run, params, state, x)

    training = traced(batch=True)
    old, data = set(training.old), {*training.x}
    found: list[Kind | None] = []
    counters = set()
    leaves = jax.tree.leaves(state)
    for flow, i, leaf in zip(training.state, training.old, leaves, strict=True):
        if flow.same == i or not _is_float(leaf) or flow.sources <= old:
            found.append("kept")  # if it moves, a counter or a schedule
        elif flow.sources & old <= {i} and 0 <= _slope(flow, i) < 1 and flow.sources & data:
            found.append("average")
        else:
            found.append(None)
        if found[-1] == "kept" and flow.same != i:
            counters.add(i)
    undecided = [flow for flow, kind in zip(training.state, found) if kind is None]
    # An average of weights, or what an iteration on weights has found, is no statistic of a
    # batch, whatever the numbers.
    if all(flow.sources & data for flow in undecided):
        doubtful = {i for i, kind in zip(training.old, found) if kind is None}
        if counters:
            # Evaluation may correct an average by a count that stays at its start.
            read = set().union(*(flow.sources for flow in traced(batch=False).outputs))
            doubtful |= counters & read
        if doubtful:
            places = [i in doubtful for i in training.old]
            with jax.ensure_compile_time_eval():
                found = _by_numbers(model, params, state, x, found, places)
    _refuse(found, state)
    return found


def _slope(flow: probe.Flow, i: int) -> float:
    """The slope in an input; -1 if it is unknown."""
    return flow.slopes.get(i, -1.0) if i in flow.sources else 0.0


def _refuse(found: list[Kind | None], state: PyTree) -> None:
    paths = [p for p, kind in zip(trees.leaf_paths(state), found) if kind is None]
    if paths:
        raise ValueError(
            f"norm='support' needs the running averages of a model, but {paths[0]} in its "
            "state is none: a training pass does not move it to `m s + (1 - m) b` with a "
            "constant m and a statistic b of the batch. Choose norm='running', which uses "
            "the state as the model keeps it, or norm='batch', or a model without such a "
            "state (group or layer norm)."
        )


def _by_numbers(
    model: Model,
    params: PyTree,
    state: PyTree,
    x: PyTree,
    found: list[Kind | None],
    doubtful: list[bool],
) -> list[Kind | None]:
    """The kinds of leaves that the program did not tell; `None` where numbers deny."""
    params = probe.sample(params, 0)
    rows = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((max(_ROWS, s.shape[0]), *s.shape[1:]), s.dtype), x
    )
    first, second = probe.sample(rows, 1), probe.sample(rows, 2)
    zeros = jax.tree.map(_zero, probe.sample(state, 3))
    after = jax.jit(lambda state, x: _outputs(model, params, state, x, None, batch=True))
    leaves = jax.tree.leaves

    def filled(value: float, only: int | None = None) -> PyTree:
        flat, structure = jax.tree.flatten(zeros)
        for i, leaf in enumerate(flat):
            if _is_float(leaf) and only in (None, i):
                flat[i] = jnp.full_like(leaf, value)
        return structure.unflatten(flat)

    def moved(start: PyTree, data: PyTree) -> list[np.ndarray]:
        return [probe.plain(leaf) for leaf in leaves(after(start, data)[1])]

    fills = [0.0, 1.0, 3.0]
    by_fill = [moved(filled(value), first) for value in fills]
    others = [moved(filled(value), second) for value in fills[:2]]
    again = moved(after(zeros, first)[1], first)
    result = list(found)
    solved = leaves(zeros)
    for i, kind in enumerate(found):
        if not _is_float(solved[i]):
            continue
        at = [values[i] for values in by_fill]
        slope, other = at[1] - at[0], others[1][i] - others[0][i]
        affine = _close(at[2], at[0] + 3 * slope) and _close(slope, other)
        if kind is None and affine and np.all((slope > -1e-6) & (slope < 1 - 1e-6)):
            result[i] = kind = "average"
        if kind is None and _close(at[0], again[i]) and not _close(at[0], others[0][i]):
            alone = [moved(filled(value, i), first)[i] for value in fills[1:]]
            if all(_close(at[0], values) for values in alone):
                result[i] = kind = "fresh"
        if kind == "average":
            solved[i] = jnp.asarray(at[0] / (1 - slope), solved[i].dtype)
        elif kind == "fresh":
            solved[i] = jnp.asarray(at[0], solved[i].dtype)
    if None in result:
        return result
    state = jax.tree.unflatten(jax.tree.structure(zeros), solved)
    outputs, new = after(state, first)
    for i, (before, now) in enumerate(zip(solved, leaves(new), strict=True)):
        if result[i] == "average" and not _close(np.asarray(before), np.asarray(now)):
            result[i] = None
    still = jax.jit(lambda s: _outputs(model, params, s, first, None, batch=False)[0])
    pairs = zip(*map(leaves, (outputs, still(state))), strict=True)
    if not all(_close(np.asarray(a), np.asarray(b), 0.1) for a, b in pairs):
        result = [None if odd else kind for odd, kind in zip(doubtful, result)]
    return result


def _close(a: np.ndarray, b: np.ndarray, tolerance: float = _TOLERANCE) -> bool:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    size = max(np.abs(a).max(initial=0), np.abs(b).max(initial=0), 1e-6)
    return bool(np.abs(a - b).max(initial=0) <= tolerance * size)


def _outputs(
    model: Model, params: PyTree, state: PyTree, x: PyTree, key: Any, *, batch: bool
) -> tuple[PyTree, PyTree]:
    variables = Variables(params=params, state=state)
    return run(model, variables, x, key=key, noise=False, batch=batch)


def _after(
    model: Model, params: PyTree, state: PyTree, x: PyTree, key: Any, mask: Array
) -> PyTree:
    """The state after a pass with batch statistics and without noise."""
    variables = Variables(params=params, state=state)
    return run(model, variables, x, key=key, noise=False, batch=True, mask=mask)[1]


def _zero(leaf: Array) -> Array:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else jnp.zeros_like(leaf)


def _large(leaf: Array) -> float:
    # A power of two, so that dividing by it is exact; the cube root of the largest number,
    # so that products of it do not overflow.
    return 2.0 ** (jnp.finfo(leaf.dtype).maxexp // 3)


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
