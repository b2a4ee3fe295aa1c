"""Online meta-learning of the start of domain adaptation, with DANN as the base method.

D. Li, T. Hospedales. Online Meta-Learning for Multi-Source and Semi-Supervised Domain
Adaptation. ECCV 2020. Where adaptation ends depends on where it begins. So the parameters
that training stands at are taken for a start, again and again:

1. A meta-step holds one source out. `ahead_steps` steps of DANN are made from the current
   parameters Theta, on the other sources with labels and on the held-out one without. That
   gives Theta_J, and the loss of the held-out source there, with its labels, is the meta
   loss. All J steps count as one, the shortest path from Theta to Theta_J, through which
   nothing is differentiated: the meta-gradient is `grad L_sup(Theta_J)`. Theta_J is then
   discarded, with its discriminator and its batch statistics.
2. `da_steps` ordinary steps of DANN follow, on all sources and the target domain.

**Transductive**, as DANN is: images of the target take part in training without labels.

No code of the authors was found, and the equations were checked against the abstract and a
summary alone. Differences that are known:

- One outer optimiser makes both kinds of steps. The discriminator has no gradient in a
  meta-step, but an optimiser with momentum moves it on.
- The steps of a look-ahead see the same rows, and the held-out images whose labels judge
  are those that the look-ahead saw without labels.
- Running averages do not move in a meta-step.
- The variant that starts DANN anew after meta-training, "sequential", is not here.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from metalearn.algorithms.joint.builder import Gradient, Network, joint
from metalearn.algorithms.joint.dann import (
    Adversarial,
    Unlabelled,
    adversarial,
    counter,
    target_of,
)
from metalearn.core import checks, kinds, metrics
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Task, concatenate
from metalearn.core.types import Key, LossFn, PyTree, TaskChunk
from metalearn.inner.norm import JointNorm


def meta_dann(
    encoder: Model,
    loss_fn: LossFn,
    *,
    num_ways: int,
    ahead_steps: int = 1,
    inner_rate: float = 0.1,
    da_steps: int = 1,
    towards: Literal["held_out", "target"] = "held_out",
    first_order: bool = True,
    adversarial_weight: float = 1.0,
    ramp_steps: int = 0,
    discriminator_width: int = 64,
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """DANN, in which steps for a good start of DANN take turns with its own.

    Transductive: a task is a batch. Its support set is of some sources, its query set of
    the source that is held out, and `info["target"]` `[U, ...]` are unlabelled inputs of
    the target domain. Tasks without them have the inputs of the query set in their place.

    Args:
      encoder: Network that gives features `[N, D]`.
      loss_fn: Loss of the labelled rows.
      num_ways: Number of classes, of a linear head on the features.
      ahead_steps: J, steps of a look-ahead; at 0 a meta-step is one of plain training on
        the held-out source.
      inner_rate: Rate of these steps, 0 or more.
      da_steps: Ordinary steps after each meta-step.
      towards: Unlabelled inputs of a look-ahead: those of the held-out source, or of the
        target domain.
      first_order: Whether the look-ahead counts as one step whose dependence on the
        parameters is dropped.
      adversarial_weight: Weight of the reversed gradient, 0 or more.
      ramp_steps: Steps over which the weight grows from 0; at 0 it is constant.
      discriminator_width: Hidden units of the discriminator.
      norm: Batch-norm policy: "running", "support" or "batch"; see `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`. Params are `{"model", "discriminator"}`; the state counts steps.

    Raises:
      ValueError: a number is out of range or given where nothing reads it, or a word is
        unknown.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4(width=32, downsample="stride"))
      >>> learner = ml.meta_dann(encoder, ml.losses.cross_entropy, num_ways=10)
    """
    checks.whole_number("ahead_steps", ahead_steps, least=0)
    checks.number("inner_rate", inner_rate)
    checks.whole_number("da_steps", da_steps, least=0)
    checks.one_of("towards", towards, ("held_out", "target"))
    kinds.flag("first_order", first_order)
    if not ahead_steps:
        idle = {"inner_rate": inner_rate, "towards": towards, "first_order": first_order}
        checks.unread(meta_dann, idle, "ahead_steps above 0")
    base = adversarial(
        encoder, loss_fn, num_ways, adversarial_weight, ramp_steps, discriminator_width
    )

    def gradient(network: Network) -> Gradient:
        of_base = base.gradient(keeps=norm == "running")
        of_start = _start(network, loss_fn, base, (ahead_steps, inner_rate), first_order)

        def of_task(variables: Variables, task: Task, *, key: Key):
            step, state = variables.state["step"], variables.state["model"]
            weight = base.weight(step)
            target = target_of(task)

            def meta(key: Key):
                held = Unlabelled(task.query.x, task.query.mask)
                seen = held if towards == "held_out" else target
                grads, report = of_start(variables.params, state, task, seen, weight, key)
                return grads, (state, report)

            def ordinary(key: Key):
                examples = concatenate(task.support, task.query)
                return of_base(
                    variables.params, state, examples, target, weight=weight, key=key
                )

            turn = step % (da_steps + 1) == 0
            grads, (new, report) = jax.lax.cond(turn, meta, ordinary, key)
            return grads, ({"model": new, "step": step + 1}, report)

        return of_task

    return joint(
        *("meta_dann", base.model, loss_fn, gradient),
        level=base.level,
        memory=counter,
        settings={
            **base.settings,
            "ahead_steps": ahead_steps,
            "inner_rate": inner_rate,
            "da_steps": da_steps,
            "towards": towards,
            "first_order": first_order,
        },
        norm=norm,
        task_chunk=task_chunk,
    )


def _start(
    network: Network,
    loss_fn: LossFn,
    base: Adversarial,
    steps: tuple[int, float],
    first_order: bool,
):
    """Function `(params, state, task, unlabelled, weight, key) -> (gradients, report)`."""
    num_steps, rate = steps  # J and alpha
    # The look-ahead has no averages of its own, and leaves those of training alone.
    slope = base.gradient(keeps=False)

    def ahead(
        params: PyTree, state: PyTree, task: Task, seen: Unlabelled, weight, key: Key
    ):
        def step(params: PyTree, key: Key):
            grads, (_, report) = slope(
                params, state, task.support, seen, weight=weight, key=key
            )
            moved = jax.tree.map(
                lambda p, g: p - jnp.asarray(rate, p.dtype) * g, params, grads
            )
            return moved, report["domain/loss"]

        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(step, params, keys)

    def judged(params: PyTree, state: PyTree, task: Task, key: Key):
        value, (outputs, _) = network.loss(params["model"], state, task.query, key=key)
        return value, outputs

    def of(params, state, task: Task, seen: Unlabelled, weight, key: Key):
        k_ahead, k_judge = split_key(key, 2)

        def through(params: PyTree):
            if not num_steps:
                return params, jnp.zeros((0,), jnp.float32)
            return ahead(params, state, task, seen, weight, k_ahead)

        def whole(params: PyTree) -> tuple[Any, tuple]:
            moved, domain = through(params)
            value, outputs = judged(moved, state, task, k_judge)
            return value, (outputs, domain)

        if first_order:
            # The derivative at the end of the path, as if it began there.
            moved, domain = through(params)
            grads, outputs = jax.grad(judged, has_aux=True)(moved, state, task, k_judge)
        else:
            grads, (outputs, domain) = jax.grad(whole, has_aux=True)(params)
        told = metrics.of_task(loss_fn, outputs, task.query)
        report = {f"joint/{name}": value for name, value in told.items()}
        first = domain[0] if num_steps else jnp.zeros((), jnp.float32)
        report["domain/loss"] = first.astype(told["loss"].dtype)
        return grads, report

    return of
