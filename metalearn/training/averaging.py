"""Averages of the weights along training, for judging a learner whose rate never falls."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from metalearn.core import checks, kinds, trees
from metalearn.core.model import Variables
from metalearn.core.types import Array, PyTree
from metalearn.training.trainer import TrainState


class Averaging(NamedTuple):
    """State of `averaging`.

    Attributes:
      inner: State of the optimiser within.
      count: Number of updates so far, an int32 scalar.
      average: Average of the parameters after each update, in float32 at least; the first
        ones before any.
    """

    inner: PyTree
    count: Array
    average: PyTree


def averaging(
    opt: optax.GradientTransformation, decay: float = 0.999
) -> optax.GradientTransformationExtraArgs:
    """An optimiser that keeps an exponential average of the parameters it makes.

    Training is the same to the bit. `fit` and `fit_continually` judge and return the
    average (`judged`): the noise of a constant rate falls out of it, as it falls out of
    training whose rate decays, but nothing has to know when training ends. An optimiser
    that starts anew, as after growth, averages anew.

    Give the whole optimiser: what stands behind it in an `optax.chain` is not seen, and
    `judged` refuses averages of parts of the parameters. Averages are float32 at least,
    for in bfloat16 a decay near one is lost to rounding. Running statistics are
    those of the last weights, which fit averaged ones less well (`norm="running"`,
    `"per_step"`); statistics of the support set are unaffected.

    Args:
      opt: The optimiser.
      decay: Decay of the average, from 0 to below 1. The average reaches back
        `1 / (1 - decay)` updates, or all of them while they are fewer; with 0 it is the
        last parameters.

    Raises:
      TypeError: not an optax transformation; in `update`: a state of another optimiser.
      ValueError: a decay outside `[0, 1)`; in `update`: no params.

    Example:
      >>> trainer = ml.meta_trainer(learner, ml.averaging(optax.adam(1e-3)))
    """
    if not isinstance(opt, optax.GradientTransformation):
        raise TypeError(
            f"opt is a {type(opt).__name__}; expected an optax transformation such as "
            "optax.adam(1e-3)."
        )
    checks.number("decay", decay)
    if decay >= 1:
        raise ValueError(f"decay is {decay}; expected a number from 0 to below 1.")

    opt, decay = optax.with_extra_args_support(opt), float(decay)
    log_decay = math.log(decay) if decay else -math.inf

    def init(params: PyTree) -> Averaging:
        # Arrays of its own, to be donated.
        average = jax.tree.map(lambda p: jnp.copy(trees.widened(p)), params)
        return Averaging(opt.init(params), jnp.zeros((), jnp.int32), average)

    def update(updates: PyTree, state: Averaging, params: Any = None, **extra: Any):
        if params is None:
            raise ValueError(
                "averaging got no params; expected the current ones. Call "
                "update(grads, state, params)."
            )
        if not isinstance(state, Averaging):
            raise TypeError(
                f"averaging got a state that is a {type(state).__name__}; expected its "
                "own. A run that began without it goes on with a new state of the "
                "optimiser: dataclasses.replace(state, opt_state=outer_opt.init(params))."
            )
        updates, inner = opt.update(updates, state.inner, params, **extra)
        count = optax.safe_increment(state.count)
        # The weight that corrects the bias towards the first parameters: 1 - decay over
        # 1 - decay^count, which in single precision would be 0 for a decay near one.
        weight = (1 - decay) / -jnp.expm1(count.astype(jnp.float32) * log_decay)
        average = jax.tree.map(
            lambda old, new: old + weight.astype(old.dtype) * (trees.widened(new) - old),
            state.average,
            optax.apply_updates(params, updates),
        )
        return updates, Averaging(inner, count, average)

    return optax.GradientTransformationExtraArgs(init, update)


def judged(state: TrainState) -> Variables:
    """The variables to judge and to keep: averaged ones under `averaging`.

    Schedule-free optimisers of optax keep an average too, which is returned.

    The state of the model, such as running statistics, is that of the last step.

    Raises:
      TypeError: not a `TrainState`.
      ValueError: there are several averages, or one of a part of the parameters.
    """
    kinds.instance(state, TrainState, "state", "Give that of a result: result.state.")
    found = _averages(state.opt_state)
    if not found:
        return _free_of_schedule(state)
    average, params = found[0].average, state.variables.params
    if len(found) > 1 or jax.tree.structure(average) != jax.tree.structure(params):
        raise ValueError(
            f"the optimiser keeps {len(found)} averages, of parts of the parameters or of "
            "one another; expected one of all. Give averaging the whole optimiser: "
            "ml.averaging(optax.chain(...)), ml.averaging(optax.partition(...))."
        )
    average = jax.tree.map(
        lambda a, p: a if a.dtype == p.dtype else a.astype(p.dtype), average, params
    )
    return Variables(params=average, state=state.variables.state)


def _free_of_schedule(state: TrainState) -> Variables:
    """The variables, or what schedule-free optimisers evaluate in their place.

    These hand the points to step from to the gradient, and keep the average of the steps.
    """
    is_one = lambda node: isinstance(node, optax.contrib.ScheduleFreeState)
    nodes = jax.tree.leaves(state.opt_state, is_leaf=is_one)
    found, params = [node for node in nodes if is_one(node)], state.variables.params
    if not found:
        return state.variables
    if len(found) > 1 or jax.tree.structure(found[0].z) != jax.tree.structure(params):
        raise ValueError(
            f"the optimiser holds {len(found)} schedule-free optimisers, of parts of the "
            "parameters; expected one of all, whose evaluation is known."
        )
    params = optax.contrib.schedule_free_eval_params(found[0], params)
    return Variables(params=params, state=state.variables.state)


def _averages(state: PyTree) -> list[Averaging]:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Averaging))
    found = [node for node in nodes if isinstance(node, Averaging)]
    return found + [deeper for node in found for deeper in _averages(node.inner)]
