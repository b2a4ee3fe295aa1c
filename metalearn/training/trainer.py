"""The outer update: a learner and an optax optimiser become one pure step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn.core import trees
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables
from metalearn.core.task import Task
from metalearn.core.types import Array, Key, Metrics, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything training needs to go on, arrays only.

    Attributes:
      step: Number of outer steps done, an int32 scalar.
      variables: Variables of the learner.
      opt_state: State of the outer optimiser.
    """

    step: Array
    variables: Variables
    opt_state: PyTree


class MetaTrainer(NamedTuple):
    """The outer update as pure functions.

    Attributes:
      init: `(key, task) -> TrainState`.
      step: `(state, tasks, *, key) -> (state, metrics {name: [T]})`. Where the
        meta-gradient, the update or a metric is not finite, the variables and the state
        of the optimiser stay as they are and `metrics["meta/finite"]` `[T]` is 0.
      learner: Learner that is trained.
    """

    init: Callable[[Key, Task], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    learner: MetaLearner


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
        # Metrics as well: a loss may overflow where its gradient does not, and what a
        # learner calls its loss is not for this place to know.
        finite = trees.all_finite((estimate.grads, proposed, dict(estimate.metrics)))
        # Selection and not multiplication by a flag: 0 times NaN would still be NaN.
        variables, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            proposed,
            (state.variables, state.opt_state),
        )
        state = TrainState(step=state.step + 1, variables=variables, opt_state=opt_state)
        num = tasks.support.mask.shape[0]
        flag = jnp.broadcast_to(finite.astype(jnp.float32), (num,))
        return state, {**estimate.metrics, "meta/finite": flag}

    return MetaTrainer(init, step, learner)


def check_trainer(trainer: MetaTrainer) -> None:
    """Raises a `TypeError` unless `trainer` is a `MetaTrainer`."""
    if not isinstance(trainer, MetaTrainer):
        raise TypeError(
            f"trainer is a {type(trainer).__name__}; expected "
            "ml.meta_trainer(learner, outer_opt)."
        )
