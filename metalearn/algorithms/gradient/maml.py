"""MAML and the variants that are options of it.

C. Finn, P. Abbeel, S. Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks. ICML 2017.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bilevel import bilevel
from metalearn.core import checks, trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Task
from metalearn.core.types import Key, LossFn, PathFilter, PyTree
from metalearn.inner.differentiate import refuse_implicit


def maml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: Any,
    *,
    num_steps: int = 1,
    differentiation: str = "reverse",
    adapt_filter: PathFilter | None = None,
    inner_hparams: PyTree | Callable[[Key, PyTree], PyTree] | None = None,
    norm: str = "support",
    mask_absent_classes: bool = False,
    task_chunk: int | str = "auto",
    name: str = "maml",
) -> MetaLearner:
    """Learns an initialisation from which a few optimiser steps solve a task.

    Adaptation: `phi_0 = theta`, `phi_{k+1} = phi_k - alpha grad L(phi_k; support)` (any
    optax transformation in place of that SGD). Outer objective: the mean over tasks of
    `L(phi_K; query)`, differentiated through the adaptation (algorithm 1).

    Differs from the released code: losses are means, so its printed inner rates are to
    be multiplied by the number of ways; predictions are inductive unless
    `norm="batch"`.

    Args:
      model: The network; logits `[N, W]` for classification.
      loss_fn: Loss of one task, e.g. `ml.losses.cross_entropy`.
      inner_opt: An optax transformation, or a function `hparams -> transformation` whose
        `hparams` are learned with the initialisation.
      num_steps: K, inner steps; 0 learns a model without adaptation. For more steps at
        test time build a second learner and use the same variables.
      differentiation: "reverse"; "remat", "nested" or "mixed" for less memory; or
        "first_order", which drops the second derivatives (FOMAML). See
        `metalearn.inner.differentiate`.
      adapt_filter: `(path, leaf) -> bool`: parameters that adapt; all when `None`. The
        others are learned in the outer loop only.
      inner_hparams: Initial hyper-parameters of `inner_opt`, or
        `(key, adapted params) -> hparams`.
      norm: Batch-norm policy: "support", "batch" (transductive, as the paper's code),
        "running" or "per_step"; see `metalearn.inner.norm`.
      mask_absent_classes: For tasks with a variable number of ways.
      task_chunk: Tasks handled at once, or "auto".
      name: What `describe` calls it.

    Returns:
      A `MetaLearner` whose adapted object is a `metalearn.inner.Adapted`. With
      `inner_hparams` its params are `{"model": ..., "inner": hparams}`.

    Raises:
      ValueError: an option is out of range, or `inner_opt` has no finite second
        derivative (e.g. `optax.adam` with `eps_root=0`).

    Example:
      >>> learner = ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=5)
    """
    refuse_implicit("maml", differentiation)
    return bilevel(
        name,
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        differentiation=differentiation,
        adapt_filter=adapt_filter,
        inner_hparams=inner_hparams,
        norm=norm,
        mask_absent_classes=mask_absent_classes,
        task_chunk=task_chunk,
    )


def fomaml(model: Model, loss_fn: LossFn, inner_opt: Any, **options: Any):
    """First-order MAML (Finn et al. 2017, section 5.2).

    `maml(..., differentiation="first_order")`.

    The outer gradient is the query gradient at the adapted parameters; the query set is
    disjoint from the support set (the "separate tail" variant of Nichol et al. 2018).
    """
    checks.known_options(fomaml, options, maml)
    options = {"name": "fomaml", "differentiation": "first_order", **options}
    return maml(model, loss_fn, inner_opt, **options)


def anil(
    model: Model, loss_fn: LossFn, inner_opt: Any, *, head: str = "head", **options: Any
) -> MetaLearner:
    """Almost no inner loop: only the head adapts.

    A. Raghu, M. Raghu, S. Bengio, O. Vinyals. Rapid Learning or Feature Reuse? Towards
    Understanding the Effectiveness of MAML. ICLR 2020. Everything is learned outside.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      inner_opt: As in `maml`.
      head: Regular expression found in the paths of the head's parameters.
      **options: Those of `maml`.
    """
    checks.known_options(anil, options, maml, but=("adapt_filter",))
    select = trees.path_filter(head)
    return maml(
        model, loss_fn, inner_opt, adapt_filter=select, **{"name": "anil", **options}
    )


def boil(
    model: Model, loss_fn: LossFn, inner_opt: Any, *, head: str = "head", **options: Any
) -> MetaLearner:
    """Body only in the inner loop: all but the head adapts.

    J. Oh, H. Yoo, C. Kim, S.-Y. Yun. BOIL: Towards Representation Change for Few-shot
    Learning. ICLR 2021. The head is still learned outside.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      inner_opt: As in `maml`; the paper uses a large rate (0.5).
      head: Regular expression found in the paths of the head's parameters.
      **options: Those of `maml`.
    """
    checks.known_options(boil, options, maml, but=("adapt_filter",))
    select = trees.path_filter(head)
    learner = maml(
        model,
        loss_fn,
        inner_opt,
        adapt_filter=lambda path, leaf: not select(path, leaf),
        **{"name": "boil", **options},
    )

    def init(key: Key, task: Task) -> Variables:
        variables = learner.init(key, task)
        paths = trees.leaf_paths(variables.params)
        if not any(map(re.compile(head).search, paths)):
            raise ValueError(
                f"head={head!r} occurs in no parameter path, so everything would adapt, "
                "which is MAML. The paths are: " + ", ".join(paths)
            )
        return variables

    return learner._replace(init=init)


def meta_sgd(
    model: Model,
    loss_fn: LossFn,
    *,
    num_steps: int = 1,
    initial_rate: float | tuple[float, float] = (0.005, 0.1),
    **options: Any,
) -> MetaLearner:
    """MAML with one learned inner rate for every parameter.

    Z. Li, F. Zhou, F. Chen, H. Li. Meta-SGD: Learning to Learn Quickly for Few-Shot
    Learning. arXiv 1707.09835, 2017. `phi = theta - alpha * grad L(theta; support)`
    with an elementwise product; `theta` and `alpha` are learned together (equation 1).
    Rates may become negative, as the paper intends.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      num_steps: K; the paper uses 1.
      initial_rate: A constant, or the range of a uniform draw for each coordinate.
      **options: Those of `maml`.
    """
    checks.known_options(meta_sgd, options, maml, but=("inner_hparams",))

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

    return maml(
        model,
        loss_fn,
        elementwise_sgd,
        num_steps=num_steps,
        inner_hparams=initial,
        **{"name": "meta_sgd", **options},
    )


def elementwise_sgd(rates: PyTree) -> optax.GradientTransformation:
    """SGD with one rate for every coordinate, `rates` being like the params."""
    return optax.stateless(lambda grads, _: jax.tree.map(lambda a, g: -a * g, rates, grads))
