"""Hypergradients through the last steps of an inner optimiser that keeps its state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from metalearn.core import checks
from metalearn.core.types import Array, InnerOpt, PyTree
from metalearn.hypergradient import checked
from metalearn.hypergradient.result import Hypergradient, norm
from metalearn.inner.unroll import Unrolled, resolve, unroll

Storage = Literal["reverse", "remat", "nested", "mixed"]


def unrolled(
    inner_loss: Callable,
    outer_loss: Callable,
    params: PyTree,
    hparams: PyTree,
    inner_opt: InnerOpt,
    *,
    num_steps: int,
    truncate: int | None = None,
    opt_state: PyTree | None = None,
    differentiation: Storage = "reverse",
) -> Hypergradient:
    """Hypergradient of `num_steps` inner steps, which also train the inner model.

    The start `(params, opt_state)` is a constant: what earlier steps owe to the
    hyper-parameters is left out. With `truncate=T` the same holds for all but the last T
    steps (A. Shaban et al. Truncated Back-propagation for Bilevel Optimization. AISTATS
    2019).

    Args:
      inner_loss: Function `(params, hparams, step)` to a scalar, or to a pair of a scalar
        and a tree of arrays; `step` is an int32 scalar `0..K-1`, which may choose a batch.
      outer_loss: Function `(params, hparams)` to a scalar, or to such a pair.
      params: Parameters of the inner model.
      hparams: Hyper-parameters, a tree of floating numbers.
      inner_opt: An optax transformation, or a function `hparams -> transformation`, with
        which a learning rate is a hyper-parameter. Adaptive optimisers need
        `eps_root > 0`.
      num_steps: Number of inner steps K, 1 or more.
      truncate: Number of last steps T that are differentiated, 1 to K; all if `None`.
      opt_state: State of the optimiser; fresh if `None`.
      differentiation: What the backward pass finds stored, see
        `metalearn.inner.differentiate`.

    Returns:
      A `Hypergradient`. Its `state` is `(params, opt_state)` after all steps, its
      `residual` the norm of the last step's inner gradient at these parameters, and its
      `inner_aux` that of the last step.

    Raises:
      TypeError: hyper-parameters are not floating numbers, or `inner_opt` is no
        transformation.
      ValueError: a number is out of range, a loss is no scalar, the optimiser has no finite
        derivative, its state is that of other parameters, or a state that is a constant
        holds hyper-parameters.

    Example:
      >>> found = ml.hypergradient.unrolled(
      ...     lambda w, target, step: (w - target) ** 2 / 2,
      ...     lambda w, target: w,
      ...     params=0.0, hparams=1.0, inner_opt=optax.sgd(0.5), num_steps=2,
      ... )
      >>> float(found.state[0]), float(found.gradient)
      (0.75, 0.75)
    """
    checks.whole_number("num_steps", num_steps, least=1)
    last = num_steps if truncate is None else truncate
    checks.whole_number("truncate", last, least=1)
    if last > num_steps:
        raise ValueError(
            f"truncate is {truncate}; expected at most num_steps, which is {num_steps}."
        )
    checks.one_of("differentiation", differentiation, get_args(Storage))
    params = checked.real("params", params)
    hparams = checked.real("hparams", hparams)
    checked.optimiser(inner_opt, params, hparams, second_order=True)
    inner = checked.loss("inner_loss", inner_loss, params, hparams, jnp.int32(0))
    outer = checked.loss("outer_loss", outer_loss, params, hparams)
    began = checked.started(resolve(inner_opt, hparams), params, opt_state)
    fresh, before = opt_state is None, num_steps - last
    if (before or not fresh) and _state_depends(inner_opt, hparams, params):
        raise ValueError(
            "the state of inner_opt holds hyper-parameters, as that of "
            "optax.inject_hyperparams does. A state that is given, or comes from steps "
            "before the last ones, is a constant: their derivative would be 0. Use a "
            "function such as `lambda hparams: optax.sgd(hparams)`, or a fresh state and "
            "no truncate."
        )

    def descend(start: tuple, hparams: PyTree, first: int, num: int) -> Unrolled:
        return unroll(
            lambda params, step: inner(params, hparams, step + first),
            start[0],
            resolve(inner_opt, hparams),
            num_steps=num,
            opt_state=start[1],
            differentiation=differentiation,
        )

    start = (params, began)
    if before:
        ended = descend(start, hparams, 0, before)
        # A constant, so that a derivative of `value` is the truncated one, too.
        start = jax.lax.stop_gradient((ended.params, ended.opt_state))

    def through(hparams: PyTree) -> tuple[Array, tuple]:
        of_these = start
        if fresh and not before:  # its state may hold hyper-parameters
            of_these = (params, resolve(inner_opt, hparams).init(params))
        ended = descend(of_these, hparams, before, last)
        value, aux = outer(ended.params, hparams)
        return value, (ended, aux)

    (value, found), gradient = jax.value_and_grad(through, has_aux=True)(hparams)
    ended, outer_aux = found
    step = jnp.asarray(num_steps - 1, jnp.int32)
    grads, _ = jax.grad(inner, has_aux=True)(ended.params, hparams, step)
    return Hypergradient(
        value=value,
        gradient=gradient,
        residual=norm(grads),
        state=(ended.params, ended.opt_state),
        inner_aux=jax.tree.map(lambda leaf: leaf[-1], ended.aux),
        outer_aux=outer_aux,
    )


def _state_depends(inner_opt: InnerOpt, hparams: PyTree, params: PyTree) -> bool:
    """Whether a number of a fresh state is computed from the hyper-parameters."""
    init = lambda hparams: resolve(inner_opt, hparams).init(params)
    jaxpr = jax.make_jaxpr(init)(hparams).jaxpr
    reached = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if any(isinstance(v, Var) and v in reached for v in eqn.invars):
            reached.update(eqn.outvars)
    return any(isinstance(v, Var) and v in reached for v in jaxpr.outvars)
