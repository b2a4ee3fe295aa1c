"""MLDG: a step that helps the domains it was made on must help another domain as well.

D. Li, Y. Yang, Y.-Z. Song, T. Hospedales. Learning to Generalize: Meta-Learning for Domain
Generalization. AAAI 2018. One persistent model with parameters theta descends

    F(theta) + beta G(theta - alpha grad F(theta)),

where F is the sum of the losses of the meta-train domains and G the loss of the domain that
is held out of this step. To first order in alpha that is F + beta G - alpha beta <grad F,
grad G>: gradients that point the same way in all domains are rewarded.

Differences from the paper:

- Which domain is held out is the choice of the task. The tasks of `metalearn.apps.domains`
  draw it anew for each, as the paper does.
- Batch norm normalises the meta-train domains together and the held-out domain by itself.
  Its running averages are those of the meta-train domains, before the virtual step.
- The outer optimiser is the caller's; the paper has momentum and a decay of the weights.

Other code that goes by this name differs: that of DomainBed drops the second derivatives,
makes the inner step by Adam, and goes through pairs of domains.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metalearn.algorithms.joint import domains
from metalearn.algorithms.joint.builder import Gradient, Network, joint
from metalearn.core import checks, kinds, metrics
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Task
from metalearn.core.types import Key, LossFn, TaskChunk
from metalearn.inner.norm import JointNorm


def mldg(
    model: Model,
    loss_fn: LossFn,
    *,
    inner_rate: float = 0.1,
    beta: float = 1.0,
    first_order: bool = False,
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """One model whose steps on some domains must lower the loss of another one.

    A task is a batch. Its support set has the meta-train domains in equal shares, in their
    order, and `info["domains"]` `[D]` their numbers; its query set is of the domain that is
    held out. Tasks without `domains` have one meta-train domain. At test the model predicts
    as it is.

    Args:
      model: The network.
      loss_fn: Loss of one domain.
      inner_rate: Rate alpha of the virtual step on the sum of the meta-train losses, 0 or
        more. At 0 the objective is a weighted sum of the losses of all domains.
      beta: Weight of the held-out loss, 0 or more. At 0 only the meta-train domains count.
      first_order: Whether the derivative of the virtual step is dropped.
      norm: Batch-norm policy: "running", "support" or "batch"; see `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`.

    Raises:
      ValueError: a rate or weight is out of range; in `estimate`, the rows of the support
        set have no equal shares.

    Example:
      >>> learner = ml.mldg(model, ml.losses.cross_entropy, inner_rate=0.1)
    """
    checks.number("inner_rate", inner_rate)
    checks.number("beta", beta)
    kinds.flag("first_order", first_order)

    def gradient(network: Network) -> Gradient:
        def of_task(variables: Variables, task: Task, *, key: Key):
            num = domains.number_of(task)
            k_train, k_test = split_key(key, 2)

            def train_loss(params, state):
                outputs, state = network.apply(params, state, task.support, key=k_train)
                losses = domains.losses_of(loss_fn, outputs, task.support, num)
                return losses.sum(), state

            def objective(params):
                start = variables.state["model"]
                of_train = jax.value_and_grad(train_loss, has_aux=True)
                (train, state), slope = of_train(params, start)
                if first_order:
                    # The step counts, its dependence on the parameters does not.
                    slope = jax.lax.stop_gradient(slope)
                moved = jax.tree.map(
                    lambda p, g: p - jnp.asarray(inner_rate, p.dtype) * g.astype(p.dtype),
                    params,
                    slope,
                )
                # Running averages are of the parameters that predict at test, and not of
                # those of a virtual step.
                found = network.loss(moved, state, task.query, key=k_test)
                test, (outputs, _) = found
                report = metrics.of_task(loss_fn, outputs, task.query)
                report = {f"query/{name}": value for name, value in report.items()}
                report["fit/loss"] = train / num
                return train + jnp.asarray(beta, test.dtype) * test, (state, report)

            grads, (state, report) = jax.grad(objective, has_aux=True)(
                variables.params["model"]
            )
            return {"model": grads}, ({"model": state}, report)

        return of_task

    settings = {"inner_rate": inner_rate, "beta": beta, "first_order": first_order}
    return joint(
        *("mldg", model, loss_fn, gradient),
        settings=settings,
        norm=norm,
        task_chunk=task_chunk,
    )
