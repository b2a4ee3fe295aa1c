"""What a model does in a pass: found by tracing it and, if that leaves doubt, by numbers.

Adapters and norm policies rely on three facts: evaluation draws nothing, evaluation leaves
the state alone, and running averages are running averages. A trace of the program proves
them for most models without computing anything.
"""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import flow, trees
from metalearn.core.flow import Flow
from metalearn.core.keys import of_seed
from metalearn.core.types import PyTree

# `(params, state, x, key) -> (outputs, state)`.
Pass = Callable[[PyTree, PyTree, PyTree, Any], tuple[PyTree, PyTree]]


_PROBING: contextvars.ContextVar[bool] = contextvars.ContextVar("probing", default=False)


def probing() -> bool:
    """Whether a model is traced to be asked; its convolutions may then stay as they are."""
    return _PROBING.get()


class Traced(NamedTuple):
    """A pass of a model as a program.

    Attributes:
      outputs: Flow of every output.
      state: Flow of every leaf of the new state.
      params: Numbers of the inputs that are parameters.
      old: Numbers of the inputs that are the state, leaf by leaf.
      x: Numbers of the inputs that are data.
      key: Number of the input that is the key.
    """

    outputs: list[Flow]
    state: list[Flow]
    params: range
    old: range
    x: range
    key: int

    def draws(self) -> bool:
        """Whether the key may reach outputs or state."""
        return any(self.key in flow.sources for flow in self.outputs + self.state)

    def moved(self) -> list[bool]:
        """Whether a leaf of the state comes out as another than it went in."""
        return [f.same != i for f, i in zip(self.state, self.old, strict=True)]


def memory(store: weakref.WeakKeyDictionary, owner: Any, make: Callable[[], Any]) -> Any:
    """What was found out about an owner, kept for as long as it lives.

    Args:
      store: Findings by their owners.
      owner: A function.
      make: Function `() -> findings` of a new owner.
    """
    try:
        return store.setdefault(owner, make())
    except TypeError:  # a callable that cannot be referred to weakly
        return make()


def signature(*trees_: PyTree) -> tuple:
    """Structure, shapes and dtypes of trees, to know them by."""
    leaves, structure = jax.tree.flatten(like(trees_))
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def like(tree: PyTree) -> PyTree:
    """Shapes and dtypes of a tree, whose leaves may be traced."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree
    )


def trace(run: Pass, params: PyTree, state: PyTree, x: PyTree) -> Traced:
    """The flow of a pass for arguments of given shapes.

    Raises:
      ValueError: the new state has another structure than the old one.
    """
    parts = (like(params), like(state), like(x), _key_like())
    sizes = [len(jax.tree.leaves(part)) for part in parts]
    token = _PROBING.set(True)
    try:
        closed, out = jax.make_jaxpr(run, return_shape=True)(*parts)
    finally:
        _PROBING.reset(token)
    before, after = jax.tree.structure(parts[1]), jax.tree.structure(out[1])
    if before != after:
        raise ValueError(
            f"the model returned a state of the structure {after}; expected that of "
            f"its init, {before}."
        )
    found = flow.of_outputs(closed.jaxpr, closed.consts)
    num = len(jax.tree.leaves(out[0]))
    ends = np.cumsum(sizes)
    return Traced(
        found[:num],
        found[num:],
        range(ends[0]),
        range(ends[0], ends[1]),
        range(ends[1], ends[2]),
        int(ends[2]),
    )


def _key_like() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: of_seed(0))


def draws(run: Pass, params: PyTree, state: PyTree, x: PyTree, traced: Traced) -> bool:
    """Whether outputs or state of a pass depend on the key."""
    if not traced.draws():
        return False
    # The key enters the program. Whether it matters is seen by two of them, for an argument
    # such as the rate of a dropout may be zero.
    with jax.ensure_compile_time_eval():
        parts = [sample(part, seed) for seed, part in enumerate((params, state, x))]
        made = [jax.jit(run)(*parts, of_seed(seed)) for seed in (1, 2)]
        pairs = zip(*map(jax.tree.leaves, made), strict=True)
        return not all(np.array_equal(*map(plain, pair), equal_nan=True) for pair in pairs)


def plain(leaf: Any) -> np.ndarray:
    """A leaf as an array of NumPy: keys as their data, numbers as float64."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    leaf = np.asarray(leaf)
    return leaf.astype(np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def sample(tree: PyTree, seed: int) -> PyTree:
    """Concrete arrays of the shapes of a tree.

    Numbers are between 0.2 and 1 with random signs, so that none is special; variances
    under roots are made positive by whoever needs it. Integers are zero.
    """
    rng = np.random.default_rng(seed)

    def one(leaf: Any) -> Any:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            return jax.random.split(of_seed(seed), shape) if shape else of_seed(seed)
        if not jnp.issubdtype(dtype, jnp.inexact):
            return jnp.zeros(shape, dtype)
        signs = rng.choice([-1.0, 1.0], shape)
        return jnp.asarray(signs * rng.uniform(0.2, 1.0, shape), dtype)

    return jax.tree.map(one, tree)


def moves(old: PyTree, new: PyTree) -> bool:
    """Whether a number of a state is another array than before, traced or not."""
    return any(
        before is not after and jnp.issubdtype(before.dtype, jnp.inexact)
        for before, after in zip(*map(jax.tree.leaves, (old, new)), strict=True)
    )


def moved_paths(traced: Traced, state: PyTree, *, real: bool = False) -> list[str]:
    """Paths of the leaves of the state that a pass moves; with `real`, of numbers only."""
    paths, leaves = trees.leaf_paths(state), jax.tree.leaves(state)
    return [
        path
        for path, leaf, moved in zip(paths, leaves, traced.moved(), strict=True)
        if moved and (not real or jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))
    ]


def check_evaluation(
    run: Pass, params: PyTree, state: PyTree, x: PyTree, *, owner: str, remedy: str
) -> None:
    """Checks that a pass in evaluation is deterministic and leaves the state alone.

    Integers of the state may move: modules count their calls, and adapters keep the old
    count.

    Args:
      run: The pass in evaluation, with the state that the module leaves behind.
      params: Parameters, of which shapes matter.
      state: State.
      x: Inputs.
      owner: Name of the model.
      remedy: What flag was taken, and what to do.

    Raises:
      ValueError: the pass draws at random or moves the state.
    """
    traced = trace(run, params, state, x)
    moved = moved_paths(traced, state, real=True)
    if moved:
        raise ValueError(
            f"{owner} moves its state in evaluation: {', '.join(moved[:4])}. Evaluation "
            f"has to leave the state alone. {remedy}"
        )
    if draws(run, params, state, x, traced):
        raise ValueError(
            f"{owner} draws at random in evaluation: two keys give two outputs. Dropout "
            f"and other noise belong to training. {remedy}"
        )
