"""What the update of an inner optimiser does: has it derivatives, does it move, and where.

The update is traced for a small sample of gradients, and the trace is run by NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalearn.core import cost, flow, interpret


def is_differentiable(
    inner_opt: Any, grads: Any = None, hparams: Any = None
) -> bool | None:
    """Whether two updates have finite derivatives, at zero gradients and parameters too.

    The result is `None` if the optimiser refuses the structure of the gradients.

    Args:
      inner_opt: An optax transformation, or a function of `hparams` that makes one.
      grads: Gradients, of which structure and shapes matter; a small sample if `None`.
      hparams: Hyper-parameters, concrete arrays.
    """
    if grads is None and hparams is None:
        return _differentiable_on_sample(inner_opt, jax.config.jax_enable_x64)
    return _differentiable(inner_opt, SAMPLE if grads is None else grads, hparams)


NOT_FINITE = (
    "the inner optimiser makes updates that are not finite from a finite gradient, so its "
    "rate is not a finite number. Expected e.g. optax.sgd(0.01)."
)
UP = (
    "the inner optimiser moves up the gradient, so it would raise the support loss: its "
    "rate is negative, or it has none (optax.scale_by_adam() in place of "
    "optax.adam(rate)). Expected e.g. optax.sgd(0.01)."
)
# What it is made of: a matrix and a vector.
SAMPLE = [np.zeros((2, 2)), np.zeros(2)]


@functools.lru_cache(maxsize=64)
def _differentiable_on_sample(inner_opt: Any, x64: bool) -> bool | None:
    """The answer on the sample, kept because every `init` of a learner asks again.

    The argument `x64` is part of the key: the dtype of the sample depends on it.
    """
    del x64
    return _differentiable(inner_opt, SAMPLE)


# Primitives whose derivatives are finite wherever their arguments are.
_SMOOTH = {
    *("add", "add_any", "broadcast_in_dim", "clamp", "convert_element_type", "dot_general"),
    *("eq", "ge", "gt", "jit", "le", "lt", "max", "min", "mul", "ne", "neg", "reduce_sum"),
    *("reshape", "select_n", "sign", "square", "squeeze", "sub", "transpose"),
    *("concatenate", "copy", "pad", "slice", "stop_gradient"),
}


def _differentiable(inner_opt: Any, grads: Any, hparams: Any = None) -> bool | None:
    grads = as_jax(grads)

    def moved(grads: Any, params: Any, hparams: Any) -> jax.Array:
        opt = made_of(inner_opt, hparams)
        state = opt.init(params)
        # Two updates, because some optimisers use their state only from the second one on.
        for _ in range(2):
            updates, state = opt.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return sum(jnp.sum(p) for p in jax.tree.leaves(params))

    try:
        # Most optimisers, such as momentum, consist of smooth primitives only.
        if _primitives(jax.make_jaxpr(moved)(grads, grads, hparams).jaxpr) <= _SMOOTH:
            return True
        slope = jax.grad(moved, argnums=(0, 1))
        closed = jax.make_jaxpr(slope)(grads, grads, hparams)
    except Exception:
        # Of many kinds, for optimisers look at the structure of the parameters in many
        # ways. One with rates for a single step cannot take two.
        return None
    for case in _cases(grads):
        try:
            found = interpret.evaluate(closed, *jax.tree.leaves((*case, hparams)))
        except interpret.Unknown:
            with jax.ensure_compile_time_eval():
                found = jax.tree.leaves(jax.jit(slope)(*case, hparams))
        if not all(np.isfinite(np.asarray(s, np.float64)).all() for s in found):
            return False
    return True


def _cases(grads: Any) -> Iterator[tuple[Any, Any]]:
    """Gradients and parameters at which derivatives of roots and quotients may not exist.

    Zeros among other numbers, zeros only, zeros in one leaf; and parameters of zero.
    """
    leaves, structure = jax.tree.flatten(grads)

    def alternating(leaf: np.ndarray) -> np.ndarray:
        values = np.array([0.0, 1.0, 0.5, -1.0])
        return np.resize(values, leaf.shape).astype(leaf.dtype)

    mixed = [alternating(leaf) for leaf in leaves]
    zeros = [np.zeros_like(leaf) for leaf in leaves]
    ones = [np.ones_like(leaf) for leaf in leaves]
    for grads_, params in (
        (mixed, ones),
        (zeros, ones),
        (mixed[:-1] + zeros[-1:], ones),
        (zeros[:1] + mixed[1:], ones),
        (mixed, zeros),
        (zeros, zeros),
    ):
        yield structure.unflatten(grads_), structure.unflatten(params)


def _primitives(jaxpr: Any) -> set[str]:
    """Names of the primitives of a jaxpr and of those inside it."""
    found = {eqn.primitive.name for eqn in jaxpr.eqns}
    inside = (sub for eqn in jaxpr.eqns for sub in cost.subjaxprs(eqn))
    return found.union(*map(_primitives, inside))


def as_jax(tree: Any) -> Any:
    """Arrays of NumPy in the precision that JAX would give them."""
    return jax.tree.map(
        lambda a: np.asarray(a, jax.dtypes.canonicalize_dtype(a.dtype)), tree
    )


class NoTransformation(TypeError):
    """What hyper-parameters were made into is no optimiser."""


def made_of(inner_opt: Any, hparams: Any) -> optax.GradientTransformation:
    """The transformation itself, or the one that a function makes of hyper-parameters.

    Raises:
      NoTransformation: the function makes something else.
    """
    if is_transformation(inner_opt):
        return inner_opt
    made = inner_opt(hparams)
    if not is_transformation(made):
        raise NoTransformation(
            f"inner_opt made a {type(made).__name__} of its inner_hparams; expected an "
            "optax transformation such as optax.sgd(hparams)."
        )
    return made


def is_transformation(inner_opt: Any) -> bool:
    """Whether it is an optax transformation, and not a function that makes one."""
    return isinstance(inner_opt, optax.GradientTransformation)


# Of zero mean, so that a decay of equal weights adds nothing to the direction.
_SLOPE = [np.array([[1.0, -1.0], [0.5, -0.5]]), np.array([2.0, -2.0])]


@functools.lru_cache(maxsize=64)
def fault(inner_opt: Any, num_steps: int, x64: bool) -> str:
    """What is wrong with the first updates; empty if nothing is, or nothing can be seen.

    Args:
      inner_opt: An optax transformation.
      num_steps: Number of inner steps.
      x64: Whether JAX has double precision, because the dtype of the sample depends on it.
    """
    del x64
    grads = as_jax(_SLOPE)
    params = [np.full_like(g, 0.5) for g in grads]
    # A warm-up starts at a rate of zero.
    num = min(max(num_steps, 2), 10)

    def run(grads: Any, params: Any) -> list:
        state, made = inner_opt.init(params), []
        for _ in range(num):
            updates, state = inner_opt.update(grads, state, params)
            made += jax.tree.leaves(updates)
        return made

    try:
        closed = jax.make_jaxpr(run)(grads, params)
        found = interpret.evaluate(closed, *grads, *params)
    except Exception:  # it has operations, or wants parameters, that a sample cannot have
        return ""
    slopes = sum(
        np.sum(np.reshape(found[i :: len(grads)], (num, -1)) * grad.ravel(), axis=1)
        for i, grad in enumerate(grads)
    )
    if not all(np.isfinite(leaf).all() for leaf in found):
        return NOT_FINITE
    if not any(leaf.any() for leaf in found):
        sources = set().union(*(f.sources for f in flow.of_outputs(closed.jaxpr)))
        if not sources & {*range(len(grads))}:
            # Zeros whatever the gradient: rules by name or shape choose no leaf of the
            # sample, and may choose some of a model.
            return ""
        return (
            "the inner optimiser moves nothing: its rate is 0. Expected a rate above 0, as "
            "in optax.sgd(0.01). A learner that does not adapt has num_steps=0."
        )
    if slopes.max() > 1e-3 * np.abs(slopes).max():  # rounding error aside
        return UP
    return ""
