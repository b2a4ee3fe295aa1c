"""EMO: inner steps along the gradients of a task and of similar tasks of the past.

Y. Du, J. Shen, X. Zhen, C. G. M. Snoek. EMO: Episodic Memory Optimization for Few-Shot
Meta-Learning. CoLLAs 2023, arXiv 2306.05189.

The paper could not be read, and the code that is found under its name is of something else.
From memory of it, or ours:

- A task is known by the means of its support set: of the inputs and, where targets are real
  numbers, of targets and of products of both. The paper learns an embedding; `embed` is the
  place for one.
- An entry holds the gradient of every inner step; step s recalls the gradients of step s.
- A batch recalls from the memory before it, then its tasks are written in their order.
- The learned aggregation of the paper is a transformer over gradients. Projections of whole
  gradients would have the square of the number of parameters, so here it reads a few
  numbers of each gradient and gives weights for their mean.
- Gradients of the head are not stored unless `remember="all"`: where tasks name their
  classes anew, the same unit of the head stands for another class in each task.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, Unpack, get_args

import jax
import jax.numpy as jnp

from metalearn.algorithms.episodic import store
from metalearn.algorithms.episodic.aggregate import Aggregate, transformer_init
from metalearn.algorithms.episodic.recall import (
    Entry,
    How,
    by_step,
    facts,
    recall_of,
    recalling,
    task_key,
    widest,
)
from metalearn.algorithms.episodic.store import Eviction
from metalearn.algorithms.options import Options, complete, takes_options
from metalearn.core import checks, kinds, loops, metrics, trees
from metalearn.core.estimators import gathered, gradient_estimator, mean_state
from metalearn.core.learner import Estimate, MetaLearner, config_of, hashable
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, LossFn, PathFilter, PyTree
from metalearn.inner import Adapted, Descent, Unrolled, descent
from metalearn.inner.differentiate import refuse_implicit

Remember = Literal["body", "all"]


@takes_options()
def emo(
    model: Model,
    loss_fn: LossFn,
    *,
    num_steps: int = 1,
    inner_rate: float = 0.01,
    learn_rates: bool = False,
    capacity: int = 200,
    recall: int = 5,
    aggregate: Aggregate = "mean",
    eviction: Eviction = "fifo",
    remember: Remember = "body",
    head: str = "head",
    width: int = 8,
    embed: Callable[[Variables, Examples], Array] | None = None,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML whose inner gradients are combined with those of similar tasks of the past.

    `phi_{s+1} = phi_s - alpha Aggr(grad L(phi_s; support), V_1, ..., V_k)`, where the V are
    gradients of the same inner step of the k tasks whose keys have the largest cosine with
    that of this task. A memory of them is part of the state. It is written after each batch
    of meta-training, and only read in `adapt`; a task without a support example leaves
    nothing. Stored gradients count as constants. They are of older weights than the current
    ones, by `capacity / (tasks a step)` outer steps at most with "fifo". Without anything
    recalled this is `ml.maml`, or `ml.meta_sgd`.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      num_steps: K, inner steps.
      inner_rate: alpha, of all weights; where it is learned, at the start.
      learn_rates: Whether each weight has a learned rate of its own, as in Meta-SGD.
      capacity: Number of tasks in the memory. It holds K gradients of each.
      recall: Number of tasks that are recalled, k; 0 is MAML.
      aggregate: Way to combine gradients: "mean", of all of them; "current_plus_mean", the
        current one plus the mean of those recalled; "transformer", a mean with learned
        weights.
      eviction: Entry that goes for a new one: "fifo", "lru" or "clock", see `store`.
      remember: Gradients that are stored: "body", without those of the head, which is for
        tasks that name their classes anew; "all", where outputs mean the same in all tasks.
      head: Regular expression found in the paths of the head's parameters.
      width: Size of a token of the transformer.
      embed: Function `(variables of the model, support) -> key [K]`; `None` for means of
        the support set.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` whose adapted object is a `metalearn.inner.Adapted`. Its params are
      `{"model": ...}`, with `"inner"` beside them where rates are learned, and
      `"aggregate"` for the transformer; its state is `{"model": ..., "step": int32,
      "memory": EpisodicMemory}`. Metrics: `memory/found`, the number of recalled tasks, and
      `memory/similarity`, the mean cosine of their keys.

    Raises:
      TypeError: an unknown option.
      ValueError: an option is out of range; in `init`: no gradient would be stored, or no
        parameter is of the head.

    Example:
      >>> learner = ml.emo(model, ml.losses.mse, inner_rate=0.01, remember="all")
    """
    chosen = complete(emo, "emo", options)
    refuse_implicit(chosen["name"], chosen["differentiation"])
    checks.number("inner_rate", inner_rate)
    select = None if remember == "all" else _outside(head)
    rate = float(inner_rate)
    how = How(num_steps, rate, capacity, recall, aggregate, eviction, select, embed, head)
    _check(how, remember, width)
    loop = descent(
        model,
        loss_fn,
        lambda given: recalling(how, *given),
        num_steps=num_steps,
        differentiation=chosen["differentiation"],
        adapt_filter=chosen["adapt_filter"],
        norm=chosen["norm"],
        mask_absent_classes=chosen["mask_absent_classes"],
    )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        k_model, k_aggregate = jax.random.split(key)
        made = loop.init(k_model, task)
        moving = trees.split(made.params, chosen["adapt_filter"])[0]
        params = {"model": made.params}
        if learn_rates:
            params["inner"] = jax.tree.map(lambda p: jnp.full_like(p, how.rate), moving)
        if aggregate == "transformer":
            params["aggregate"] = transformer_init(k_aggregate, width, widest(moving))
        return Variables(params=params, state=_first_state(how, made, moving, task.support))

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> Adapted:
        kinds.adaptation(variables, support, ("model",))
        return _adapt(how, loop, variables, support, key=key, train=False)[0]

    def predict(adapted, x, *, key=None, mask=None) -> PyTree:
        kinds.adapted(adapted, Adapted)
        return loop.predict(adapted, x, key=key, mask=mask)[0]

    objective = functools.partial(_objective, how, loop, loss_fn)
    of_tasks = gradient_estimator(
        objective, task_chunk=chosen["task_chunk"], reduce_state=lambda states: states
    )

    def estimate(variables: Variables, tasks: Task, *, key: Key) -> Estimate:
        found = of_tasks(variables, tasks, key=key)
        return dataclasses.replace(found, state=_after(how, variables.state, found.state))

    own: dict[str, Any] = {name: getattr(how, name) for name in _DESCRIBED}
    own |= {"inner_rate": how.rate, "learn_rates": learn_rates, "remember": remember}
    own |= {"width": width} | {name: chosen[name] for name in ("differentiation", "norm")}
    config = config_of(chosen["name"], **own)
    made = MetaLearner(init, adapt, predict, estimate, config, hashable(loss_fn))
    return made._replace(masks_absent=chosen["mask_absent_classes"])


