"""The tasks of an outer step: read from a stream, drawn, or planned by the learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metalearn.core import mesh
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables
from metalearn.core.plans import planned_batch
from metalearn.core.task import Task, TaskSampler, TaskStream, next_batch, sample_batch
from metalearn.core.types import Array, Key, PyTree


def streamed(
    step: Callable, stream: TaskStream, num: int, key: Key, num_steps: int
) -> Callable[..., tuple]:
    """`(state, totals, stop) -> (state, totals)`: steps on the batches of a stream.

    Args:
      step: Function `(state, totals, tasks, key) -> (state, totals)`.
      stream: The stream.
      num: T, tasks of a step.
      key: Key of all steps.
      num_steps: Step at which training ends; nothing is read beyond it.
    """
    key = mesh.everywhere(key)
    share = mesh.local_share(num)
    size = num if share is None else share.stop - share.start
    batches, place = None, None
    ahead, next_one = None, None

    def fetch(number: int) -> Task:
        nonlocal batches, place
        if place != number:
            batches = stream.batches(num, number, share)
        place = number + 1
        return mesh.place_tasks(next_batch(batches, number, size))

    def advance(state: Any, totals: Any, stop: int):
        nonlocal ahead, next_one
        for number in range(int(state.step), stop):
            tasks = ahead if next_one == number else fetch(number)
            state, totals = step(state, totals, tasks, key)
            # The next batch is read while the device computes on this one.
            next_one = number + 1 if number + 1 < num_steps else None
            ahead = None if next_one is None else fetch(next_one)
        return state, totals

    return advance


def tasks_of_step(
    tasks: TaskSampler | TaskStream,
    tasks_per_step: int,
    key: Key,
    number: int,
    learner: MetaLearner,
    variables: Variables,
) -> Task:
    """The batch of an outer step once more, to look at what it holds.

    Args:
      tasks: Sampler or stream.
      tasks_per_step: T, tasks of a step.
      key: Key of all steps.
      number: Number of the step.
      learner: Learner that may have planned the tasks.
      variables: Variables of the learner before the step.
    """
    if isinstance(tasks, TaskStream):
        batches = iter(tasks.batches(tasks_per_step, number))
        return next_batch(batches, number, tasks_per_step)
    k_tasks = step_keys(key, jnp.asarray(number, jnp.int32))[0]
    draw = jax.jit(sampled, static_argnums=(0, 1, 5))
    return draw(tasks.sample, learner, tasks.data, variables, k_tasks, tasks_per_step)


def sampled(
    sample: Callable[..., Task],
    learner: MetaLearner,
    data: PyTree,
    variables: Variables,
    key: Key,
    num: int,
) -> Task:
    """The batch of a step, drawn by its key, or planned by the learner."""
    sampler = TaskSampler(sample, data)
    if learner.plan is None:
        return sample_batch(sampler, data, jax.random.split(key, num))
    # The state tells what the last step was like, so a resumed run plans the same.
    k_plan, k_tasks = jax.random.split(key)
    plan = learner.plan(variables, num, key=k_plan)
    return planned_batch(sampler, data, plan, jax.random.split(k_tasks, num))


def step_keys(key: Key, number: Array) -> Key:
    """Keys of the tasks and of the step; they depend on its number alone."""
    return jax.random.split(jax.random.fold_in(key, number))
