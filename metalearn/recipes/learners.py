"""From the fields of a recipe to a learner: the one place that calls the algorithms."""

from __future__ import annotations

import optax

from metalearn import algorithms
from metalearn._typing import LossFn
from metalearn.learner import MetaLearner
from metalearn.model import Model
from metalearn.recipes.base import MAML_FAMILY, Recipe


def gradient_learner(
    recipe: Recipe,
    model: Model,
    loss_fn: LossFn,
    *,
    steps: int,
    batch: int | None = None,
    fewer_ways: bool = False,
    **head: int,
) -> MetaLearner:
    """The learner of every algorithm that adapts by gradient descent, or not at all.

    Args:
      recipe: Says which algorithm and its settings.
      model: The network; features for fine_tune with a head.
      loss_fn: Loss of one task.
      steps: Inner steps.
      batch: reptile: examples of an inner step.
      fewer_ways: Tasks have fewer ways than the model has logits.
      **head: fine_tune: `num_classes` and `num_ways`.
    """
    name = recipe.algorithm
    shared = {"task_chunk": recipe.task_chunk}
    if recipe.norm_policy is not None:
        shared["norm"] = recipe.norm_policy
    if name == "no_adaptation":
        return algorithms.no_adaptation(model, loss_fn, **shared)
    if name == "meta_sgd":
        low, high = recipe.inner_rate_low, recipe.inner_rate
        return algorithms.meta_sgd(
            model,
            loss_fn,
            num_steps=steps,
            initial_rate=high if low is None else (low, high),
            mask_absent_classes=fewer_ways,
            **shared,
        )
    opt = inner_opt(recipe)
    if name in MAML_FAMILY:
        build = getattr(algorithms, name)
        return build(
            model, loss_fn, opt, num_steps=steps, mask_absent_classes=fewer_ways, **shared
        )
    if name == "reptile":
        carry = recipe.carry_opt_state
        return algorithms.reptile(
            model,
            loss_fn,
            opt,
            num_steps=steps,
            batch_size=batch,
            carry_opt_state=carry,
            **shared,
        )
    if name == "fine_tune":
        return algorithms.fine_tune(model, loss_fn, opt, num_steps=steps, **head, **shared)
    raise ValueError(f"algorithm is {name!r}, which does not adapt by gradient descent.")


def inner_opt(recipe: Recipe) -> optax.GradientTransformation:
    """The optimiser of the inner loop."""
    if recipe.inner_optimizer == "sgd":
        return optax.sgd(recipe.inner_rate)
    # Second-order learners differentiate the square root of Adam's second moment.
    second_order = recipe.algorithm in ("maml", "anil", "boil")
    return optax.adam(
        recipe.inner_rate, b1=recipe.inner_b1, eps_root=1e-8 if second_order else 0.0
    )