_DESCRIBED = ("num_steps", "capacity", "recall", "aggregate", "eviction", "head")


def _first_state(
    how: How, made: Variables, moving: PyTree, support: Examples
) -> dict[str, PyTree]:
    """No step done, and a memory for keys and gradients of tasks like this one."""
    if how.select is not None:
        _check_head(made.params, how.head)
    stored = trees.split(moving, how.select)[0]
    if not jax.tree.leaves(stored):
        raise ValueError(
            "no gradient would be remembered: the parameters that adapt are all of the "
            "head. Choose remember='all', or another head=... The paths are: "
            + ", ".join(trees.leaf_paths(moving))
        )
    like = jax.eval_shape(lambda v, s: task_key(how, v, s), made, support)
    grads = jax.eval_shape(lambda tree: by_step(how, tree), stored)
    memory = store.empty(how.capacity, like, grads)
    return {"model": made.state, "step": jnp.zeros((), jnp.int32), "memory": memory}


def _adapt(
    how: How,
    loop: Descent,
    variables: Variables,
    support: Examples,
    *,
    key: Key | None,
    train: bool,
) -> tuple[Adapted, Unrolled, Entry]:
    """The adapted model, the inner loop, and what the task leaves for the memory."""
    params, state = variables.params, variables.state
    of_model = Variables(params=params["model"], state=state["model"])
    name = task_key(how, of_model, support)
    found, past = recall_of(how, state["memory"], name)
    given = (past, params.get("inner"), params.get("aggregate"))
    adapted, path = loop.adapt(of_model, given, support, key=key, train=train)
    # Without a support example the key is zero and so are the gradients: no task.
    valid = jnp.any(support.mask)
    return adapted, path, Entry(name, path.opt_state.grads, found, valid)


