"""The outer update: a learner and an optax optimiser become one pure step."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn.core import trees
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.model import Variables
from metalearn.core.task import Task
from metalearn.core.types import Array, Key, Metrics, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything training needs to go on, arrays only.

    Attributes:
      step: Int32 scalar, outer steps done.
      variables: Of the learner.
      opt_state: Of the outer optimiser.
    """

    step: Array
    variables: Variables
    opt_state: PyTree


class MetaTrainer(NamedTuple):
    """The outer update as pure functions.

    Attributes:
      init: `(key, task) -> TrainState`.
      step: `(state, tasks, *, key) -> (state, metrics {name: [T]})`. Where the
        meta-gradient is not finite the variables stay as they are and
        `metrics["meta/finite"]` `[T]` is 0.
      learner: What is trained.
      config: The outer optimiser by its names and numbers, as a pair, as far as its
        functions tell them.
    """

    init: Any
    step: Any
    learner: MetaLearner
    config: tuple[tuple[str, Any], ...] = ()


def meta_trainer(
    learner: MetaLearner, outer_opt: optax.GradientTransformation
) -> MetaTrainer:
    """Joins a learner and an outer optimiser.

    Args:
      learner: Any `MetaLearner`.
      outer_opt: Any optax transformation, schedules included.

    Example:
      >>> trainer = ml.meta_trainer(learner, optax.adam(1e-3))
      >>> step = jax.jit(trainer.step)  # if you drive it yourself; fit compiles for you
    """
    if not isinstance(learner, MetaLearner):
        raise TypeError(
            f"learner is a {type(learner).__name__}; expected a MetaLearner such as "
            "ml.maml(...)."
        )
    if not isinstance(outer_opt, optax.GradientTransformation):
        raise TypeError(
            f"outer_opt is a {type(outer_opt).__name__}; expected an optax "
            "transformation such as optax.adam(1e-3)."
        )

    def init(key: Key, task: Task) -> TrainState:
        variables = learner.init(key, task)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            variables=variables,
            opt_state=outer_opt.init(variables.params),
        )

    def step(state: TrainState, tasks: Task, *, key: Key) -> tuple[TrainState, Metrics]:
        estimate = learner.estimate(state.variables, tasks, key=key)
        params = state.variables.params
        updates, opt_state = outer_opt.update(estimate.grads, state.opt_state, params)
        proposed = (
            Variables(params=optax.apply_updates(params, updates), state=estimate.state),
            opt_state,
        )
        losses = [v for k, v in estimate.metrics.items() if k.endswith("loss")]
        finite = trees.all_finite((estimate.grads, proposed, losses))
        variables, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            proposed,
            (state.variables, state.opt_state),
        )
        state = TrainState(step=state.step + 1, variables=variables, opt_state=opt_state)
        num = tasks.support.mask.shape[0]
        flag = jnp.broadcast_to(finite.astype(jnp.float32), (num,))
        return state, {**estimate.metrics, "meta/finite": flag}

    config = config_of("meta_trainer", outer_opt=outer_opt)[1:]  # no name
    return MetaTrainer(init, step, learner, config)
