"""Unrolled differentiable optimisation: a scan of optax updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn import _checks
from metalearn._typing import Array, PyTree
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
    first_order: bool = False,
    remat: bool = False,
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
      first_order: Treats the inner gradients as constants (FOMAML, Finn et al. 2017,
        section 5.2): the derivative of the result with respect to `params` is then the
        identity through plain SGD.
      remat: Recomputes each step in the backward pass instead of storing it.
      trajectory: Also returns the params around every step.

    Returns:
      An `Unrolled`.

    Raises:
      ValueError: `num_steps` is negative.
    """
    _checks.whole_number("num_steps", num_steps, least=0)
    if num_steps > 1:
        loss_fn = hoist(loss_fn, params, jnp.zeros((), jnp.int32))
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def update(carry: tuple, step: Array) -> tuple[tuple, tuple]:
        params, opt_state = carry
        start = jax.lax.stop_gradient(params) if first_order else params
        (loss, aux), grads = value_and_grad(start, step)
        if first_order:
            # Only the gradients: stopping the params themselves would cut the path
            # from the result back to the initialisation and zero the meta-gradient.
            grads = jax.lax.stop_gradient(grads)
        updates, opt_state = inner_opt.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), (loss, aux, params if trajectory else None)

    if remat:
        # Inside a scan the compiler cannot merge the two computations anyway.
        update = jax.checkpoint(update, prevent_cse=num_steps == 1)

    opt_state = inner_opt.init(params) if opt_state is None else opt_state
    if num_steps == 1:  # a loop of one step would only hide it from the compiler
        carry, outs = update((params, opt_state), jnp.zeros((), jnp.int32))
        outs = jax.tree.map(lambda leaf: leaf[None], outs)
    else:
        carry, outs = jax.lax.scan(
            update, (params, opt_state), jnp.arange(num_steps, dtype=jnp.int32)
        )
    losses, aux, path = outs
    if trajectory:
        path = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), params, path)
    return Unrolled(*carry, losses, aux, path)


def resolve(inner_opt: Any, hparams: PyTree) -> optax.GradientTransformation:
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
