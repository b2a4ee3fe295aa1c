"""Reptile: move the initialisation towards what plain training on a task reaches.

A. Nichol, J. Achiam, J. Schulman. On First-Order Meta-Learning Algorithms.
arXiv 1803.02999, 2018.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metalearn.core import checks, kinds
from metalearn.core.estimators import mean_estimator
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.types import Key, LossFn, PyTree, TaskChunk
from metalearn.inner import Adapted, Descent, descent
from metalearn.inner.norm import NormPolicy


def reptile(
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int | None = None,
    eval_steps: int | None = None,
    eval_batch_size: int | None = None,
    carry_opt_state: bool = False,
    norm: NormPolicy = "support",
    mask_absent_classes: bool = False,
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """Trains on all examples of a task and returns `theta - phi` as the meta-gradient.

    `phi = U^K(theta)` by K optimiser steps on mini-batches of support and query
    together (algorithm 2, batched); with outer SGD of rate epsilon,
    `theta <- theta + epsilon mean(phi - theta)`. No second derivatives.

    Differs from the released code: with several tasks a step they run side by side, so
    with `carry_opt_state` the carried state is the mean over tasks, where the code hands
    it from task to task (with one task a step both are the same). Scale and offset of norm
    layers adapt with the rest, here as there.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      inner_opt: An optax transformation; the paper uses `optax.adam(1e-3, b1=0)`.
      num_steps: K, inner steps in training.
      batch_size: Examples an inner step sees, by cycling the shuffled set; all if `None`.
      eval_steps: Inner steps of `adapt` (paper: 50); `num_steps` if `None`.
      eval_batch_size: Batch size of `adapt`; `batch_size` if `None`.
      carry_opt_state: Keeps the optimiser's slots (Adam's second moments) from task to
        task, as the released code does, instead of starting fresh.
      norm: Batch-norm policy, see `metalearn.inner.norm`.
      mask_absent_classes: Whether classes without a support example get a logit that never
        wins, for tasks with a variable number of ways. In training the classes are those of
        support and query together.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`. Train it with `optax.sgd(schedule from 1 to 0)` and tasks of more
      shots than at test (paper: 10 or 15).

    Raises:
      ValueError: an option is out of range, or `norm="per_step"` with other `eval_steps`
        than `num_steps`.

    Example:
      >>> learner = ml.reptile(model, ml.losses.cross_entropy,
      ...                      optax.adam(1e-3, b1=0.0), num_steps=5, batch_size=10)
    """
    eval_steps = num_steps if eval_steps is None else eval_steps
    eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
    # It learns from where its inner steps lead, so there must be one.
    checks.whole_number("num_steps", num_steps, least=1)
    checks.whole_number("eval_steps", eval_steps, least=0)
    checks.inner_optimiser(inner_opt, None, second_order=False)
    shared = dict(
        differentiation="first_order", norm=norm, mask_absent_classes=mask_absent_classes
    )
    training = descent(
        model, loss_fn, inner_opt, num_steps=num_steps, batch_size=batch_size, **shared
    )
    testing = descent(
        model,
        loss_fn,
        inner_opt,
        num_steps=eval_steps,
        batch_size=eval_batch_size,
        **shared,
    )
    if norm == "per_step" and eval_steps not in (0, num_steps):
        raise ValueError(
            f"norm='per_step' keeps statistics for num_steps={num_steps} steps, but "
            f"eval_steps={eval_steps}. Make them equal or choose another policy."
        )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        variables = training.init(key, task)
        if not carry_opt_state:
            return variables
        opt_state = inner_opt.init(variables.params)
        state = {"model": variables.state, "opt": opt_state}
        return Variables(params=variables.params, state=state)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support)
        inner, opt_state = _parts(variables, carry_opt_state)
        return testing.adapt(inner, None, support, key=key, opt_state=opt_state)[0]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        kinds.adapted(adapted, Adapted)
        return testing.predict(adapted, x, key=key, mask=mask)[0]

    gradient = _path_gradient(training, carry_opt_state)
    config = config_of(
        "reptile",
        num_steps=num_steps,
        batch_size=batch_size,
        eval_steps=eval_steps,
        eval_batch_size=eval_batch_size,
        carry_opt_state=carry_opt_state,
        norm=norm,
    )
    estimate = mean_estimator(gradient, task_chunk=task_chunk)
    return MetaLearner(init, adapt, predict, estimate, config, hashable(loss_fn))


def _path_gradient(
    training: Descent, carry_opt_state: bool
) -> Callable[..., tuple[PyTree, tuple]]:
    """`theta - phi` of one task."""

    def gradient(variables: Variables, task: Task, *, key: Key) -> tuple[PyTree, tuple]:
        inner, opt_state = _parts(variables, carry_opt_state)
        everything = concatenate(task.support, task.query)
        adapted, path = training.adapt(
            inner, None, everything, key=key, train=True, opt_state=opt_state
        )
        report = {"support/loss": path.losses[0], "fit/loss": path.losses[-1]}
        # No pass over the query set: it would cost as much as an inner step.
        last_state = jax.tree.map(lambda s: s[-1], path.aux)
        state = training.collect(inner.state, path, last_state)
        if carry_opt_state:
            state = {"model": state, "opt": path.opt_state}
        step = jax.tree.map(jnp.subtract, inner.params, adapted.params)
        return step, (state, report)

    return gradient


def _parts(variables: Variables, carry_opt_state: bool) -> tuple[Variables, PyTree]:
    """Variables of the model, and the state that the inner optimiser starts from."""
    if not carry_opt_state:
        return variables, None
    state = variables.state
    return Variables(params=variables.params, state=state["model"]), state["opt"]
