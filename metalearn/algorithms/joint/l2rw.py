"""Learning to reweight: a noisy example counts as far as it helps a few clean ones.

M. Ren, W. Zeng, B. Yang, R. Urtasun. Learning to Reweight Examples for Robust Deep
Learning. ICML 2018. Differences:

- The released code takes the derivative by a graph of two steps. Here it is one product of
  the Jacobian of the losses with the clean gradient, which is the same number.
- Running averages of batch norm see the noisy batch alone, once.
- The paper trains the model by momentum on the weighted loss. Here the outer optimiser does
  that, whichever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metalearn.algorithms.joint.builder import (
    Gradient,
    Network,
    check_single,
    joint,
    network_of,
)
from metalearn.core import checks, kinds, labels, metrics
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Task
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, Key, LossFn, PyTree, TaskChunk
from metalearn.hypergradient import lookahead, normalised
from metalearn.inner.norm import JointNorm


def l2rw(
    model: Model,
    loss_fn: LossFn,
    *,
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """One model, trained on noisy examples whose weights a clean batch decides anew.

    A task is a noisy batch, the support set, and a clean one, the query set. The score of
    an example is `u_i = <grad l_i, grad L(query)>`, by which a step on the example would
    lower the loss of the clean batch. Its weight is
    `w_i = max(u_i, 0) / sum_j max(u_j, 0)`, and the gradient of the model is
    `sum_i w_i grad l_i`; it is 0 where no score is positive. The length of the step that
    the paper takes for the scores cancels.

    Args:
      model: The network.
      loss_fn: Loss of one task, a mean over examples whose losses do not mix.
      norm: Batch-norm policy: "support", "batch" or "running"; see `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`; `adapt` takes the model as it is. A step reports `weights/used`, the
      share of the examples whose weight is above 0, and `weights/sum`, which is 1 or 0.

    Raises:
      ValueError: the loss divides by class weights.

    Example:
      >>> network = ml.from_linen(ml.models.MLP(10, widths=(50,)))
      >>> learner = ml.l2rw(network, ml.losses.cross_entropy)
    """
    check_single("l2rw", loss_fn)

    def gradient(network: Network) -> Gradient:
        def of_task(variables: Variables, task: Task, *, key: Key):
            params, state = variables.params["model"], variables.state["model"]
            found = _reweighted(network, params, state, task, key)
            (grads,) = found.pull(found.weights)
            told = metrics.of_task(loss_fn, found.outputs, task.query)
            report = {f"query/{name}": value for name, value in told.items()}
            mask, used = task.support.mask, (found.weights > 0).astype(found.each.dtype)
            report["support/loss"] = masked_mean(found.each, mask)
            report["weights/used"] = masked_mean(used, mask)
            report["weights/sum"] = jnp.sum(found.weights)
            return {"model": grads}, ({"model": found.state}, report)

        return of_task

    return joint("l2rw", model, loss_fn, gradient, norm=norm, task_chunk=task_chunk)


def clean_weights(
    model: Model, variables: Variables, task: Task, *, loss_fn: LossFn
) -> Array:
    """Weights that learning to reweight gives to the support set of one task, `[N]`.

    Args:
      model: The network.
      variables: Variables of the network: `params["model"]` and `state["model"]` of the
        learner.
      task: The noisy batch as support, the clean one as query.
      loss_fn: Loss of one task.

    Returns:
      Weights of 0 or more, whose sum is 1, or 0 where no example helps; 0 if masked. All
      are NaN within `jit` if a valid label is outside the logits, which cannot be refused
      there.

    Raises:
      TypeError: the variables or the task are something else.
      ValueError: the loss divides by class weights, values of the task are not finite, or a
        valid label is outside the logits.

    Example:
      >>> mine = ml.Variables(params=v.params["model"], state=v.state["model"])
      >>> weights = ml.clean_weights(model, mine, task, loss_fn=ml.losses.cross_entropy)
    """
    kinds.variables(variables)
    check_single("clean_weights", loss_fn)
    checks.one_task(task)
    network = network_of(model, loss_fn, keeps=False)
    like, _ = jax.eval_shape(network.apply, variables.params, variables.state, task.support)
    ways = labels.num_classes(loss_fn, like, task.support.y)
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(task)):
        checks.values_of_task(task, None if ways is None else like)
    found = _reweighted(network, variables.params, variables.state, task, None).weights
    if ways is None:
        return found
    # Such a label has no slope, so its example would quietly get a weight of 0.
    lost = labels.outside_of(task, ways).sum() > 0
    return jnp.where(lost, jnp.nan, found)


class _Reweighted(NamedTuple):
    """A noisy batch and its weights; `pull` maps weights `[N]` to the weighted gradient."""

    weights: Array
    pull: Callable[[Array], tuple[PyTree]]
    each: Array
    state: PyTree
    outputs: PyTree


def _reweighted(
    network: Network, params: PyTree, state: PyTree, task: Task, key: Key | None
) -> _Reweighted:
    k_support, k_query = split_key(key, 2)

    def losses(params: PyTree):
        return network.losses(params, state, task.support, key=k_support)

    def clean(params: PyTree, weights: PyTree):
        del weights
        value, aux = network.loss(params, state, task.query, key=k_query)
        return value, aux[0]

    # The compiler finds that `lookahead` begins with the same forward pass.
    each, pull, (_, new) = jax.vjp(losses, params, has_aux=True)
    # From weights of 0 the virtual step goes nowhere, whatever its length.
    found = lookahead(losses, clean, params, jnp.zeros_like(each), rate=1.0)
    weights = normalised(-found.gradient, task.support.mask)
    return _Reweighted(weights, pull, each, new, found.outer_aux)
