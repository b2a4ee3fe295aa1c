"""From the fields of a recipe to a learner: the one place that calls the algorithms."""

from __future__ import annotations

import inspect
from typing import Any

import optax

from metalearn import algorithms
from metalearn.algorithms.bilevel import bilevel
from metalearn.apps import options
from metalearn.apps.base import MAML_FAMILY, OPTIONED, RATED, Recipe
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.types import LossFn


def gradient_learner(
    recipe: Recipe,
    model: Model,
    loss_fn: LossFn,
    *,
    evaluating: bool,
    steps: int | None = None,
    norm: str | None = None,
    fewer_ways: bool = False,
    **head: Any,
) -> MetaLearner:
    """The learner of every algorithm that adapts by gradient descent, or not at all.

    Args:
      recipe: Says which algorithm and its settings.
      model: The network; features for fine_tune with a head.
      loss_fn: Loss of one task.
      evaluating: Whether with the settings of validation and test.
      steps: Inner steps in place of those of the recipe.
      norm: Policy of batch norm; the learner's default if None.
      fewer_ways: Tasks have fewer ways than the model has logits.
      **head: What the data decides: of fine_tune `num_classes` and `num_ways`, of hsml
        `features` and `num_ways`.
    """
    name = recipe.algorithm
    shared = {"task_chunk": recipe.task_chunk}
    if norm is not None:
        shared["norm"] = norm
    if name == "no_adaptation":
        return algorithms.no_adaptation(model, loss_fn, **shared)
    if steps is None:
        longer = recipe.eval_inner_steps if evaluating else None
        steps = recipe.inner_steps if longer is None else longer
    shared["num_steps"] = steps
    if name == "meta_sgd":
        low, high = recipe.inner_rate_low, recipe.inner_rate
        rate = high if low is None else (low, high)
        return algorithms.meta_sgd(
            model, loss_fn, initial_rate=rate, mask_absent_classes=fewer_ways, **shared
        )
    if name in RATED:
        rates = {"rate", "initial_rate"}
        build = getattr(algorithms, name)
        (rate,) = rates.intersection(inspect.signature(build).parameters)
        shared[rate] = recipe.inner_rate
        if fewer_ways:
            shared["mask_absent_classes"] = True
        return build(model, loss_fn, **shared, **learner_options(recipe))
    opt = inner_opt(recipe)
    if name == "reptile":
        return algorithms.reptile(
            model,
            loss_fn,
            opt,
            batch_size=recipe.inner_batch,
            eval_steps=steps,
            eval_batch_size=recipe.eval_inner_batch,
            carry_opt_state=recipe.carry_opt_state,
            **shared | {"num_steps": recipe.inner_steps},
        )
    if name == "fine_tune":
        return algorithms.fine_tune(model, loss_fn, opt, **head, **shared)
    if name in OPTIONED:
        build = getattr(algorithms, name)
        if fewer_ways:
            shared["mask_absent_classes"] = True
        chosen = learner_options(recipe)
        if chosen.get("adaptation") == "hill_climbing":
            opt = None  # es_maml: it takes no gradient
        return build(model, loss_fn, opt, **shared, **head, **chosen)
    if name in MAML_FAMILY:
        build = getattr(algorithms, name)
        return build(model, loss_fn, opt, mask_absent_classes=fewer_ways, **shared)
    raise ValueError(f"algorithm is {name!r}, which does not adapt by gradient descent.")


def learner_options(recipe: Recipe) -> dict[str, Any]:
    """`options` of a recipe as arguments of its learner.

    Raises:
      ValueError: see `recipes.options.parse`.
    """
    makers = [getattr(algorithms, recipe.algorithm)]
    if recipe.algorithm == "mumomaml":
        makers.append(algorithms.hsml)
    if any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(makers[0]).parameters.values()
    ):
        makers.append(bilevel)
    outer = dict(recipe.outer_options())
    chosen = options.parse(recipe.options, [*makers, *recipe.outer_makers()])
    return {name: value for name, value in chosen.items() if name not in outer}


def inner_opt(recipe: Recipe) -> optax.GradientTransformation:
    """The optimiser of the inner loop."""
    if recipe.inner_optimizer == "sgd":
        return optax.sgd(recipe.inner_rate)
    # Second-order learners differentiate the square root of Adam's second moment.
    second_order = recipe.algorithm in ("maml", "anil", "boil", *OPTIONED)
    return optax.adam(
        recipe.inner_rate, b1=recipe.inner_b1, eps_root=1e-8 if second_order else 0.0
    )
