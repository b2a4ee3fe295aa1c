"""Learners that adapt a set of particles: one builder for the whole family.

Inside, `inner.particles` moves M networks on the support set; outside, an objective of all
of them is differentiated, which an algorithm says by a function of its own (`outer`). Their
prediction is that of the mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from metalearn.algorithms.bayesian.ascent import Ascent, ascent
from metalearn.algorithms.bayesian.ensemble import combine_outputs
from metalearn.algorithms.bayesian.posterior import Posterior
from metalearn.core import checks, metrics
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PathFilter
from metalearn.inner import Adapted, Unrolled
from metalearn.inner.differentiate import refuse_implicit


class Episode(NamedTuple):
    """One task after the adaptation, for `outer`.

    Attributes:
      variables: Before it.
      task: The task.
      inner: The ascent, which can go on.
      adapted: After the last step.
      path: The inner loop.
      outputs: Those of every particle for the queries, `[M, Q, ...]`.
      report: Metrics of the task; `query/loss` is that of the mixture.
      key: For draws of the outer objective.
    """

    variables: Variables
    task: Task
    inner: Ascent
    adapted: Adapted
    path: Unrolled
    outputs: Array
    report: dict[str, Array]
    key: Key


def query_loss(episode: Episode, loss_fn: LossFn) -> tuple[Array, dict]:
    """The loss of the averaged prediction; nothing more to report."""
    del loss_fn
    return episode.report["query/loss"], {}


def particle_learner(
    name: str,
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    posterior: Posterior,
    *,
    mixing: optax.GradientTransformation,
    num_particles: int,
    num_steps: int,
    outer: Callable[[Episode, LossFn], tuple[Array, dict]] = query_loss,
    differentiation: str = "reverse",
    adapt_filter: PathFilter | None = None,
    norm: str = "support",
    mask_absent_classes: bool = False,
    task_chunk: int | str = "auto",
    settings: dict[str, Any] | None = None,
) -> MetaLearner:
    """Builds a learner of particles.

    Args:
      name: What `describe` calls it.
      model: The network of one particle.
      loss_fn: Mean loss of one task, for reports.
      inner_opt: An optax transformation of leaves `[M, ...]`.
      posterior: What is ascended, and how predictions are averaged.
      mixing: What particles know of one another, see `bayesian.ascent`.
      num_particles: M.
      num_steps: K, at least 1.
      outer: `(episode, loss_fn) -> (loss, more to report)`.
      differentiation: See `metalearn.inner.differentiate`.
      adapt_filter: Which weights are particles; the others are shared.
      norm: Batch-norm policy, see `metalearn.inner.norm`.
      mask_absent_classes: For tasks with a variable number of ways.
      task_chunk: Tasks handled at once, or "auto".
      settings: Further pairs for `describe`.

    Returns:
      A `MetaLearner`; for its params and adapted object see `bayesian.ascent`.

    Raises:
      ValueError: an option is out of range, or the inner optimiser has no finite second
        derivative.
    """
    refuse_implicit(name, differentiation)
    inner = ascent(
        model,
        loss_fn,
        inner_opt,
        posterior,
        mixing=mixing,
        num_particles=num_particles,
        num_steps=num_steps,
        differentiation=differentiation,
        adapt_filter=adapt_filter,
        norm=norm,
        mask_absent_classes=mask_absent_classes,
    )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task)
        return inner.init(key, task)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        checks.one_set(support, "support")
        return inner.adapt(variables, support, key=key)[0]

    def combined(outputs: Array) -> Array:
        return combine_outputs(outputs, posterior.combine)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        return combined(inner.members(adapted, x, key=key, train=False, mask=mask)[0])

    def objective(variables: Variables, task: Task, *, key: Key):
        k_adapt, k_outer, k_query = jax.random.split(key, 3)
        adapted, path = inner.adapt(variables, task.support, key=k_adapt, train=True)
        outputs, query_state = inner.members(
            adapted, task.query.x, key=k_query, train=True, mask=task.query.mask
        )
        report = metrics.of_task(loss_fn, combined(outputs), task.query)
        report = {f"query/{k}": value for k, value in report.items()}
        report["support/loss"] = loss_fn(combined(path.aux[1][0]), task.support)
        loss, more = outer(
            Episode(variables, task, inner, adapted, path, outputs, report, k_outer),
            loss_fn,
        )
        state = inner.collect(variables.state, path, query_state)
        return loss, (state, {**report, **more})

    config = config_of(
        name,
        inner_opt=inner_opt,
        num_particles=num_particles,
        num_steps=num_steps,
        combine=posterior.combine,
        differentiation=str(differentiation),
        norm=norm,
        **(settings or {}),
    )
    estimate = gradient_estimator(objective, task_chunk=task_chunk)
    return MetaLearner(init, adapt, predict, estimate, config)
