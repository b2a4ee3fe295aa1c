"""MetaReg: a regulariser of the head that is learned to help on another domain.

Y. Balaji, S. Sankaranarayanan, R. Chellappa. MetaReg: Towards Domain Generalization using
Meta-Regularization. NeurIPS 2018. The regulariser is a weighted sum of absolute values of
the weights of the head, `R(theta) = sum_i phi_i |theta_i|`. Training has two phases, which
a counter of steps in the state tells apart.

1. For the first `pretrain_steps` steps a pilot network is trained: one body on all domains,
   and a head for each domain. Beside it phi is learned: from the head of one domain,
   `inner_steps` steps of descent are made on the loss of that domain plus R, the body kept,
   and phi descends the loss that the head then has on the held-out domain. The model of the
   learner has no gradient, so it stays as it was made unless the outer optimiser decays it.
2. Then phi is kept as it is, and the model is trained from its start on all domains, on the
   mean loss of their examples plus R. The pilot stays as it was.

So `pretrain_steps` of the steps of a training never move the model, and a baseline with as
many steps has seen more data. phi is unconstrained and starts at `initial_weight`.

Differences from the paper:

- One outer optimiser moves the pilot, phi and the model, where the paper has plain descent.
  The first steps of Adam on the model are larger than usual, because its estimate of the
  second moment starts at zero while its correction for that has ended; plain descent has
  no such memory.
- A step takes the gradients of all domains at once, where the paper goes through them.
- All inner steps see the same rows of the domain, where the paper draws new ones.
- The held-out domain is the choice of the task; the domain of the inner steps is drawn.
- The paper starts the body from ImageNet, twice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from metalearn.algorithms.joint import domains
from metalearn.algorithms.joint.builder import Gradient, Network, joint
from metalearn.core import checks, metrics, trees
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.pairing import paired
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree, TaskChunk
from metalearn.inner.norm import JointNorm


def metareg(
    model: Model,
    loss_fn: LossFn,
    *,
    pretrain_steps: int,
    inner_rate: float = 0.1,
    inner_steps: int = 5,
    initial_weight: float = 0.0,
    head: PathFilter | str = "^head",
    norm: JointNorm = "running",
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """One model with a regulariser of its head that was learned across domains.

    A task is a batch. Its support set has domains in equal shares, in their order;
    `info["domains"]` `[D]` holds their numbers, 0 to D, and `info["held_out"]` that of the
    query set, which is of one further domain. Tasks without them have the domains 0 and 1.
    At test the model predicts as it is. The outer optimiser takes both phases for one run,
    so that a falling rate falls over both.

    Args:
      model: The network.
      loss_fn: Loss of one domain.
      pretrain_steps: Steps of the first phase, which learn the regulariser; 0 keeps it at
        `initial_weight`.
      inner_rate: Rate of the steps of a head, above 0.
      inner_steps: Number of these steps.
      initial_weight: Weight of each parameter of the head in the regulariser at the start.
      head: Parameters that are regularised and that each domain has for itself in the first
        phase: a regular expression that occurs in their paths, or `(path, leaf) -> bool`.
      norm: Batch-norm policy: "running", "support" or "batch"; see `metalearn.inner.norm`.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`. Params are `{"model", "pilot", "heads", "regulariser"}`, where heads
      have a leading axis `[D + 1]`; the state counts steps and keeps the regulariser as the
      first phase left it.

    Raises:
      ValueError: a number is out of range, or given where nothing reads it; in `init`,
        `head` selects no parameter or all; in `estimate`, the rows of the support set have
        no equal shares.

    Example:
      >>> learner = ml.metareg(model, ml.losses.cross_entropy, pretrain_steps=500)
    """
    _check(pretrain_steps, inner_rate, inner_steps)
    checks.number("initial_weight", initial_weight, signed=True)
    checks.adapt_filter(head)

    def memory(key: Key, made: Variables) -> dict[str, Any]:
        del key
        own, _ = _of_head(made.params, head)
        filled = jax.tree.map(lambda p: jnp.full_like(p, initial_weight), own)
        return {"step": jnp.zeros((), jnp.int32), "regulariser": filled}

    def gradient(network: Network) -> Gradient:
        first = _first_phase(network, loss_fn, inner_rate, inner_steps)
        second = _second_phase(network, loss_fn, head)

        def of_task(variables: Variables, task: Task, *, key: Key):
            params, state = variables.params, variables.state
            domains.number_of(task)
            step = state["step"]
            # The outer optimiser may move on by its momentum where gradients are zero.
            weights = jax.tree.map(
                lambda now, kept: jnp.where(step <= pretrain_steps, now, kept),
                params["regulariser"],
                state["regulariser"],
            )

            def learn(key: Key):
                grads, report = first(params, state["model"], task, key)
                zeros = jax.tree.map(jnp.zeros_like, params["model"])
                return {"model": zeros, **grads}, state["model"], report

            def train(key: Key):
                grads, new, report = second(
                    params["model"], state["model"], weights, task, key
                )
                rest = {k: v for k, v in params.items() if k != "model"}
                rest = jax.tree.map(jnp.zeros_like, rest)
                return {"model": grads, **rest}, new, report

            grads, new, report = jax.lax.cond(step < pretrain_steps, learn, train, key)
            kept = {"model": new, "step": step + 1, "regulariser": weights}
            return grads, (kept, report)

        return of_task

    made = joint(
        *("metareg", model, loss_fn, gradient),
        memory=memory,
        settings={
            "pretrain_steps": pretrain_steps,
            "inner_rate": inner_rate,
            "inner_steps": inner_steps,
            "initial_weight": initial_weight,
            "head": head if isinstance(head, str) else getattr(head, "__name__", "own"),
        },
        norm=norm,
        task_chunk=task_chunk,
    )

    def init(key: Key, task: Task) -> Variables:
        found = made.init(key, task)
        # As many heads as domains, which only a task tells.
        own = _pilot(model, split_key(key, 3)[2], task, head, initial_weight)
        return Variables(params=found.params | own, state=found.state)

    return made._replace(init=init)


def penalty(weights: PyTree, head: PyTree) -> Array:
    """The regulariser `sum_i phi_i |theta_i|` of a head.

    Args:
      weights: phi, a tree like the head.
      head: Parameters of the head.
    """
    parts = jax.tree.map(lambda w, p: jnp.sum(w * jnp.abs(p)), weights, head)
    return jnp.stack(jax.tree.leaves(parts)).sum()


def _of_head(params: PyTree, select: PathFilter | str) -> tuple[PyTree, PyTree]:
    """The head and the rest.

    Raises:
      ValueError: one of them has no parameter.
    """
    own, rest = trees.split(params, select)
    if not jax.tree.leaves(own) or not jax.tree.leaves(rest):
        what = "every" if jax.tree.leaves(own) else "no"
        raise ValueError(
            f"head={select!r} selects {what} parameter of {trees.leaf_paths(params)}; "
            "expected those of the last layer and no others, such as '^head'."
        )
    return own, rest


def _pilot(
    model: Model, key: Key, task: Task, select: PathFilter | str, weight: float
) -> dict[str, PyTree]:
    """Body, heads and regulariser of the first phase."""
    k_body, k_heads = jax.random.split(key)
    num = domains.number_of(task) + 1
    body = _of_head(model.init(k_body, task.support.x).params, select)[1]
    heads = jax.vmap(lambda k: _of_head(model.init(k, task.support.x).params, select)[0])(
        jax.random.split(k_heads, num)
    )
    weights = jax.tree.map(lambda leaf: jnp.full_like(leaf[0], weight), heads)
    return {"pilot": body, "heads": heads, "regulariser": weights}


def _numbers(task: Task) -> tuple[Array, Array]:
    """Numbers of the domains of the support set, and of the query set."""
    ids = task.info.get("domains", jnp.zeros((1,), jnp.int32))
    held = task.info.get("held_out", jnp.asarray(ids.shape[0], jnp.int32))
    return ids, held


def _heads(heads: PyTree, numbers: Array) -> PyTree:
    """Heads of domains; NaN for a domain that has none, which would be another's."""
    numbers = jnp.where(numbers < 0, jax.tree.leaves(heads)[0].shape[0], numbers)
    return jax.tree.map(
        lambda leaf: leaf.at[numbers].get(mode="fill", fill_value=jnp.nan), heads
    )


def _first_phase(network: Network, loss_fn: LossFn, rate: float, steps: int):
    """Function `(params, state, task, key) -> (gradients, report)`."""

    def pilot_loss(pilot: PyTree, state: PyTree, task: Task, key: Key):
        """Sum over all domains, each with its head."""
        body, heads = pilot
        ids, held = _numbers(task)
        num = ids.shape[0]

        def of_domain(head: PyTree, examples: Examples, key: Key) -> Array:
            return network.loss(trees.merge(head, body), state, examples, key=key)[0]

        k_support, k_query = split_key(key, 2)
        found = jax.vmap(of_domain)(
            _heads(heads, ids),
            domains.shares(task.support, num),
            jax.random.split(k_support, num),
        )
        own = _heads(heads, held)
        last, (outputs, _) = network.loss(
            trees.merge(own, body), state, task.query, key=k_query
        )
        return found.sum() + last, (outputs, (found.sum() + last) / (num + 1))

    def outer_loss(weights: PyTree, pilot: PyTree, state: PyTree, task: Task, key: Key):
        """Loss of the held-out domain after regularised steps on another."""
        body, heads = pilot
        ids, _ = _numbers(task)
        k_domain, k_train, k_test = split_key(key, 3)
        place = jax.random.randint(k_domain, (), 0, ids.shape[0])
        rows = jax.tree.map(
            lambda leaf: leaf[place], domains.shares(task.support, ids.shape[0])
        )
        start = _heads(heads, ids[place])

        def inner_loss(head: PyTree) -> Array:
            params = trees.merge(head, body)
            return network.loss(params, state, rows, key=k_train)[0] + penalty(
                weights, head
            )

        def step(head: PyTree, _):
            slope = jax.grad(inner_loss)(head)
            return jax.tree.map(
                lambda p, g: p - jnp.asarray(rate, p.dtype) * g, head, slope
            ), None

        # Unrolled, so that the features, which no step changes, are computed once.
        moved, _ = jax.lax.scan(step, start, None, length=steps, unroll=steps)
        return network.loss(trees.merge(moved, body), state, task.query, key=k_test)[0]

    def phase(params: PyTree, state: PyTree, task: Task, key: Key):
        k_pilot, k_outer = split_key(key, 2)
        pilot = params["pilot"], params["heads"]
        (body, heads), (outputs, mean) = jax.grad(pilot_loss, has_aux=True)(
            pilot, state, task, k_pilot
        )
        after, weights = jax.value_and_grad(outer_loss)(
            params["regulariser"], pilot, state, task, k_outer
        )
        report = _report(loss_fn, outputs, task.query, mean, after)
        return {"pilot": body, "heads": heads, "regulariser": weights}, report

    return phase


def _second_phase(network: Network, loss_fn: LossFn, select: Any):
    """Function `(params, state, weights, task, key) -> (gradient, state, report)`."""

    def loss(params: PyTree, state: PyTree, weights: PyTree, examples: Examples, key: Key):
        outputs, state = network.apply(params, state, examples, key=key)
        plain = paired(loss_fn, outputs, examples)
        held = penalty(weights, _of_head(params, select)[0])
        return plain + held.astype(plain.dtype), (plain, held, outputs, state)

    def phase(params, state, weights: PyTree, task: Task, key: Key):
        examples = concatenate(task.support, task.query)
        grads, (plain, held, outputs, new) = jax.grad(loss, has_aux=True)(
            params, state, weights, examples, key
        )
        return grads, new, _report(loss_fn, outputs, examples, plain, held)

    return phase


def _report(
    loss_fn: LossFn, outputs: PyTree, examples: Examples, mean: Array, second: Array
) -> dict[str, Array]:
    """The same metrics in both phases, whose meaning follows the phase."""
    found = metrics.of_task(loss_fn, outputs, examples)
    report = {f"joint/{name}": value for name, value in found.items()}
    report["joint/loss"] = mean.astype(found["loss"].dtype)
    report["regulariser/loss"] = second.astype(found["loss"].dtype)
    return report


def _check(pretrain_steps: int, inner_rate: float, inner_steps: int) -> None:
    """Refuses numbers out of range, and those of a first phase that is not there."""
    checks.whole_number("pretrain_steps", pretrain_steps, least=0)
    checks.whole_number("inner_steps", inner_steps, least=1)
    checks.number("inner_rate", inner_rate, positive=True)
    if not pretrain_steps:
        idle = {"inner_rate": inner_rate, "inner_steps": inner_steps}
        checks.unread(metareg, idle, "pretrain_steps above 0")
