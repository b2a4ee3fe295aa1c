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
      params: After the last step.
      opt_state: After the last step.
      losses: `[S]`, the loss before each step.
      aux: What the loss function returned beside, with leaves `[S, ...]`.
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
    """Runs `num_steps` of an optimiser, so that the result can be differentiated.

    Computes `params_{k+1} = params_k + update(grad loss(params_k, k))`. Gradients flow
    to `params`, to whatever `loss_fn` closes over and to arrays inside `inner_opt`.

    Args:
      loss_fn: `(params, step) -> (loss, aux)`; `step` is an int32 scalar `0..S-1`.
      params: Where to start; only these are updated.
      inner_opt: Any optax transformation. Adaptive ones need `eps_root > 0` in second
        order, see `metalearn.testing.assert_differentiable`.
      num_steps: S, at least 0; static.
      opt_state: Where the optimiser starts; fresh when `None`.
      differentiation: "reverse", "remat", "nested", "mixed", "first_order" or an
        `Implicit`: what is stored and how second derivatives are taken, see
        `metalearn.inner.differentiate`. "first_order" treats the inner gradients as
        constants (FOMAML, Finn et al. 2017, section 5.2): the derivative of the result
        with respect to `params` is then the identity through plain SGD.
      trajectory: Also returns the params around every step.

    Returns:
      An `Unrolled`.

    Raises:
      ValueError: `num_steps` is negative, or an unknown `differentiation`.
    """
    checks.whole_number("num_steps", num_steps, least=0)
    differentiate.check(differentiation)
    if num_steps > 1:
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
        start = jax.lax.stop_gradient(start)
    carry, outs = differentiate.scan(update, start, num_steps, differentiation)
    if implicit and num_steps:
        last = jnp.asarray(num_steps - 1, jnp.int32)
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
      TypeError: it is neither.
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
