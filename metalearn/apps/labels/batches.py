"""Tasks that are batches: a noisy and a clean one in training, images to judge on else."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.task import Task, TaskSampler
from metalearn.core.types import Key, PyTree
from metalearn.data.noisy import Labelled
from metalearn.tasks.dealt import Rows, dealt, drawn, on_device


def training(
    support: Labelled, query: Labelled, *, num_support: int, num_query: int, name: str
) -> TaskSampler:
    """Batches drawn at random, the support set from some images, the query set from others.

    Args:
      support: Images of the support sets.
      query: Images of the query sets.
      num_support: Rows of a support set; masked where there are fewer images.
      num_query: Rows of a query set.
      name: Name in logs and results.
    """
    data = {"support": on_device(_rows(support)), "query": on_device(_rows(query))}
    return TaskSampler(_Training(num_support, num_query), data, name)


def judging(
    clean: Labelled, judged: Labelled, *, num_support: int, num_query: int, name: str
) -> TaskSampler:
    """All images of a part, each once, in batches of about the same mixture of classes.

    Args:
      clean: Images of the support sets, drawn at random.
      judged: Images to judge on.
      num_support: Rows of a support set.
      num_query: Most rows of a query set; sets differ by one at most.
      name: Name in logs and results.
    """
    by_class = judged.rows(np.argsort(judged.labels, kind="stable"))
    return dealt(
        _rows(by_class),
        _rows(clean),
        per_task=num_query,
        num_support=num_support,
        name=name,
    )


@dataclasses.dataclass(frozen=True)
class _Training:
    """Function `(data, key) -> Task`."""

    num_support: int
    num_query: int

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_support, k_query = jax.random.split(key)
        return Task(
            support=drawn(data["support"], k_support, self.num_support),
            query=drawn(data["query"], k_query, self.num_query),
            info={"task": jnp.zeros((), jnp.int32)},
        )


def _rows(part: Labelled) -> Rows:
    return {"x": part.images, "y": part.labels}
