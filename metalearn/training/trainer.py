"""The outer update: a learner and an optax optimiser become one pure step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn.core import kinds, trees
from metalearn.core.keys import check_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables
from metalearn.core.optimisers import outer_optimiser_on
from metalearn.core.task import Task
from metalearn.core.types import Array, Key, Metrics, PyTree
from metalearn.core.updates import NOT_FINITE, UP, fault


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


# Bits of `meta/fault`, the parts of a step that were not finite.
FAULTS = {
    1: "the meta-gradient",
    2: "a metric",
    4: "the update of the outer optimiser",
    8: "the state of the model",
}


class MetaTrainer(NamedTuple):
    """The outer update as pure functions.

    Attributes:
      init: `(key, task) -> TrainState`.
      step: `(state, tasks, *, key) -> (state, metrics {name: [T]})`. Where the
        meta-gradient, the update or a metric is not finite, the variables and the state
        of the optimiser stay as they are and `metrics["meta/finite"]` `[T]` is 0;
        `metrics["meta/fault"]` `[T]` then says where, by the bits of `FAULTS`.
      learner: Learner that is trained.

    Example:
      >>> trainer = ml.meta_trainer(learner, optax.adam(1e-3))
      >>> tasks, step = ml.tasks.sinusoid(), jax.jit(trainer.step)
      >>> k_init, k_tasks, k_step = jax.random.split(jax.random.key(0), 3)
      >>> state = trainer.init(k_init, tasks(k_init))
      >>> batch = ml.sample_batch(tasks, tasks.data, jax.random.split(k_tasks, 25))
      >>> state, metrics = step(state, batch, key=k_step)
      >>> metrics["query/loss"].mean()
    """

    init: Callable[[Key, Task], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    learner: MetaLearner


_BATCH = "Draw a batch by ml.sample_batch(sampler, sampler.data, keys)."


def meta_trainer(
    learner: MetaLearner, outer_opt: optax.GradientTransformation
) -> MetaTrainer:
    """Joins a learner and an outer optimiser.

    Args:
      learner: Any `MetaLearner`.
      outer_opt: Any optax transformation of gradients and parameters, schedules included.

    Raises:
      TypeError: not a learner, not an optax transformation, or one that needs more than
        gradients and parameters, as `optax.lbfgs` does.

    Example:
      >>> trainer = ml.meta_trainer(learner, optax.adam(1e-3))
      >>> step = jax.jit(trainer.step)  # if you drive it yourself; fit compiles for you
    """
    kinds.learner(learner)
    check_outer(outer_opt)

    def init(key: Key, task: Task) -> TrainState:
        """The state before the first step, of variables for tasks like `task`."""
        check_key(key)
        variables = learner.init(key, task)
        outer_optimiser_on(variables.params, outer_opt)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            variables=variables,
            opt_state=outer_opt.init(variables.params),
        )

    def step(state: TrainState, tasks: Task, *, key: Key) -> tuple[TrainState, Metrics]:
        """One outer step on a batch of tasks `[T, ...]`; see `MetaTrainer.step`."""
        kinds.instance(state, TrainState, "state", "Give trainer.init(key, task).")
        kinds.instance(tasks, Task, "tasks", _BATCH)
        estimate = learner.estimate(state.variables, tasks, key=key)
        params = state.variables.params
        carried = _as_before(estimate.state, state.variables.state)
        updates, opt_state = outer_opt.update(estimate.grads, state.opt_state, params)
        updated = (optax.apply_updates(params, updates), opt_state)
        # Metrics as well: a loss may overflow where its gradient does not, and what a
        # learner calls its loss is not for this place to know.
        parts = (estimate.grads, dict(estimate.metrics), updated, carried)
        good = jnp.stack([trees.all_finite(part) for part in parts])
        finite = jnp.all(good)
        # Selection and not multiplication by a flag: 0 times NaN would still be NaN.
        (params, opt_state), carried = jax.tree.map(
            lambda new, old: jnp.where(finite, _cast(new, old), old),
            (updated, carried),
            ((params, state.opt_state), state.variables.state),
        )
        variables = Variables(params=params, state=carried)
        state = TrainState(step=state.step + 1, variables=variables, opt_state=opt_state)
        num = tasks.support.mask.shape[0]
        bits = jnp.where(good, 0, jnp.array(list(FAULTS), jnp.int32))
        fault = jnp.sum(bits, dtype=jnp.int32)
        return state, {
            **estimate.metrics,
            "meta/finite": jnp.broadcast_to(finite.astype(jnp.float32), (num,)),
            "meta/fault": jnp.broadcast_to(fault, (num,)),
            "meta/gradient": jnp.broadcast_to(_size(estimate.grads), (num,)),
            "meta/state": jnp.broadcast_to(_size(carried), (num,)),
        }

    return MetaTrainer(init, step, learner)


def _as_before(new: PyTree, old: PyTree) -> PyTree:
    """The state of a model after a step, in the dtypes of the state before.

    A batch norm whose averages are float32 makes float64 ones of inputs of float64.

    Raises:
      TypeError: another structure or shape, or a number that became one of another kind.
    """
    before, after = (jax.tree_util.tree_leaves_with_path(tree) for tree in (old, new))
    if jax.tree.structure(new) != jax.tree.structure(old):
        raise TypeError(
            f"the step gives a state of the model with the leaves {trees.leaf_paths(new)}, "
            f"where init gave {trees.leaf_paths(old)}. Training needs the same ones: let "
            "init make all of them."
        )
    for (path, is_), (_, was) in zip(after, before, strict=True):
        if jnp.shape(is_) != jnp.shape(was) or _cast(is_, was).dtype != was.dtype:
            raise TypeError(
                f"the state of the model at {trees.path_string(path)} is {is_.dtype}"
                f"{list(is_.shape)} after a step and {was.dtype}{list(was.shape)} before. "
                "Training needs the same shape and kind of number: let init make it so."
            )
    return jax.tree.map(_cast, new, old)


def _size(tree: PyTree) -> Array:
    """Euclidean norm of all real numbers, a float32 scalar."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def _cast(new: Array, old: Array) -> Array:
    """A real number in the dtype of the one before; others as they are."""
    if getattr(new, "dtype", None) == getattr(old, "dtype", None):
        return new
    real = all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in (new, old))
    return jnp.asarray(new, jnp.result_type(old)) if real else new


