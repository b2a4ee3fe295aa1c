"""Checks of what a hypergradient is given, before its losses are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, given, trees
from metalearn.core.types import Array, PyTree

Pair = Callable[..., tuple[Array, PyTree]]


def real(name: str, tree: PyTree) -> PyTree:
    """The tree as arrays of jax, once all of them are seen to be real.

    Raises:
      ValueError: there is no array.
      TypeError: an array is not of floating numbers, so it has no derivative.
    """
    found = jax.tree_util.tree_leaves_with_path(tree)
    if not sum(np.size(leaf) for _, leaf in found):
        raise ValueError(f"{name} holds no array of numbers; expected floating ones.")
    for path, leaf in found:
        try:
            # Of a text jax would take the name of a dtype.
            dtype = "str" if isinstance(leaf, str) else jnp.result_type(leaf)
        except (TypeError, ValueError):  # text, a function
            dtype = type(leaf).__name__
        if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.floating):
            where = trees.path_string(path)
            raise TypeError(
                f"{name}{' at ' if where else ''}{where} is of the dtype {dtype}; expected "
                "floating numbers, which alone have derivatives. Write 1.0 for 1, or let "
                "the losses close over what is not differentiated."
            )
    return jax.tree.map(jnp.asarray, tree)


def loss(name: str, fn: Any, *like: PyTree) -> Pair:
    """The loss with a pair as its result, once it is seen to be a scalar.

    Args:
      name: What the function is called in messages.
      fn: Function to a scalar, or to a pair of a scalar and any tree.
      *like: Arguments of the shapes that later calls will have.

    Raises:
      TypeError: `fn` is no function, or its result is not of floating numbers.
      ValueError: its result is no scalar.
    """
    return _paired(name, fn, like, 0, "a scalar", "Take the mean over the examples.")


def losses(name: str, fn: Any, *like: PyTree) -> Pair:
    """As `loss`, for a function whose result is a vector `[N]`."""
    hint = "Return the losses before their mean is taken."
    return _paired(name, fn, like, 1, "losses [N]", hint)


def _paired(name: str, fn: Any, like: tuple, rank: int, wanted: str, hint: str) -> Pair:
    if not callable(fn):
        raise TypeError(
            f"{name} is a {type(fn).__name__}; expected a function of {len(like)} "
            f"arguments that returns {wanted}."
        )
    if not given.takes(fn, len(like)):
        raise TypeError(
            f"{name} cannot be called with {len(like)} arguments; see which it is given in "
            "the docstring."
        )
    found = jax.eval_shape(fn, *like)
    pair = isinstance(found, tuple) and len(found) == 2
    value = found[0] if pair else found
    if not hasattr(value, "dtype"):
        raise TypeError(
            f"{name} returns a {type(value).__name__}; expected {wanted}, or a pair of "
            "that and a tree of arrays."
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} returns the dtype {value.dtype}; expected {wanted} of floating "
            "numbers."
        )
    if len(value.shape) != rank:
        raise ValueError(
            f"{name} returns an array {list(value.shape)}; expected {wanted}. {hint}"
        )
    return fn if pair else lambda *args: (fn(*args), None)


def positive(name: str, value: Any) -> None:
    """Checks that a number is a scalar above 0; within `jit`, a floating scalar.

    Raises:
      ValueError: it is none.
    """
    if isinstance(value, (jax.Array, np.ndarray)):
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{name} is {_form(value)}; expected a floating scalar above 0."
            )
        if isinstance(value, jax.core.Tracer):
            return
        value = float(value)
    checks.number(name, value, positive=True)


def like(name: str, found: PyTree, wanted: PyTree, of: str, hint: str) -> None:
    """Checks that a tree has the structure, the shapes and the dtypes of another.

    Args:
      name: What the tree is called in messages.
      found: Arrays, or their shapes.
      wanted: Arrays, or their shapes.
      of: What `wanted` is called in messages.
      hint: What to do about a difference.

    Raises:
      ValueError: they differ; names the first difference.
    """
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        raise ValueError(
            f"{name} has the structure {jax.tree.structure(found)}; expected that of {of}, "
            f"{jax.tree.structure(wanted)}. {hint}"
        )
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for path, (one, other) in zip(trees.leaf_paths(wanted), pairs, strict=True):
        if _form(one) != _form(other):
            raise ValueError(
                f"{name}{' at ' if path else ''}{path} is {_form(one)}; expected "
                f"{_form(other)} as in {of}. {hint}"
            )


def _form(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def started(inner_opt: Any, params: PyTree, opt_state: PyTree | None) -> PyTree:
    """The state of the optimiser, a fresh one for `None`.

    Raises:
      ValueError: the state is not that of this optimiser for these parameters.
    """
    if opt_state is None:
        return inner_opt.init(params)
    wanted = jax.eval_shape(inner_opt.init, params)
    hint = "Start from inner_opt.init(params), and go on from the state of the last result."
    like("opt_state", opt_state, wanted, "inner_opt.init(params)", hint)
    return opt_state


def optimiser(
    inner_opt: Any, params: PyTree, hparams: PyTree | None, *, second_order: bool
) -> None:
    """Checks an inner optimiser as learners do, see `core.optimisers`.

    Raises:
      TypeError: `inner_opt` is no transformation and makes none.
      ValueError: it does not take these parameters, or has no finite derivative.
    """
    checks.inner_optimiser(inner_opt, hparams, second_order=second_order)
    checks.inner_optimiser_on(params, inner_opt, hparams, second_order=second_order)
