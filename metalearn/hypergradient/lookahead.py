"""One virtual step on weighted losses, and what each weight would do to an outer loss.

The virtual step is `p = params - rate sum_i w_i grad l_i`, so the outer loss at `p` has the
derivative `-rate <grad l_i, grad L(p)>` in `w_i`. All these products are one product of the
Jacobian of the losses with one vector. No gradient of a single example is stored, and no
second derivative is taken.

M. Ren, W. Zeng, B. Yang, R. Urtasun. Learning to Reweight Examples for Robust Deep
Learning. ICML 2018, whose derivative this is; J. Shu et al. Meta-Weight-Net. NeurIPS 2019,
with weights that a network makes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metalearn.core.types import Array, PyTree
from metalearn.hypergradient import checked
from metalearn.hypergradient.result import Hypergradient, along, norm


def lookahead(
    losses: Callable,
    outer_loss: Callable,
    params: PyTree,
    hparams: PyTree,
    *,
    rate: float | Array,
    weigh: Callable[[PyTree, Array], Array] | None = None,
) -> Hypergradient:
    """Hypergradient of one virtual step of gradient descent on weighted losses.

    Args:
      losses: Function `params` to losses `[N]`, of examples or of groups, or to a pair of
        these and a tree of arrays.
      outer_loss: Function `(params, hparams)` to a scalar, or to a pair of a scalar and
        a tree of arrays, such as the loss on clean examples.
      params: Parameters of the inner model.
      hparams: Hyper-parameters, a tree of floating numbers; the weights `[N]` themselves if
        `weigh` is `None`. Zeros as weights give a virtual step of length 0, and the
        negative gradient is then the score of learning to reweight.
      rate: Length of the virtual step, a scalar above 0, which has no derivative. A mean
        over examples has `rate / N`.
      weigh: Function `(hparams, losses [N]) -> weights [N]`. The losses it is given are
        constants, as in Meta-Weight-Net. For a weight of each group use `by_group`.

    Returns:
      A `Hypergradient`. Its `state` are the virtual parameters, which usually are thrown
      away, and its `residual` is the norm of the gradient of the weighted losses at
      `params`.

    Raises:
      TypeError: hyper-parameters are not floating numbers, or a function is none.
      ValueError: the losses or the weights are not `[N]`, the outer loss is no scalar, or
        the rate is no scalar above 0. Of a rate within `jit` the shape alone is known.

    Example:
      >>> targets = jnp.array([1.0, -2.0])
      >>> found = ml.hypergradient.lookahead(
      ...     lambda w: (w - targets) ** 2 / 2, lambda w, weights: (w - 1.0) ** 2 / 2,
      ...     params=0.0, hparams=jnp.zeros(2), rate=0.5,
      ... )
      >>> found.gradient
      Array([-0.5,  1. ], dtype=float32)
    """
    checked.positive("rate", rate)
    params = checked.real("params", params)
    hparams = checked.real("hparams", hparams)
    of_losses = checked.losses("losses", losses, params)
    outer = checked.loss("outer_loss", outer_loss, params, hparams)
    like = jax.eval_shape(of_losses, params)[0]
    of_weights = weigh or (lambda hparams, losses: hparams)
    made = jax.eval_shape(of_weights, hparams, like)
    hint = "There is a weight for each loss; weigh(hparams, losses) may make them."
    checked.like("the weights", made, like, "the losses", hint)

    values, pull, inner_aux = jax.vjp(of_losses, params, has_aux=True)
    constants = jax.lax.stop_gradient(values)
    weights, back = jax.vjp(lambda hparams: of_weights(hparams, constants), hparams)
    (grads,) = pull(weights)
    virtual = along(-rate, grads, params)
    slopes = jax.value_and_grad(outer, (0, 1), has_aux=True)
    (value, outer_aux), (slope, direct) = slopes(virtual, hparams)
    # `pull` maps weights to their gradient. Its transpose maps a direction to the change of
    # each loss along it, from the forward pass that is there already.
    transposed = jax.linear_transpose(lambda weights: pull(weights)[0], weights)
    (products,) = transposed(slope)
    (through,) = back(-jnp.asarray(rate, products.dtype) * products)
    return Hypergradient(
        value=value,
        gradient=along(1.0, through, direct),
        residual=norm(grads),
        state=virtual,
        inner_aux=inner_aux,
        outer_aux=outer_aux,
    )
