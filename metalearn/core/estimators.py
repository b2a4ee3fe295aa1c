"""From the objective of one task to a meta-gradient over a batch of tasks.

The only code that splits keys over tasks, maps over them, chunks and reduces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import cost, mesh, trees
from metalearn.core.learner import Estimate
from metalearn.core.model import Variables
from metalearn.core.task import Task
from metalearn.core.types import EstimateFn, Key, Objective, PyTree


def gradient_estimator(
    objective: Objective,
    *,
    task_chunk: int | str = "auto",
    reduce_state: str | Callable[[PyTree], PyTree] = "mean",
) -> EstimateFn:
    """Builds `estimate` from the objective of one task.

    The meta-gradient is that of the mean objective over tasks.

    Args:
      objective: `(variables, task, *, key) -> (loss, (state, metrics))`, metrics being
        scalars.
      task_chunk: Tasks handled at once; the rest waits its turn in a scan. `"auto"`
        picks by platform and by the memory traffic of a task (`metalearn.core.cost`).
      reduce_state: How the states of the tasks become one: `"mean"` (floats averaged,
        integers of the first task kept), `"keep"` (the old state), or a function of
        the states `[T, ...]`.

    Returns:
      `estimate(variables, tasks, *, key) -> Estimate`.

    Example:
      >>> learner = ml.MetaLearner(init, adapt, predict, ml.gradient_estimator(objective))
    """
    check_chunk(task_chunk)

    def summed(params: PyTree, state: PyTree, tasks: Task, keys: Key):
        def one(task: Task, key: Key):
            variables = Variables(params=params, state=state)
            return objective(variables, task, key=key)

        losses, aux = jax.vmap(one)(tasks, keys)
        if losses.ndim != 1:
            raise ValueError(
                f"the objective of one task has shape {losses.shape[1:]}; expected a "
                "scalar, e.g. the mean over its examples."
            )
        return jnp.sum(losses), aux

    def chunk_grads(variables: Variables, tasks: Task, keys: Key):
        return jax.grad(summed, has_aux=True)(
            variables.params, variables.state, tasks, keys
        )

    return mean_estimator(chunk_grads, task_chunk=task_chunk, reduce_state=reduce_state)


def mean_estimator(
    summed: Callable[[Variables, Task, Key], tuple[PyTree, tuple[PyTree, PyTree]]],
    *,
    task_chunk: int | str = "auto",
    reduce_state: str | Callable[[PyTree], PyTree] = "mean",
) -> EstimateFn:
    """Builds `estimate` of a learner that makes its meta-gradient in its own way.

    Args:
      summed: `(variables, tasks [C, ...], keys [C]) -> (gradients summed over the tasks,
        (their states [C, ...], metrics {name: [C]}))`.
      task_chunk: See `gradient_estimator`.
      reduce_state: See `gradient_estimator`.

    Returns:
      `estimate(variables, tasks, *, key) -> Estimate` of the mean over tasks.
    """

    def estimate(variables: Variables, tasks: Task, *, key: Key) -> Estimate:
        grads, (states, metrics), num = map_tasks(
            summed, variables, tasks, key, task_chunk=task_chunk
        )
        grads = jax.tree.map(lambda g: g / num, grads)
        state = reduce_states(reduce_state, variables.state, states)
        return Estimate(grads=grads, state=state, metrics=metrics)

    return estimate


def map_tasks(
    fn: Callable[[PyTree, Task, Key], tuple[PyTree, PyTree]],
    common: PyTree,
    tasks: Task,
    key: Key,
    *,
    task_chunk: int | str,
) -> tuple[PyTree, PyTree, int]:
    """Applies `fn` to chunks of tasks: sums its first result, stacks its second.

    Args:
      fn: `(common, tasks [C, ...], keys [C]) -> (to_sum, per_task [C, ...])`. With a mesh
        of `task_mesh` each device does its share of the tasks.
      common: Arrays that all tasks read, such as the variables of the learner.
      tasks: Batch with leading axis `[T]`.
      key: Split over the tasks, so results do not depend on chunks and devices.
      task_chunk: C, or `"auto"`.

    Returns:
      The sum, the stacked per-task results `[T, ...]`, and T.
    """
    num = num_tasks(tasks)

    def share(common: PyTree, *pairs: PyTree) -> tuple[PyTree, PyTree]:
        return _in_chunks(fn, common, pairs, task_chunk)

    total, stacked = mesh.share(share, common, tasks, jax.random.split(key, num))
    return total, stacked, num


def _in_chunks(
    fn: Callable[[PyTree, Task, Key], tuple[PyTree, PyTree]],
    common: PyTree,
    pairs: tuple[Task, Key],
    task_chunk: int | str,
) -> tuple[PyTree, PyTree]:
    """`map_tasks` on one device."""
    num = num_tasks(pairs[0])
    chunk = resolve_chunk(lambda *pair: fn(common, *pair), pairs, num, task_chunk)
    cost.note(chunk)
    if chunk >= num:
        return fn(common, *pairs)

    full = num // chunk * chunk
    chunks = jax.tree.map(
        lambda x: x[:full].reshape((full // chunk, chunk, *x.shape[1:])), pairs
    )

    def step(total: PyTree, pair: tuple[Task, Key]):
        part, stacked = fn(common, *pair)
        return jax.tree.map(jnp.add, total, part), stacked

    first = jax.tree.map(lambda x: x[0], chunks)
    like = jax.eval_shape(lambda *pair: fn(common, *pair)[0], *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, stacked = jax.lax.scan(step, zeros, chunks)
    stacked = jax.tree.map(lambda x: x.reshape((full, *x.shape[2:])), stacked)
    if full < num:
        part, rest = fn(common, *jax.tree.map(lambda x: x[full:], pairs))
        total = jax.tree.map(jnp.add, total, part)
        stacked = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), stacked, rest)
    return total, stacked


def num_tasks(tasks: Task) -> int:
    """T of a batch.

    Raises:
      ValueError: the leaves disagree, the masks are not `[T, N]`, or T is 0.
    """
    shape = jnp.shape(tasks.support.mask)
    if len(shape) != 2:
        raise ValueError(
            f"tasks.support.mask has shape {shape}; a batch of tasks needs [T, N]. One "
            "task goes to adapt and predict; stack_tasks makes a batch."
        )
    num = shape[0]
    if num == 0:
        raise ValueError("the batch has no task; expected leaves [T, ...] with T >= 1.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tasks):
        if jnp.shape(leaf)[:1] != (num,):
            raise ValueError(
                f"{trees.path_string(path)} of the tasks has shape {jnp.shape(leaf)}, but "
                f"support/mask is of {num} tasks. All need the same leading axis [T]."
            )
    return num


def resolve_chunk(
    fn: Callable[..., Any], pairs: PyTree, num: int, task_chunk: int | str
) -> int:
    """The number of tasks to handle at once.

    Raises:
      ValueError: neither `"auto"` nor a positive integer.
    """
    if task_chunk == "auto":
        one = jax.tree.map(lambda x: x[:1], pairs)
        limit = min(num, cost.tasks_at_once(fn, *one))
        # A divisor leaves no remainder, which would be compiled a second time.
        divisor = max(d for d in range(1, limit + 1) if num % d == 0)
        return divisor if 2 * divisor > limit else limit
    check_chunk(task_chunk)
    return min(num, task_chunk)


def check_chunk(task_chunk: Any) -> None:
    """Raises a `ValueError` unless `"auto"` or a positive integer."""
    integer = isinstance(task_chunk, (int, np.integer)) and not isinstance(task_chunk, bool)
    if task_chunk != "auto" and not (integer and task_chunk > 0):
        raise ValueError(
            f"task_chunk is {task_chunk!r}; expected 'auto' or a positive integer."
        )


def reduce_states(
    how: str | Callable[[PyTree], PyTree], old: PyTree, states: PyTree
) -> PyTree:
    """One state from those of the tasks `[T, ...]`; see `gradient_estimator`."""
    if callable(how):
        return how(states)
    if how == "keep":
        return old
    if how == "mean":
        return jax.tree.map(
            lambda s: s.mean(0) if jnp.issubdtype(s.dtype, jnp.inexact) else s[0],
            states,
        )
    raise ValueError(
        f"reduce_state is {how!r}; expected 'mean', 'keep' or a function of the states."
    )