def check_outer(outer_opt: optax.GradientTransformation) -> None:
    """Checks an outer optimiser on parameters of its own, by shapes alone.

    Raises:
      TypeError: not an optax transformation, or one that needs more than gradients and
        parameters.
      ValueError: its updates are NaN, or go up the gradient.
    """
    if isinstance(outer_opt, optax.MultiSteps):
        raise TypeError(
            "outer_opt is an optax.MultiSteps, which adds up the gradients of several "
            "steps; expected an optax transformation. Give more tasks to one step, "
            "tasks_per_step, and let them wait their turn by the task_chunk of the "
            "learner; or write MultiSteps(...).gradient_transformation()."
        )
    if not isinstance(outer_opt, optax.GradientTransformation):
        raise TypeError(
            f"outer_opt is a {type(outer_opt).__name__}; expected an optax "
            "transformation such as optax.adam(1e-3)."
        )

    def once(params: PyTree) -> PyTree:
        return outer_opt.update(params, outer_opt.init(params), params)

    try:
        jax.eval_shape(once, {"w": jax.ShapeDtypeStruct((2, 2), jnp.float32)})
    except (TypeError, AttributeError, ValueError) as error:
        # Others may only refuse the structure of these parameters.
        needs_more = "required keyword-only argument" in str(error)
        needs_more = needs_more or "must be provided" in str(error)
        if needs_more or "has no attribute 'fast'" in str(error):
            raise TypeError(
                f"outer_opt needs more than a gradient and parameters ({error}), as "
                "reduce_on_plateau, lbfgs and lookahead do; an outer step has no more to "
                "give. Take one such as optax.adam, with a schedule for its rate, or "
                "ml.averaging(optax.adam(1e-3)) in place of lookahead."
            ) from None
    except Exception:  # it looks at the structure: judged on the learner's parameters
        return
    found = fault(outer_opt, 1, jax.config.jax_enable_x64)
    if found == UP:
        raise ValueError(
            "outer_opt moves up the gradient, so the loss would rise: its rate is "
            "negative, or it has none (optax.scale_by_adam() in place of "
            "optax.adam(rate)). Expected e.g. optax.adam(1e-3)."
        )
    if found == NOT_FINITE:
        raise ValueError(
            "outer_opt makes updates that are NaN from finite gradients; its rate or its "
            "schedule is NaN. Give a finite rate."
        )


def check_trainer(trainer: MetaTrainer) -> None:
    """Raises a `TypeError` unless `trainer` is a `MetaTrainer`."""
    if isinstance(trainer, MetaTrainer):
        return
    given = type(trainer).__name__
    made = "ml.meta_trainer(learner, optax.adam(1e-3))"
    if isinstance(trainer, MetaLearner):
        raise TypeError(
            f"trainer is a {given}; expected a MetaTrainer. Add an outer optimiser: {made}."
        )
    raise TypeError(f"trainer is a {given}; expected a MetaTrainer, from {made}.")


def check_state(state: TrainState | None) -> None:
    """Raises a `TypeError` unless `state` is a `TrainState` or `None`."""
    if state is None or isinstance(state, TrainState):
        return
    remedy = "Give FitResult.state, or trainer.init(key, task)."
    if isinstance(getattr(state, "state", None), TrainState):
        remedy = "Give the state of the result: .state."
    elif isinstance(state, Variables):
        remedy = (
            "To start from variables: dataclasses.replace(trainer.init(key, task), "
            "variables=variables)."
        )
    raise TypeError(f"state is a {type(state).__name__}; expected a TrainState. {remedy}")
