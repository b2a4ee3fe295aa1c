"""SAMA: a one-step hypergradient that knows the optimiser and takes no second derivative.

S. K. Choe et al. Making Scalable Meta Learning Practical. NeurIPS 2023.

A base step is `p' = p - u(g)` with the gradient `g` of the inner loss at `p`. Its
hypergradient is `-(dg/dh)' v` with `v = (du/dg)' grad L(p')`. Where the paper and its code
differ from this file:

- `du/dg` is the transposed derivative of any optax update with its state fixed. The paper
  has a formula for Adam; the code leaves out the correction of Adam's bias.
- `(dg/dh)' v` is taken at the parameters before the step, as the formula says. The code
  takes it after the step.
- It may be taken exactly: `alpha=None`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metalearn.core import checks, given, trees
from metalearn.core.types import Array, PyTree
from metalearn.hypergradient import checked
from metalearn.hypergradient.result import Hypergradient, along, norm


def sama(
    inner_loss: Callable,
    outer_loss: Callable,
    params: PyTree,
    hparams: PyTree,
    inner_opt: optax.GradientTransformation,
    *,
    opt_state: PyTree | None = None,
    alpha: float | None = 1.0,
    multitask: bool = False,
) -> Hypergradient:
    """Takes one inner step and estimates the hypergradient of it.

    The product with `dg/dh` is the central difference of two gradients in the
    hyper-parameters, at `params + e v` and `params - e v` with `e = alpha / |v|`. Both see
    the data and keys that the inner loss closes over, hence the same ones. For a loss that
    is quadratic in the parameters the difference is exact up to rounding for any `alpha`.

    A difference sees through `jax.lax.stop_gradient`. What the inner loss holds constant,
    such as losses from which a network makes weights, has to be computed at `params` before
    and closed over; or use `alpha=None`, which heeds it.

    Args:
      inner_loss: Function `(params, hparams)` to a scalar, or to a pair of a scalar and
        a tree of arrays.
      outer_loss: Function `(params, hparams)` to a scalar, or to such a pair.
      params: Parameters of the inner model.
      hparams: Hyper-parameters, a tree of floating numbers.
      inner_opt: Any optax transformation; with its rate, for the step is taken by it.
      opt_state: State of the optimiser; fresh if `None`.
      alpha: Length of the perturbation of `params`. The paper has 1 for Adam and 0.01 for
        SGD. Halve it to see whether it is small enough. The gradient is NaN where rounding
        takes a twentieth of the perturbation or more, as it soon does in bfloat16. With
        `None` the product is a derivative instead, which takes about as long and stores
        about twice as much.
      multitask: Whether the state that is returned is moved by `-e v` as well, so that the
        inner model descends on the outer loss, too.

    Returns:
      A `Hypergradient`. Its `state` is `(params, opt_state)` after the step; its `residual`
      is the norm of the inner gradient before it. Where a parameter has a gradient of
      exactly 0 and the optimiser has no derivative there, as Adam with `eps_root=0` has
      none, the parameter counts as one that the step does not move.

    Raises:
      TypeError: hyper-parameters are not floating numbers, or `inner_opt` is no
        transformation.
      ValueError: a loss is no scalar, `alpha` is not above 0, the state of the optimiser is
        that of other parameters, or `multitask` is set without `alpha`.

    Example:
      >>> found = ml.hypergradient.sama(
      ...     lambda w, target: (w - target) ** 2 / 2, lambda w, target: w,
      ...     params=0.0, hparams=1.0, inner_opt=optax.sgd(0.5),
      ... )
      >>> float(found.state[0]), float(found.gradient)
      (0.5, 0.5)
    """
    if alpha is not None:
        checks.number("alpha", alpha, positive=True)
    given.flag("multitask", multitask)
    if alpha is None and multitask:
        raise ValueError(
            "multitask is set and alpha is None; expected a number, for the length of the "
            "move is that of the perturbation. Set alpha=1.0."
        )
    params = checked.real("params", params)
    hparams = checked.real("hparams", hparams)
    checked.optimiser(inner_opt, params, None, second_order=False)
    inner = checked.loss("inner_loss", inner_loss, params, hparams)
    outer = checked.loss("outer_loss", outer_loss, params, hparams)
    opt_state = checked.started(inner_opt, params, opt_state)

    slope_of = jax.value_and_grad(inner, has_aux=True)
    (_, inner_aux), grads = slope_of(params, hparams)
    updates, pull, new_state = jax.vjp(
        lambda grads: inner_opt.update(grads, opt_state, params), grads, has_aux=True
    )
    moved = optax.apply_updates(params, updates)
    slopes = jax.value_and_grad(outer, (0, 1), has_aux=True)
    (value, outer_aux), (slope, direct) = slopes(moved, hparams)
    slope = jax.tree.map(lambda s, u: s.astype(u.dtype), slope, updates)
    # Updates are added, where the formula subtracts `u`: this is `-v`.
    known = functools.partial(_known, trees.all_finite(slope))
    descent = jax.tree.map(known, pull(slope)[0], grads)
    size = norm(descent)
    # `v = 0` gives no direction. Both ends are then `params`, and the difference is 0.
    unit = jax.tree.map(lambda d: d / jnp.where(size > 0, size, 1).astype(d.dtype), descent)

    if alpha is None:

        def change(hparams: PyTree) -> Array:
            return jax.jvp(lambda p: inner(p, hparams)[0], (params,), (descent,))[1]

        product = jax.grad(change)(hparams)
    else:
        in_hparams = jax.grad(lambda hparams, p: inner(p, hparams)[0])
        ahead = in_hparams(hparams, along(alpha, unit, params))
        behind = in_hparams(hparams, along(-alpha, unit, params))
        difference = along(-1.0, behind, ahead)
        # What rounding takes of the perturbation is missing in the difference.
        kept = along(-1.0, along(-alpha, unit, params), along(alpha, unit, params))
        lost = norm(along(-2 * alpha, unit, kept)) / (2 * alpha)
        size = jnp.where(lost <= 0.05, size, jnp.nan)
        nothing = jax.tree.map(jnp.zeros_like, hparams)
        product = along(size / (2 * alpha), difference, nothing)
    if multitask and alpha is not None:
        moved = along(alpha, unit, moved)
    return Hypergradient(
        value=value,
        gradient=along(1.0, product, direct),
        residual=norm(grads),
        state=(moved, new_state),
        inner_aux=inner_aux,
        outer_aux=outer_aux,
    )


def _known(finite: Array, derivative: Array, grad: Array) -> Array:
    # Only where the gradient is exactly 0 and the outer slope is `finite`: NaN of any other
    # origin has to be seen.
    unknown = (grad == 0) & ~jnp.isfinite(derivative) & finite
    return jnp.where(unknown, 0, derivative)
