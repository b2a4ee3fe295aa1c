"""Learners that adapt a set of particles: one builder for the whole family.

Inside, `bayesian.ascent` moves M networks on the support set. Outside, an objective of all
of them is differentiated, which an algorithm says by a function of its own (`outer`). Their
prediction is that of the mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Unpack

import jax
import optax

from metalearn.algorithms.bayesian.ascent import Ascent, ascent
from metalearn.algorithms.bayesian.ensemble import combine_outputs
from metalearn.algorithms.bayesian.posterior import Posterior
from metalearn.algorithms.options import Options, complete
from metalearn.core import checks, kinds, metrics
from metalearn.core.estimators import gradient_estimator
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn
from metalearn.inner import Adapted, Unrolled
from metalearn.inner.differentiate import refuse_implicit


class AdaptedParticles(NamedTuple):
    """The particles of one training task; what the outer objective sees.

    Attributes:
      variables: Variables of the learner, where the particles started.
      task: The task.
      inner: The ascent, which can go on.
      adapted: The particles after the last step.
      path: The inner loop.
      outputs: Outputs of every particle for the queries, `[M, Q, ...]`.
      report: Metrics of the task; `query/loss` is that of the mixture.
      key: Key for draws of the outer objective.
    """

    variables: Variables
    task: Task
    inner: Ascent
    adapted: Adapted
    path: Unrolled
    outputs: Array
    report: dict[str, Array]
    key: Key


def query_loss(done: AdaptedParticles, loss_fn: LossFn) -> tuple[Array, dict]:
    """The loss of the averaged prediction; nothing more to report."""
    del loss_fn
    return done.report["query/loss"], {}


def particle_learner(
    name: str,
    model: Model,
    loss_fn: LossFn,
    inner_opt: optax.GradientTransformation,
    posterior: Posterior,
    /,
    *,
    mixing: optax.GradientTransformation,
    num_particles: int,
    num_steps: int,
    outer: Callable[[AdaptedParticles, LossFn], tuple[Array, dict]],
    settings: Mapping[str, Any],
    **options: Unpack[Options],
) -> MetaLearner:
    """Builds a learner of particles.

    Args:
      name: What `describe` calls the learner, unless `options` say otherwise.
      model: The network of one particle.
      loss_fn: Mean loss of one task, for reports.
      inner_opt: An optax transformation of leaves `[M, ...]`.
      posterior: What is ascended, and how predictions are averaged.
      mixing: What particles know of one another, see `bayesian.ascent`.
      num_particles: M.
      num_steps: K, inner steps, at least 1.
      outer: `(adapted particles, loss_fn) -> (loss, more to report)`.
      settings: Further pairs for `describe`.
      **options: See `metalearn.algorithms.options.Options`; `adapt_filter` chooses the
        weights that are particles, the others are shared.

    Returns:
      A `MetaLearner`; for its params and adapted object see `bayesian.ascent`.

    Raises:
      ValueError: an option is out of range, or the inner optimiser has no finite second
        derivative.
    """
    chosen = complete(particle_learner, name, options)
    refuse_implicit(chosen["name"], chosen["differentiation"])
    inner = ascent(
        model,
        loss_fn,
        inner_opt,
        posterior,
        mixing=mixing,
        num_particles=num_particles,
        num_steps=num_steps,
        differentiation=chosen["differentiation"],
        adapt_filter=chosen["adapt_filter"],
        norm=chosen["norm"],
        mask_absent_classes=chosen["mask_absent_classes"],
    )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        return inner.init(key, task)

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support)
        return inner.adapt(variables, support, key=key)[0]

    def combined(outputs: Array) -> Array:
        return combine_outputs(outputs, posterior.combine)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Adapted)
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
        done = AdaptedParticles(
            variables, task, inner, adapted, path, outputs, report, k_outer
        )
        loss, more = outer(done, loss_fn)
        state = inner.collect(variables.state, path, query_state)
        return loss, (state, {**report, **more})

    config = config_of(
        chosen["name"],
        num_particles=num_particles,
        num_steps=num_steps,
        combine=posterior.combine,
        differentiation=chosen["differentiation"],
        norm=chosen["norm"],
        **settings,
    )
    estimate = gradient_estimator(objective, task_chunk=chosen["task_chunk"])
    made = MetaLearner(init, adapt, predict, estimate, config, hashable(loss_fn))
    return made._replace(masks_absent=chosen["mask_absent_classes"])
