"""Alpha MAML: the inner and the outer rate are learned while training.

H. S. Behl, A. G. Baydin, P. H. S. Torr. Alpha MAML: Adaptive Model-Agnostic Meta-Learning.
ICML 2019 AutoML workshop, arXiv 1905.07435.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bilevel import Hooks, bilevel
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.types import Array, LossFn, PyTree
from metalearn.core.updates import UP, fault, is_transformation

Rule = Literal["additive", "multiplicative"]
RULES: tuple[str, ...] = get_args(Rule)


@takes_options()
def alpha_maml(
    model: Model,
    loss_fn: LossFn,
    *,
    initial_rate: float = 0.01,
    num_steps: int = 1,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML whose inner rate is a parameter; the learner of Alpha MAML.

    `phi_{k+1} = phi_k - alpha grad L(phi_k; support)` with one scalar alpha (algorithm 2).
    Its meta-gradient is the derivative of the query loss: `-grad L(phi_1; query) .
    grad L(theta; support)` for one step, as in the paper, and for more steps the exact one
    through all of them, where the product of two gradients would not be enough.

    Train it with `alpha_maml_optimiser`; any other optimiser works too and then is learned-
    rate MAML with that optimiser.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      initial_rate: alpha at the start.
      num_steps: K, inner steps.
      differentiation: See `metalearn.inner.differentiate`. "first_order" makes the
        derivative by alpha a first-order one as well.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` with params `{"model": ..., "inner": alpha}`, alpha a scalar.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.alpha_maml(model, ml.losses.cross_entropy, initial_rate=0.01)
      >>> outer = ml.alpha_maml_optimiser(1e-3, alpha_rate=1e-4, beta_rate=1e-6)
      >>> trainer = ml.meta_trainer(learner, outer)
    """
    checks.whole_number("num_steps", num_steps, least=0)
    checks.number("initial_rate", initial_rate)
    rate = float(initial_rate)
    hooks = Hooks(inner_hparams=rate, settings={"initial_rate": rate})
    return bilevel(
        "alpha_maml",
        model,
        loss_fn,
        optax.sgd,
        num_steps=num_steps,
        hooks=hooks,
        **options,
    )


def alpha_maml_optimiser(
    learning_rate: float,
    *,
    alpha_rate: float,
    beta_rate: float,
    inner: optax.GradientTransformation | None = None,
    rule: Rule = "additive",
) -> optax.GradientTransformation:
    """The outer optimiser of Alpha MAML, for the params of `alpha_maml`.

    `hypergradient_descent` for the model, with beta as its rate; for alpha, whose
    meta-gradient is `h`, `alpha <- alpha - alpha_rate h`. With `rule="multiplicative"`,
    `alpha <- alpha exp(-alpha_rate h / rms(h))`, the root of the mean square being that of
    the latest steps: alpha stays positive and the size of the loss does not matter.

    Args:
      learning_rate: beta at the start.
      alpha_rate: The rate of alpha; 0 keeps it. About 0.02 if multiplicative.
      beta_rate: The rate of beta; 0 keeps it. About 0.02 if multiplicative.
      inner: Direction of the model's steps, see `hypergradient_descent`.
      rule: Update of both rates: "additive", as the paper, or "multiplicative".

    Returns:
      An optax transformation. It takes every other outer parameter than `"inner"` for one
      of the model. beta is found by `optax.tree.get(opt_state, "rate")`.

    Raises:
      ValueError: an argument is out of range; in `init`: params without `"inner"`.

    Example:
      >>> ml.alpha_maml_optimiser(1e-3, alpha_rate=0.02, beta_rate=0.02,
      ...                         inner=optax.scale_by_adam(), rule="multiplicative")
    """
    checks.number("alpha_rate", alpha_rate)
    beta = hypergradient_descent(learning_rate, beta_rate, inner, rule=rule)
    if rule == "additive":
        alpha = optax.sgd(alpha_rate)
    else:
        normalised = optax.scale_by_adam(b1=0.0, b2=0.9, eps=1e-12)
        alpha = optax.chain(normalised, _exponentiated(alpha_rate))

    def labels(params: PyTree) -> PyTree:
        if not isinstance(params, dict) or "inner" not in params:
            raise ValueError(
                "alpha_maml_optimiser needs params {'model': ..., 'inner': alpha}, but got "
                f"{jax.tree.structure(params)}. Make the learner with ml.alpha_maml."
            )
        return {name: "alpha" if name == "inner" else "beta" for name in params}

    return optax.partition({"alpha": alpha, "beta": beta}, labels)


class HypergradientState(NamedTuple):
    """State of `hypergradient_descent`.

    Attributes:
      rate: Scalar, beta as it was applied last.
      direction: u of the last step, like the params.
      inner: State of the inner transformation.
    """

    rate: Array
    direction: PyTree
    inner: PyTree


