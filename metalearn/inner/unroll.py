"""Unrolled differentiable optimisation: a scan of optax updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn.core import checks
from metalearn.core.types import Array, InnerOpt, PyTree
from metalearn.inner import differentiate
from metalearn.inner.differentiate import Differentiation, Implicit
from metalearn.inner.hoist import hoist


class Unrolled(NamedTuple):
    """The result of `unroll`.

    Attributes:
      params: Parameters after the last step.
      opt_state: State of the optimiser after the last step.
      losses: Loss before each step, `[S]`.
      aux: Second results of the loss function, a tree with leaves `[S, ...]`.
      trajectory: Params before the first and after each step, leaves `[S + 1, ...]`;
        `None` unless asked for.
    """

    params: PyTree
    opt_state: PyTree
    losses: Array
    aux: PyTree
    trajectory: PyTree | None


def unroll(
    loss_fn: Callable[[PyTree, Array], tuple[Array, PyTree]],
    params: PyTree,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int,
    opt_state: PyTree | None = None,
    differentiation: Differentiation | Implicit = "reverse",
    trajectory: bool = False,
) -> Unrolled:
    """Runs `num_steps` steps of an optimiser; the result can be differentiated.

    Each step computes `params_{k+1} = params_k + update(grad loss(params_k, k))`. Gradients
    flow to `params`, to the arrays that `loss_fn` closes over and to the arrays inside
    `inner_opt`.

    Args:
      loss_fn: Function `(params, step) -> (loss, aux)`; `step` is an int32 scalar `0..S-1`.
      params: Parameters at the start; only these are updated.
      inner_opt: Any optax transformation. Adaptive optimisers need `eps_root > 0` for
        second derivatives, see `metalearn.testing.assert_differentiable`.
      num_steps: Number of steps S, 0 or more; static.
      opt_state: State of the optimiser at the start; fresh when `None`.
      differentiation: Way to differentiate: "reverse", "remat", "nested", "mixed",
        "first_order" or an `Implicit`. The choices differ in memory and in the way of
        second derivatives, see `metalearn.inner.differentiate`. "first_order" treats the
        inner gradients as constants (FOMAML, Finn et al. 2017, section 5.2). The derivative
        of the result with respect to `params` is then the identity if the optimiser is
        plain SGD.
      trajectory: Whether to return the params before the first and after each step.

    Returns:
      An `Unrolled`.

    Raises:
      TypeError: `inner_opt` is no transformation.
      ValueError: `num_steps` is negative, or `differentiation` is unknown.
    """
    checks.whole_number("num_steps", num_steps, least=0)
    if not isinstance(inner_opt, optax.GradientTransformation):
        raise TypeError(
            f"inner_opt is a {type(inner_opt).__name__}; expected an optax transformation "
            "such as optax.sgd(0.01)."
        )
    differentiate.check(differentiation)
    if num_steps > 1:
        # A single step has nothing to repeat, so hoisting would only cost a trace.
        loss_fn = hoist(loss_fn, params, jnp.zeros((), jnp.int32))
    value_and_grad = differentiate.value_and_grad(loss_fn, differentiation)

    def update(carry: tuple, step: Array) -> tuple[tuple, tuple]:
        params, opt_state = carry
        (loss, aux), grads = value_and_grad(params, step)
        updates, opt_state = inner_opt.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), (loss, aux, params if trajectory else None)

    start = (params, inner_opt.init(params) if opt_state is None else opt_state)
    implicit = isinstance(differentiation, Implicit)
    if implicit:
        # The derivative is that of the minimum. Without tangents of the start the loop
        # keeps nothing for a backward pass.
        start = jax.lax.stop_gradient(start)
    carry, outs = differentiate.scan(update, start, num_steps, differentiation)
    if implicit and num_steps:
        last = jnp.asarray(num_steps - 1, jnp.int32)
        # Arrays inside the optimiser may still have carried tangents through the loop. They
        # are cut here, so `at_minimum` alone gives the derivative.
        carry, outs = jax.lax.stop_gradient((carry, outs))
        end = differentiate.at_minimum(
            lambda p: loss_fn(p, last), carry[0], differentiation
        )
        carry = (end, carry[1])
    losses, aux, path = outs
    if trajectory:
        path = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), params, path)
    return Unrolled(*carry, losses, aux, path)


def resolve(inner_opt: InnerOpt, hparams: PyTree) -> optax.GradientTransformation:
    """The transformation itself, or the one that `inner_opt(hparams)` makes.

    Raises:
      TypeError: `inner_opt` is neither a transformation nor a function that makes one.
    """
    if isinstance(inner_opt, optax.GradientTransformation):
        return inner_opt
    if callable(inner_opt):
        made = inner_opt(hparams)
        if isinstance(made, optax.GradientTransformation):
            return made
    raise TypeError(
        f"inner_opt is a {type(inner_opt).__name__}; expected an optax transformation "
        "such as optax.sgd(0.01), or a function `hparams -> transformation` together "
        "with inner_hparams."
    )
