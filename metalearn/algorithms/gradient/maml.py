"""MAML and the variants that are options of it.

C. Finn, P. Abbeel, S. Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks. ICML 2017.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bilevel import Hooks, bilevel
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.types import InnerHparams, InnerOpt, Key, LossFn, PyTree


@takes_options()
def maml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    num_steps: int = 1,
    inner_hparams: InnerHparams | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """Learns an initialisation from which a few optimiser steps solve a task.

    Adaptation: `phi_0 = theta`, `phi_{k+1} = phi_k - alpha grad L(phi_k; support)` (any
    optax transformation in place of that SGD). Outer objective: the mean over tasks of
    `L(phi_K; query)`, differentiated through the adaptation (algorithm 1).

    Differs from the released code: losses are means, so its printed inner rates are to
    be multiplied by the number of ways; predictions are inductive unless
    `norm="batch"`; scale and offset of norm layers adapt with the rest, where the code has
    no scale and holds the offset inside (`adapt_filter="^(?!.*Norm)"` holds both).

    Args:
      model: The network; logits `[N, W]` for classification.
      loss_fn: Loss of one task, e.g. `ml.losses.cross_entropy`.
      inner_opt: An optax transformation, or a function `hparams -> transformation` whose
        `hparams` are learned with the initialisation.
      num_steps: K, inner steps; 0 learns a model without adaptation. For more steps at
        test time build a second learner and use the same variables.
      inner_hparams: Initial hyper-parameters of `inner_opt`, or
        `(key, adapted params) -> hparams`.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` whose adapted object is a `metalearn.inner.Adapted`. Its params are
      `{"model": ...}`, with `"inner"` beside them where `inner_hparams` are learned; its
      state is `{"model": ..., "step": int32}`, the outer steps that were done.

    Raises:
      TypeError: an unknown option.
      ValueError: an option is out of range, or `inner_opt` has no finite second
        derivative (e.g. `optax.adam` with `eps_root=0`).

    Example:
      >>> learner = ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=5)
    """
    hooks = Hooks(inner_hparams=inner_hparams)
    return bilevel(
        "maml", model, loss_fn, inner_opt, num_steps=num_steps, hooks=hooks, **options
    )


@takes_options(but=("differentiation",))
def fomaml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    num_steps: int = 1,
    inner_hparams: InnerHparams | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """First-order MAML (Finn et al. 2017, section 5.2).

    `maml(..., differentiation="first_order")`. The outer gradient is the query gradient at
    the adapted parameters; the query set is disjoint from the support set (the "separate
    tail" variant of Nichol et al. 2018).

    Args:
      model: The network.
      loss_fn: Loss of one task.
      inner_opt: As in `maml`; it need not be differentiable.
      num_steps: K, inner steps.
      inner_hparams: As in `maml`.
      **options: See `metalearn.algorithms.options.Options`.
    """
    return bilevel(
        "fomaml",
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(inner_hparams=inner_hparams),
        differentiation="first_order",
        **options,
    )


@takes_options(but=("adapt_filter",))
def anil(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    num_steps: int = 1,
    head: str = "head",
    inner_hparams: InnerHparams | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """Almost no inner loop: only the head adapts.

    A. Raghu, M. Raghu, S. Bengio, O. Vinyals. Rapid Learning or Feature Reuse? Towards
    Understanding the Effectiveness of MAML. ICLR 2020. Everything is learned outside.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      inner_opt: As in `maml`.
      num_steps: K, inner steps.
      head: Regular expression found in the paths of the head's parameters.
      inner_hparams: As in `maml`.
      **options: See `metalearn.algorithms.options.Options`.
    """
    return bilevel(
        "anil",
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(inner_hparams=inner_hparams, settings={"head": head}),
        adapt_filter=trees.path_filter(head),
        **options,
    )


@takes_options(but=("adapt_filter",))
def boil(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    num_steps: int = 1,
    head: str = "head",
    inner_hparams: InnerHparams | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """Body only in the inner loop: all but the head adapts.

    J. Oh, H. Yoo, C. Kim, S.-Y. Yun. BOIL: Towards Representation Change for Few-shot
    Learning. ICLR 2021. The head is still learned outside.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      inner_opt: As in `maml`; the paper uses a large rate (0.5).
      num_steps: K, inner steps.
      head: Regular expression found in the paths of the head's parameters.
      inner_hparams: As in `maml`.
      **options: See `metalearn.algorithms.options.Options`.
    """
    checks.model(model)
    in_head = trees.path_filter(head)

    def init(key: Key, x: PyTree) -> Variables:
        variables = model.init(key, x)
        if not jax.tree.leaves(trees.split(variables.params, in_head)[0]):
            raise ValueError(
                f"head={head!r} occurs in no parameter path, so everything would adapt, "
                "which is MAML. The paths are: "
                + ", ".join(trees.leaf_paths(variables.params))
            )
        return variables

    return bilevel(
        "boil",
        model._replace(init=init),
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(inner_hparams=inner_hparams, settings={"head": head}),
        adapt_filter=lambda path, leaf: not in_head(path, leaf),
        **options,
    )


@takes_options()
def meta_sgd(
    model: Model,
    loss_fn: LossFn,
    *,
    num_steps: int = 1,
    initial_rate: float | tuple[float, float] = (0.005, 0.1),
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML with one learned inner rate for every parameter.

    Z. Li, F. Zhou, F. Chen, H. Li. Meta-SGD: Learning to Learn Quickly for Few-Shot
    Learning. arXiv 1707.09835, 2017. `phi = theta - alpha * grad L(theta; support)`
    with an elementwise product; `theta` and `alpha` are learned together (equation 1).
    Rates may become negative, as the paper intends.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      num_steps: K, inner steps; the paper uses 1.
      initial_rate: A constant, or the range of a uniform draw for each coordinate.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` with params `{"model": ..., "inner": rates}`, rates being like the
      parameters that adapt.

    Raises:
      ValueError: an option is out of range.
    """

    rates = initial_rate if isinstance(initial_rate, tuple) else (initial_rate,) * 2
    for rate in rates:
        checks.number("initial_rate", rate)
    if len(rates) != 2 or rates[0] > rates[1]:
        raise ValueError(
            f"initial_rate is {initial_rate!r}; expected a number, or a range (low, high)."
        )

    def initial(key: Key, params: PyTree) -> PyTree:
        leaves, treedef = jax.tree.flatten(params)
        if not isinstance(initial_rate, tuple):
            return jax.tree.map(lambda p: jnp.full_like(p, initial_rate), params)
        low, high = initial_rate
        keys = jax.random.split(key, len(leaves))
        draws = [
            jax.random.uniform(k, p.shape, p.dtype, low, high)
            for k, p in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, draws)

    settings = {"initial_rate": initial_rate}
    return bilevel(
        "meta_sgd",
        model,
        loss_fn,
        elementwise_sgd,
        num_steps=num_steps,
        hooks=Hooks(inner_hparams=initial, settings=settings),
        **options,
    )


def elementwise_sgd(rates: PyTree) -> optax.GradientTransformation:
    """SGD with one rate for every coordinate, `rates` being like the params."""
    return optax.stateless(lambda grads, _: jax.tree.map(lambda a, g: -a * g, rates, grads))
