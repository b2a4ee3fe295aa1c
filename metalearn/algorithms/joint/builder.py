"""The mechanism that learners of one persistent model share.

A task is a batch of two parts: the support set, from which the model learns, and the query
set, which judges what was learned, such as examples of another domain or with clean labels.
The second level is what each learner adds: a term of the objective, weights of the
examples, a regulariser. At test the model predicts as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn.core import checks, kinds, losses
from metalearn.core.estimators import mean_estimator
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner, config_of, hashable
from metalearn.core.model import Model, Variables
from metalearn.core.pairing import paired
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PyTree, TaskChunk
from metalearn.inner import Adapted, descent
from metalearn.inner.norm import JointNorm


class Network(NamedTuple):
    """The model in training, as the gradient of a learner sees it.

    Attributes:
      apply: Function `(params, state, examples, *, key=None) -> (outputs, state)`, in
        training mode.
      loss: Function `(params, state, examples, *, key=None) -> (loss, (outputs, state))`,
        the loss of a set.
      losses: Function `(params, state, examples, *, key=None) -> (losses [N], (outputs,
        state))`, the loss of each example; 0 where it is masked.
    """

    apply: Callable[..., tuple[PyTree, PyTree]]
    loss: Callable[..., tuple[Array, tuple[PyTree, PyTree]]]
    losses: Callable[..., tuple[Array, tuple[PyTree, PyTree]]]


# `(variables, task, *, key) -> (gradient, (state, metrics))`, as `mean_estimator` takes it.
Gradient = Callable[..., tuple[PyTree, tuple]]


def joint(
    name: str,
    model: Model,
    loss_fn: LossFn,
    gradient: Callable[[Network], Gradient],
    *,
    level: Callable[[Key, Variables], dict[str, PyTree]] | None = None,
    memory: Callable[[Key, Variables], dict[str, PyTree]] | None = None,
    settings: dict[str, Any] | None = None,
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """Makes a learner whose model lives on from step to step and is shared by all tasks.

    Args:
      name: Name of the learner.
      model: The network.
      loss_fn: Loss of one task.
      gradient: Function from the `Network` to the gradient of one task. Params are always
        `{"model": ..., **level}` and states `{"model": ..., **memory}`, and so are the
        gradient and the state that it returns.
      level: Function `(key, variables of the model) -> dict`, the parameters of the second
        level, which the outer optimiser moves.
      memory: Function `(key, variables of the model) -> dict`, what the learner remembers
        beside the state of the model, such as moments of an optimiser of its own, or
        parameters that it moves itself.
      settings: Hyper-parameters for `describe`.
      norm: Batch-norm policy: "running", "support" or "batch"; see `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`. `adapt` takes the model as it is; only with `norm="support"` it reads
      the support set, for its statistics.
    """
    checks.model(model)
    checks.one_of("norm", norm, ("running", "support", "batch"))
    inner = descent(
        model,
        loss_fn,
        optax.identity(),
        num_steps=0,
        differentiation="first_order",
        norm=norm,
    )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        k_model, k_level, k_memory = split_key(key, 3)
        made = inner.init(k_model, task)
        own = {} if level is None else level(k_level, made)
        kept = {} if memory is None else memory(k_memory, made)
        return Variables(
            params={"model": made.params, **own}, state={"model": made.state, **kept}
        )

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support, parts=("model",))
        of_model = Variables(
            params=variables.params["model"], state=variables.state["model"]
        )
        return inner.adapt(of_model, None, support, key=key)[0]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        kinds.adapted(adapted, Adapted)
        return inner.predict(adapted, x, key=key, mask=mask)[0]

    made = gradient(network_of(model, loss_fn, keeps=norm == "running"))
    return MetaLearner(
        init,
        adapt,
        predict,
        mean_estimator(made, task_chunk=task_chunk),
        config_of(name, **settings or {}, norm=norm),
        hashable(loss_fn),
    )


def network_of(model: Model, loss_fn: LossFn, *, keeps: bool) -> Network:
    """The functions of a model and its loss, in training mode.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      keeps: Whether running averages are read, and so go on.
    """

    def apply(params, state, examples: Examples, *, key: Key | None = None):
        variables = Variables(params=params, state=state)
        outputs, new = model.apply(
            variables, examples.x, key=key, train=True, mask=examples.mask
        )
        # Without running averages nothing ever reads the state.
        return outputs, new if keeps else state

    def loss(params, state, examples: Examples, *, key: Key | None = None):
        outputs, state = apply(params, state, examples, key=key)
        return paired(loss_fn, outputs, examples), (outputs, state)

    def singly(params, state, examples: Examples, *, key: Key | None = None):
        outputs, state = apply(params, state, examples, key=key)
        return each(loss_fn, outputs, examples), (outputs, state)

    return Network(apply, loss, singly)


def check_single(learner: str, loss_fn: LossFn) -> None:
    """Refuses a loss whose value on a single example is not that example's part of it.

    Raises:
      ValueError: it is a cross-entropy that divides by the sum of the class weights.
    """
    if losses.divides_by_weights(loss_fn):
        raise ValueError(
            f"{learner} takes the loss of single examples, and cross_entropy with "
            "class_weights divides by their sum, so that on one example nothing is left of "
            "the weights. Write functools.partial(ml.losses.focal, gamma=0, "
            "class_weights=...), the same loss as a mean over examples."
        )


def each(loss_fn: LossFn, outputs: PyTree, examples: Examples) -> Array:
    """The loss of each example, `[N]`, by a loss that is a mean over a set; 0 if masked."""
    rows = jax.tree.map(lambda leaf: leaf[:, None], (outputs, examples.x, examples.y))
    one = jnp.ones((examples.mask.shape[0], 1), bool)

    def of_row(outputs, x, y, mask) -> Array:
        return loss_fn(outputs, Examples(x=x, y=y, mask=mask))

    # Masked rows have a loss of their own, whose derivative is zero and never NaN times 0.
    return jnp.where(examples.mask, jax.vmap(of_row)(*rows, one), 0)
