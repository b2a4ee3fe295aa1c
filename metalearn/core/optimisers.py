"""Checks of inner optimisers: do inner loops have what they need, can they be derived.

An optimiser is asked about a small sample when a learner is made, and about the parameters
that it will move when they are known. Its update is traced, and the trace is run by NumPy.
"""

from __future__ import annotations

import functools
import numbers
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalearn.core import trees
from metalearn.core.updates import (
    NOT_FINITE,
    SAMPLE,
    NoTransformation,
    as_jax,
    fault,
    is_differentiable,
    is_transformation,
    made_of,
)


def inner_optimiser(inner_opt: Any, hparams: Any, *, second_order: bool) -> None:
    """Checks an inner optimiser before anything is traced.

    Raises:
      TypeError: `inner_opt` is neither an optax transformation nor a function together
        with hparams; or its update needs arguments that an inner loop does not have.
      ValueError: the update has no finite derivative at a zero gradient, as that of
        `optax.adam` with `eps_root=0`. `inner_optimiser_on` finds the faults that show only
        on the parameters.
    """
    if not is_transformation(inner_opt):
        if callable(inner_opt) and hparams is not None:
            return
        given = f"a {type(inner_opt).__name__}"
        if isinstance(inner_opt, numbers.Number):
            given = f"{given}, {inner_opt!r}"
        if isinstance(inner_opt, optax.MultiSteps):
            given = f"{given}, which adds up the gradients of several calls"
        rate = inner_opt if isinstance(inner_opt, float) else 0.01
        raise TypeError(
            f"inner_opt is {given}; expected an optax transformation such as "
            f"optax.sgd({rate}), or a function `hparams -> transformation` together with "
            "inner_hparams."
        )
    if _waits(inner_opt):
        raise ValueError(
            "inner_opt adds up the gradients of several calls before it moves "
            "(optax.MultiSteps); an inner step that waits adapts nothing. Give the "
            "optimiser inside it."
        )
    needs = _needs_on_sample(inner_opt)
    if needs:
        raise TypeError(needs)
    if second_order and is_differentiable(inner_opt) is False:
        # Derivatives of NaN are NaN whatever the optimiser, so the rate comes first.
        found = fault(inner_opt, 1, jax.config.jax_enable_x64)
        raise ValueError(found if found == NOT_FINITE else _not_differentiable(inner_opt))


def inner_optimiser_on(
    params: Any, inner_opt: Any, hparams: Any, *, second_order: bool = True
) -> None:
    """Checks an inner optimiser on the parameters that it will move.

    This check covers the optimisers that `inner_optimiser` cannot judge: those made from
    hyper-parameters, and those that look at the structure of the parameters, such as masks
    by name.

    Args:
      params: Parameters, of which shapes matter.
      inner_opt: An optax transformation, or a function of `hparams` that makes one.
      hparams: Hyper-parameters, whose arrays may be traced.
      second_order: Whether the update is differentiated.

    Raises:
      TypeError: the update needs arguments that an inner loop does not have.
      ValueError: the optimiser does not take these parameters, the hyper-parameters are not
        finite, or the update has no finite derivative at a zero gradient.
    """
    if is_transformation(inner_opt) and _failure_on_sample(inner_opt) is None:
        decided = not second_order or is_differentiable(inner_opt) is not None
        if decided:  # when the learner was made
            return
    hparams = _concrete(hparams)
    like = jax.tree.map(lambda p: np.zeros(jnp.shape(p), jnp.result_type(p)), params)
    error = _failure(inner_opt, like, hparams)
    if error is not None:
        raise _explained(error, like) from error
    if second_order and is_differentiable(inner_opt, like, hparams) is False:
        raise ValueError(_not_differentiable(inner_opt))


def outer_optimiser_on(params: Any, outer_opt: Any) -> None:
    """Checks an outer optimiser on the parameters that it will move, by shapes alone.

    Raises:
      ValueError: the optimiser does not take these parameters.
    """
    like = jax.eval_shape(lambda: params)  # no arrays, however many the parameters are

    def step(params: Any) -> Any:
        updates, _ = outer_opt.update(params, outer_opt.init(params), params)
        return optax.apply_updates(params, updates)

    try:
        jax.eval_shape(step, like)
    except Exception as error:  # of many kinds, see `_differentiable`
        raise ValueError(
            f"outer_opt does not take the parameters of the learner ({type(error).__name__}"
            f": {error}). Masks and labels by name need their structure, whose paths are: "
            f"{', '.join(trees.leaf_paths(like))}. A function of the parameters, as in "
            "mask=lambda params: jax.tree.map(...), fits any."
        ) from error


def _concrete(hparams: Any) -> Any:
    """Hyper-parameters as arrays, with typical numbers in place of traced ones.

    Raises:
      ValueError: a number is not finite.
    """

    def one(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer):
            return np.full(leaf.shape, 0.1, leaf.dtype)
        found = np.asarray(leaf, jnp.result_type(leaf))
        if jnp.issubdtype(found.dtype, jnp.inexact) and not np.isfinite(found).all():
            name = trees.path_string(path)
            raise ValueError(
                f"inner_hparams{' at ' if name else ''}{name} is {leaf}; expected finite "
                "numbers to start from."
            )
        return found

    return jax.tree_util.tree_map_with_path(one, hparams)


