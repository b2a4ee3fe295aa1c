"""Tasks that a learner chooses itself, by what the last ones were like."""

from __future__ import annotations

import jax

from metalearn.core import mesh
from metalearn.core.learner import MetaLearner, describe
from metalearn.core.task import Task, TaskSampler, TaskStream
from metalearn.core.types import Array, Key, PyTree


def planned_batch(
    sampler: TaskSampler, data: PyTree, plan: dict[str, Array], keys: Key
) -> Task:
    """A batch of tasks that a learner has chosen, see `MetaLearner.plan`.

    Args:
      sampler: Sampler whose `sample` has `planned`, see `check_planned`.
      data: Arrays that it reads.
      plan: What is wanted of each task, leaves `[T, ...]`.
      keys: A key a task, `[T]`.
    """

    def drawn(data: PyTree, plan: dict[str, Array], keys: Key) -> tuple[tuple, Task]:
        return (), jax.vmap(sampler.sample.planned, in_axes=(None, 0, 0))(data, plan, keys)

    return mesh.share(drawn, data, plan, keys)[1]


def check_planned(learner: MetaLearner, tasks: TaskSampler | TaskStream) -> None:
    """Checks that a learner with a plan can choose among the tasks.

    Raises:
      ValueError: they are a stream, or a sampler without `planned`.
    """
    if learner.plan is None:
        return
    sample = getattr(tasks, "sample", None)
    if not callable(getattr(sample, "planned", None)):
        raise ValueError(
            f"{describe(learner)['name']} chooses the tasks of its next step, which "
            f"{tasks.name!r} cannot be asked for; expected a TaskSampler whose `sample` "
            "has a method planned(data, plan, key), or a learner that takes tasks as they "
            "come, such as ml.maml."
        )