def _objective(
    how: How, loop: Descent, loss_fn: LossFn, variables: Variables, task: Task, *, key: Key
):
    """The query loss; in the state the entry of the task stands for the memory."""
    k_adapt, k_query = jax.random.split(key)
    adapted, path, entry = _adapt(
        how, loop, variables, task.support, key=k_adapt, train=True
    )
    query, state = task.query, variables.state
    outputs, query_state = loop.predict(
        adapted, query.x, key=k_query, train=True, mask=query.mask
    )
    report = metrics.of_task(loss_fn, outputs, query)
    report = {f"query/{name}": value for name, value in report.items()}
    if how.num_steps:
        report["support/loss"] = path.losses[0]
    new = {
        "model": loop.collect(state["model"], path, query_state),
        "step": state["step"],
        "memory": entry,
    }
    return report["query/loss"], (new, report | facts(entry))


def _after(how: How, old: PyTree, new: PyTree) -> PyTree:
    """The state after a batch of tasks, from the states `[T, ...]` of its tasks."""
    # On every device all of them, so that every device writes the same memory.
    entries = gathered(new["memory"])
    memory = old["memory"]
    if entries.recall is not None and how.eviction != "fifo":
        # All of them have read before any of them writes.
        memory = loops.scan(
            lambda memory, used: (store.touch(memory, *used), None),
            memory,
            (entries.recall, entries.valid),
        )[0]
    if how.num_steps:  # else there are no gradients
        memory = store.write_all(
            memory, entries.key, entries.grads, entries.valid, eviction=how.eviction
        )
    return {
        "model": jax.tree.map(mean_state, new["model"]),
        "step": old["step"] + 1,
        "memory": memory,
    }


def _outside(head: str) -> PathFilter:
    """Selects what is not of the head."""
    inside = trees.path_filter(head)
    return lambda path, leaf: not inside(path, leaf)


def _check_head(params: PyTree, head: str) -> None:
    """Refuses a name of the head that no parameter has: the head would be remembered."""
    if not jax.tree.leaves(trees.split(params, head)[0]):
        raise ValueError(
            f"head is {head!r}, which occurs in no path of a parameter, so gradients of "
            "the head would be remembered with those of the body. Give head=... a regular "
            "expression of its paths, or choose remember='all'. The paths are: "
            + ", ".join(trees.leaf_paths(params))
        )


def _check(how: How, remember: str, width: int) -> None:
    """Checks the arguments; `descent` checks the others."""
    checks.whole_number("capacity", how.capacity, least=1)
    checks.whole_number("recall", how.recall, least=0)
    checks.whole_number("width", width, least=1)
    if how.recall > how.capacity:
        raise ValueError(
            f"recall is {how.recall}; expected at most {how.capacity}, the capacity."
        )
    checks.one_of("aggregate", how.aggregate, get_args(Aggregate))
    checks.one_of("eviction", how.eviction, get_args(Eviction))
    checks.one_of("remember", remember, get_args(Remember))
    if how.embed is not None:
        example = "lambda variables, support: ml.masked_mean(support.x, support.mask)"
        kinds.function("embed", how.embed, ("variables", "support"), example)