def inner_rate(inner_opt: Any, num_steps: int) -> None:
    """Checks that an inner optimiser with a rate of its own moves down, where this is seen.

    Raises:
      ValueError: from a finite gradient the updates are not finite, all zero, or go up.
    """
    if not is_transformation(inner_opt):
        return
    found = fault(inner_opt, int(num_steps), jax.config.jax_enable_x64)
    if found:
        raise ValueError(found)


# -- What an update asks for ---------------------------------------------------------


def _failure(inner_opt: Any, params: Any, hparams: Any = None) -> Exception | None:
    """The exception of one update without further arguments, if it raises one."""
    params = as_jax(params)

    def step(params: Any, hparams: Any) -> Any:
        opt = made_of(inner_opt, hparams)
        updates, _ = opt.update(params, opt.init(params), params)
        return optax.apply_updates(params, updates)

    try:
        jax.eval_shape(step, params, hparams)
    except Exception as error:  # of many kinds, see `_differentiable`
        return error
    return None


@functools.lru_cache(maxsize=64)
def _failure_on_sample(inner_opt: Any) -> str | None:
    """What an update on the sample raises as text; `None` if nothing."""
    error = _failure(inner_opt, SAMPLE)
    return None if error is None else str(error)


def _waits(inner_opt: Any) -> bool:
    try:
        state = jax.eval_shape(inner_opt.init, {"w": np.zeros(1, np.float32)})
    except Exception:  # it looks for parameters of its own
        return False
    kind = optax.MultiStepsState
    leaves = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, kind))
    return any(isinstance(leaf, kind) for leaf in leaves)


def _needs_on_sample(inner_opt: Any) -> str:
    text = _failure_on_sample(inner_opt)
    return "" if text is None else _needs(text)


def _needs(text: str) -> str:
    """The refusal of an optimiser that needs more than gradients, from what it raised."""
    owner = found = None
    if "must be provided" in text:
        return (
            f"the inner optimiser needs more than gradients, state and params ({text}), "
            "and an inner loop has no more to give. Use one such as optax.sgd(0.01)."
        )
    if match := re.search(r"missing \d+ required [\w-]+ arguments?: (.+)", text):
        found = re.findall(r"'(\w+)'", match.group(1))
        owner = re.match(r"(\w+)\.<locals>", text)
    elif "has no attribute 'fast'" in text:
        return (
            "the inner optimiser (lookahead) needs parameters of its own kind, "
            "optax.LookaheadParams, and an inner loop has those of the model. Use its fast "
            "optimiser alone, such as optax.sgd(0.01)."
        )
    if not found:
        return ""
    name = f" ({owner.group(1)})" if owner else ""
    return (
        f"the inner optimiser{name} needs {', '.join(found)} beside the gradients, which "
        "an inner loop does not give it. Use one whose update takes gradients, state and "
        "params alone, such as optax.sgd(0.01)."
    )


def _explained(error: Exception, params: Any) -> Exception:
    text = f"{type(error).__name__}: {error}"
    if needs := _needs(str(error)):
        return TypeError(needs)
    if isinstance(error, NoTransformation):
        return TypeError(str(error))
    paths = ", ".join(trees.leaf_paths(params))
    return ValueError(
        f"the inner optimiser does not take the parameters that adapt ({text}). Masks and "
        "labels by name need the structure of these parameters, whose paths are: "
        f"{paths}. A function of the parameters, as in mask=lambda params: "
        "jax.tree.map(...), fits any."
    )


# -- What has no derivative ------------------------------------------------------------

_INSTEAD = {
    "scale_by_adam": "optax.adam(rate, eps_root=1e-8) in place of optax.adam(rate)",
    "clip_by_global_norm": "ml.inner.clip_by_global_norm in place of optax's",
    "clip_by_block_rms": "ml.inner.clip_by_block_rms in place of optax's",
    "adaptive_grad_clip": "ml.inner.adaptive_grad_clip in place of optax's",
    "normalize_by_update_norm": "ml.inner.normalize_by_update_norm in place of optax's",
}


def _not_differentiable(inner_opt: Any) -> str:
    names = set(_names(inner_opt.update)) if is_transformation(inner_opt) else set()
    clips = [text for name, text in _INSTEAD.items() if name in names]
    if not clips:
        clips = [
            _INSTEAD["scale_by_adam"],
            "plain optax.sgd",
            "ml.inner.clip_by_global_norm in place of a clip of optax",
        ]
    named = sorted(names & _INSTEAD.keys())
    of = f" ({', '.join(named)})" if named else ""
    return (
        f"the inner optimiser{of} has no finite derivative where a gradient or a parameter "
        "is zero (a root or a quotient, such as that of Adam's second moment with "
        "eps_root=0), so second-order meta-gradients become NaN. Use "
        f"{', or '.join(clips)}, or differentiation='first_order'."
    )


def _names(fn: Callable, depth: int = 6) -> Iterator[str]:
    """Names of the functions that an update is made of, read from closures."""
    yield getattr(fn, "__qualname__", "").split(".<locals>")[0]
    cells = getattr(fn, "__closure__", None) or ()
    for cell in cells if depth else ():
        try:
            held = cell.cell_contents
        except ValueError:  # empty
            continue
        for part in held if isinstance(held, (tuple, list)) else (held,):
            parts = part if is_transformation(part) else (part,)
            for inner in parts:
                if callable(inner):
                    yield from _names(inner, depth - 1)