def hypergradient_descent(
    learning_rate: float,
    hyper_rate: float,
    inner: optax.GradientTransformation | None = None,
    *,
    rule: Rule = "additive",
) -> optax.GradientTransformation:
    """Descent that learns its own rate.

    A. G. Baydin, R. Cornish, D. Martinez Rubio, M. Schmidt, F. Wood. Online Learning Rate
    Adaptation with Hypergradient Descent. ICLR 2018.

    `theta_t = theta_{t-1} - beta u_{t-1}` makes the derivative of the loss at `theta_t` by
    beta `h = -G_t . u_{t-1}`. So first `beta <- beta - hyper_rate h`, and then
    `theta <- theta - beta u_t` with the new beta. In the first step h is 0. With
    `rule="multiplicative"`, `beta <- beta (1 + hyper_rate cos(G_t, u_{t-1}))`, which keeps
    beta positive and does not depend on the size of the gradients. An additive beta may
    become negative; the size of its `hyper_rate` is that of beta over the squared gradient.

    Args:
      learning_rate: beta at the start; a number, not a schedule.
      hyper_rate: 0 keeps beta; below 1 if multiplicative.
      inner: Transformation of the gradient G into the direction u, without rate and sign,
        such as `optax.scale_by_adam()` or `optax.trace(0.9)`; `u = G` when `None`.
      rule: Update of beta: "additive", as the paper, or "multiplicative".

    Returns:
      An optax transformation with a `HypergradientState`: one further copy of the params.

    Raises:
      TypeError: `inner` is no optax transformation.
      ValueError: an argument is out of range, `inner` has a rate and with it the sign, or
        an unknown `rule`.

    Example:
      >>> opt = ml.hypergradient_descent(1e-3, 0.02, optax.scale_by_adam(),
      ...                                rule="multiplicative")
    """
    if callable(learning_rate):
        raise ValueError(
            "learning_rate is a schedule; expected a number, which the hypergradient moves."
        )
    checks.number("learning_rate", learning_rate)
    checks.number("hyper_rate", hyper_rate)
    checks.one_of("rule", rule, RULES)
    if rule == "multiplicative" and hyper_rate >= 1:
        raise ValueError(
            f"hyper_rate (beta_rate) is {hyper_rate!r}; expected less than 1 for "
            "rule='multiplicative', where one step multiplies beta by 1 - hyper_rate at "
            "least. Try 0.02."
        )
    direct = optax.identity() if inner is None else inner
    _check_direction(direct)

    def init(params: PyTree) -> HypergradientState:
        dtype = jnp.result_type(*map(jnp.result_type, jax.tree.leaves(params)))
        rate = jnp.asarray(learning_rate, dtype)
        still = jax.tree.map(jnp.zeros_like, params)
        return HypergradientState(rate, still, direct.init(params))

    def update(grads: PyTree, state: HypergradientState, params: PyTree = None):
        along = _dot(grads, state.direction).astype(state.rate.dtype)
        if rule == "additive":
            rate = state.rate + hyper_rate * along
        else:
            size = optax.tree.norm(grads) * optax.tree.norm(state.direction)
            size = size.astype(state.rate.dtype)
            # Without a gradient there is no angle, and beta stays: not 0 / 0.
            cosine = jnp.where(size > 0, along / jnp.where(size > 0, size, 1), 0)
            rate = state.rate * (1 + hyper_rate * cosine)
        direction, inner_state = direct.update(grads, state.inner, params)
        updates = jax.tree.map(lambda u: -rate.astype(u.dtype) * u, direction)
        return updates, HypergradientState(rate, direction, inner_state)

    return optax.GradientTransformation(init, update)


def _check_direction(inner: Any) -> None:
    wanted = "expected a direction without rate and sign, such as optax.scale_by_adam()"
    if not is_transformation(inner):
        given = (
            repr(inner) if isinstance(inner, (str, float, int)) else type(inner).__name__
        )
        raise TypeError(f"inner is {given}; {wanted}.")
    against = optax.chain(inner, optax.scale(-1.0))
    if fault(against, 1, jax.config.jax_enable_x64) == UP:
        raise ValueError(
            f"inner moves down the gradient by itself; {wanted}, and not optax.adam(rate): "
            "the learned rate multiplies it, and brings the sign."
        )


def _exponentiated(rate: float) -> optax.GradientTransformation:
    """`a <- a exp(-rate s)` for the normalised gradient `s`."""
    return optax.stateless(
        lambda steps, params: jax.tree.map(
            lambda s, a: a * jnp.expm1(-rate * s), steps, params
        )
    )


def _dot(a: PyTree, b: PyTree) -> Array:
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)))
