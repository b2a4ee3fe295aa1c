"""From what one task says to a meta-gradient over a batch of tasks.

The only code that splits keys over tasks, maps over them, chunks and reduces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import cost, kinds, mesh, trees
from metalearn.core.keys import check_key
from metalearn.core.learner import Estimate
from metalearn.core.model import Variables
from metalearn.core.task import Task
from metalearn.core.types import (
    Array,
    EstimateFn,
    Key,
    Objective,
    PyTree,
    TaskChunk,
)

ReduceState = str | Callable[[PyTree], PyTree]
# `(variables, tasks [C, ...], keys [C]) -> (gradients summed over the tasks, their states,
# metrics and whatever else [C, ...])`.
ChunkFn = Callable[[Variables, Task, Key], tuple[PyTree, tuple]]


def gradient_estimator(
    objective: Objective,
    *,
    task_chunk: TaskChunk = "auto",
    reduce_state: ReduceState = "mean",
) -> EstimateFn:
    """Builds `estimate` from the objective of one task.

    The meta-gradient is that of the mean objective over tasks.

    Args:
      objective: `(variables, task, *, key) -> (loss, (state, metrics))`, metrics being
        scalars.
      task_chunk: Tasks handled at once; the rest waits its turn in a scan. `"auto"`
        picks by platform and by the memory traffic of a task (`metalearn.core.cost`).
      reduce_state: Way from the states of the tasks to one: `"mean"` (floats
        averaged, integers of the first task kept), `"keep"` (the old state), or a
        function of the states `[T, ...]`.

    Returns:
      `estimate(variables, tasks, *, key) -> Estimate`. While a program is traced, the
      Python of the objective runs once for each shape of its arguments.

    Raises:
      TypeError: what should be a function is none.
      ValueError: `task_chunk` is neither `"auto"` nor a positive integer.

    Example:
      >>> learner = ml.MetaLearner(init, adapt, predict, ml.gradient_estimator(objective))
    """

    _check_function("objective", objective, "(loss, (state, metrics))")

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

    def chunk_fn(variables: Variables, tasks: Task, keys: Key):
        # Of the sum, not a sum of gradients: what all tasks share is never copied.
        return jax.grad(summed, has_aux=True)(
            variables.params, variables.state, tasks, keys
        )

    return _mean_over_tasks(chunk_fn, task_chunk, reduce_state)


def mean_estimator(
    gradient: Callable[..., tuple[PyTree, tuple]],
    *,
    task_chunk: TaskChunk = "auto",
    reduce_state: ReduceState = "mean",
    divisor: Callable[[PyTree], Array] | None = None,
) -> EstimateFn:
    """Builds `estimate` of a learner that makes the gradient of a task in its own way.

    Args:
      gradient: `(variables, task, *, key) -> (gradient, (state, metrics))` of one task, the
        gradient like `variables.params`.
      task_chunk: See `gradient_estimator`.
      reduce_state: See `gradient_estimator`.
      divisor: `values -> scalar` by which the mean gradient is divided. The values are
        stacked `[T, ...]`, and `gradient` returns those of its task as a third part:
        `(gradient, (state, metrics, values))`.

    Returns:
      `estimate(variables, tasks, *, key) -> Estimate` of the mean over tasks.

    Raises:
      TypeError: what should be a function is none.
      ValueError: `task_chunk` is neither `"auto"` nor a positive integer.

    Example:
      >>> estimate = mean_estimator(lambda variables, task, *, key: (grads, (state, {})))
    """

    _check_function("gradient", gradient, "(gradient, (state, metrics))")

    def chunk_fn(variables: Variables, tasks: Task, keys: Key):
        def one(task: Task, key: Key):
            return gradient(variables, task, key=key)

        grads, aux = jax.vmap(one)(tasks, keys)
        return jax.tree.map(lambda g: g.sum(0), grads), aux

    return _mean_over_tasks(chunk_fn, task_chunk, reduce_state, divisor)


def remembering(
    estimate: EstimateFn, remember: Callable[[Variables], dict[str, PyTree]]
) -> EstimateFn:
    """The estimate with parts of the state that no task makes.

    A mean over equal copies of the tasks would move them by a rounding.

    Args:
      estimate: The estimate, whose tasks return a state without these parts.
      remember: Function from the variables to these parts. The tasks find them in the state
        that they are given, and so does the next step.
    """

    def remembered(variables: Variables, tasks: Task, *, key: Key) -> Estimate:
        kept = remember(variables)
        state = {**variables.state, **kept}
        found = estimate(Variables(params=variables.params, state=state), tasks, key=key)
        whole = {**found.state, **kept}
        return Estimate(grads=found.grads, state=whole, metrics=found.metrics)

    return remembered


def _check_function(name: str, given: Any, result: str) -> None:
    if not callable(given):
        raise TypeError(
            f"{name} is a {type(given).__name__}; expected a function "
            f"(variables, task, *, key) -> {result} of one task."
        )


def check_chunk(task_chunk: Any) -> None:
    """Raises a `ValueError` unless `"auto"` or a positive integer."""
    integer = isinstance(task_chunk, (int, np.integer)) and not isinstance(task_chunk, bool)
    auto = isinstance(task_chunk, str) and task_chunk == "auto"
    if not auto and not (integer and task_chunk > 0):
        raise ValueError(
            f"task_chunk is {task_chunk!r}; expected 'auto' or a positive integer."
        )


def _mean_over_tasks(
    chunk_fn: ChunkFn,
    task_chunk: TaskChunk,
    reduce_state: ReduceState,
    divisor: Callable[[PyTree], Array] | None = None,
) -> EstimateFn:
    """`estimate` from the summed gradients of a chunk of tasks."""
    check_chunk(task_chunk)
    # JAX keeps the trace of a jitted function, so its Python runs once for each shape,
    # however often it is called: to count bytes, to know shapes, in a scan, in the next
    # program. Inlined, it leaves no mark in a program.
    traced_once = jax.jit(chunk_fn, inline=True)

    def estimate(variables: Variables, tasks: Task, *, key: Key) -> Estimate:
        check_key(key)
        kinds.variables(variables)
        kinds.instance(
            tasks, Task, "tasks", "Draw a batch by ml.sample_batch(sampler, data, keys)."
        )
        leaves = jax.tree.leaves((variables, tasks, key))
        # Nothing is compiled where the caller compiles nothing.
        compiling = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
        total, (states, metrics, *values), num = _map_tasks(
            traced_once if compiling else chunk_fn, variables, tasks, key, task_chunk
        )
        if divisor is None:
            grads = jax.tree.map(lambda g: g / num, total)
        else:
            by = num * divisor(*values)
            grads = jax.tree.map(lambda g: g / by.astype(g.dtype), total)
        # Sums are wider than parameters of bfloat16.
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, variables.params)
        state = _reduce_states(reduce_state, variables.state, states)
        return Estimate(grads=grads, state=state, metrics=metrics)

    return estimate


def _map_tasks(
    chunk_fn: ChunkFn,
    variables: Variables,
    tasks: Task,
    key: Key,
    task_chunk: TaskChunk,
) -> tuple[PyTree, tuple, int]:
    """Applies a function to chunks of tasks, on each device to its share of them.

    Args:
      chunk_fn: Sums its first result, stacks its second.
      variables: Variables of the learner.
      tasks: Batch with leading axis `[T]`.
      key: Split over the tasks, so results do not depend on chunks and devices.
      task_chunk: C, or `"auto"`.

    Returns:
      The sum, the stacked per-task results `[T, ...]`, and T.
    """
    num = _num_tasks(tasks)

    def share(variables: Variables, *pairs: PyTree) -> tuple[PyTree, tuple]:
        return _in_chunks(chunk_fn, variables, pairs, task_chunk)

    total, stacked = mesh.share(share, variables, tasks, jax.random.split(key, num))
    return total, stacked, num


def _in_chunks(
    chunk_fn: ChunkFn, variables: Variables, pairs: tuple[Task, Key], task_chunk: TaskChunk
) -> tuple[PyTree, tuple]:
    """`_map_tasks` on one device."""
    num = jax.tree.leaves(pairs)[0].shape[0]
    chunk = _resolve_chunk(chunk_fn, variables, pairs, task_chunk)
    cost.note(chunk)
    if chunk >= num:
        return _wide(chunk_fn(variables, *pairs))

    full = num // chunk * chunk
    chunks = jax.tree.map(
        lambda x: x[:full].reshape((full // chunk, chunk, *x.shape[1:])), pairs
    )

    def step(total: PyTree, pair: tuple[Task, Key]):
        part, stacked = _wide(chunk_fn(variables, *pair))
        return jax.tree.map(jnp.add, total, part), stacked

    first = jax.tree.map(lambda x: x[0], chunks)
    like = jax.eval_shape(lambda *args: _wide(chunk_fn(*args)), variables, *first)[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, stacked = jax.lax.scan(step, zeros, chunks)
    stacked = jax.tree.map(lambda x: x.reshape((full, *x.shape[2:])), stacked)
    if full < num:
        rest = jax.tree.map(lambda x: x[full:], pairs)
        part, rest = _wide(chunk_fn(variables, *rest))
        total = jax.tree.map(jnp.add, total, part)
        stacked = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), stacked, rest)
    return total, stacked


def _wide(found: tuple[PyTree, tuple]) -> tuple[PyTree, tuple]:
    """The gradients of a chunk in float32 at least, to be summed; the rest as it is."""
    total, stacked = found
    return jax.tree.map(trees.widened, total), stacked


def _num_tasks(tasks: Task) -> int:
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


def _resolve_chunk(
    chunk_fn: ChunkFn, variables: Variables, pairs: tuple[Task, Key], task_chunk: TaskChunk
) -> int:
    """The number of tasks to handle at once."""
    num = jax.tree.leaves(pairs)[0].shape[0]
    if task_chunk != "auto":
        return min(num, task_chunk)
    one = jax.tree.map(lambda x: x[:1], pairs)
    limit = min(num, cost.tasks_at_once(chunk_fn, variables, *one))
    # A divisor leaves no remainder, which would be compiled a second time.
    divisor = max(d for d in range(1, limit + 1) if num % d == 0)
    return divisor if 2 * divisor > limit else limit


def _reduce_states(how: ReduceState, old: PyTree, states: PyTree) -> PyTree:
    """One state from those of the tasks `[T, ...]`; see `gradient_estimator`.

    Raises:
      ValueError: an unknown word.
    """
    if callable(how):
        return how(states)
    if how == "keep":
        return old
    if how == "mean":
        return jax.tree.map(mean_state, states)
    raise ValueError(
        f"reduce_state is {how!r}; expected 'mean', 'keep' or a function of the states."
    )


def gathered(states: PyTree) -> PyTree:
    """States of all tasks `[T, ...]`, on every device: for what writes them in order."""
    return mesh.replicated(states)


def mean_state(states: Array) -> Array:
    """One state from those of the tasks, `[T, ...]`; counters are the same in all."""
    if not jnp.issubdtype(states.dtype, jnp.inexact):
        return states[0]
    return trees.widened(states).mean(0).astype(states.dtype)
