"""Tasks that are batches: a noisy and a clean one in training, images to judge on else."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree
from metalearn.data.noisy import Labelled


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
    data = {"support": _on_device(support), "query": _on_device(query)}
    return TaskSampler(_Training(num_support, num_query), data, name)


def judging(
    clean: Labelled, judged: Labelled, *, num_support: int, num_query: int, name: str
) -> TaskSampler:
    """All images of a part, each once, in batches of about the same mixture of classes.

    Args:
      clean: Images of the support sets, drawn at random.
      judged: Images to judge on.
      num_support: Rows of a support set.
      num_query: Rows of a query set; of the last one some may be masked.
      name: Name in logs and results.
    """
    order = mixed_order(judged.labels)
    num_tasks = -(-len(order) // num_query)
    # The last batch repeats the first images, masked.
    order = np.resize(order, num_tasks * num_query)
    data = {"support": _on_device(clean), "query": _on_device(judged.rows(order))}
    sample = Judging(num_tasks, num_support, num_query, len(judged))
    return TaskSampler(sample, data, name)


def mixed_order(labels: np.ndarray) -> np.ndarray:
    """Rows in an order in which every stretch has about the classes of the whole."""
    places = np.empty(len(labels))
    for number in np.unique(labels):
        mine = np.flatnonzero(labels == number)
        places[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    return np.lexsort((labels, places))


@dataclasses.dataclass(frozen=True)
class _Training:
    """Function `(data, key) -> Task`."""

    num_support: int
    num_query: int

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_support, k_query = jax.random.split(key)
        return Task(
            support=_drawn(data["support"], k_support, self.num_support),
            query=_drawn(data["query"], k_query, self.num_query),
            info={"task": jnp.zeros((), jnp.int32)},
        )


@dataclasses.dataclass(frozen=True)
class Judging:
    """Function `(data, key) -> Task`.

    Attributes:
      num_tasks: Number of batches.
      num_support: Rows of a support set.
      num_query: Rows of a query set.
      num_images: Number of images that are judged.
    """

    num_tasks: int
    num_support: int
    num_query: int
    num_images: int

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_number, k_rows = jax.random.split(key)
        number = jax.random.randint(k_number, (), 0, self.num_tasks)
        return self.one(data, number, k_rows)

    def one(self, data: PyTree, number: Array, key: Key) -> Task:
        """Batch `number`; the key draws its support set."""
        rows = number * self.num_query + jnp.arange(self.num_query, dtype=jnp.int32)
        query = rows_of(data["query"], rows, rows < self.num_images)
        support = _drawn(data["support"], key, self.num_support)
        return Task(support=support, query=query, info={"task": number.astype(jnp.int32)})


def _on_device(part: Labelled) -> dict[str, Array]:
    return {"x": jnp.asarray(part.images), "y": jnp.asarray(part.labels)}


def _drawn(data: dict[str, Array], key: Key, size: int) -> Examples:
    """Rows at random without repetition, masked where there are too few."""
    num = data["y"].shape[0]
    if num > 20 * size:
        # Few repeat among so many, and to order all of them would take time.
        rows = jax.random.randint(key, (size,), 0, num)
        return rows_of(data, rows, jnp.ones((size,), bool))
    scores = jax.random.uniform(key, (num,))
    rows = jax.lax.top_k(scores, min(size, num))[1]
    rows = jnp.concatenate([rows, jnp.zeros((size - rows.shape[0],), rows.dtype)])
    return rows_of(data, rows, jnp.arange(size) < num)


def rows_of(data: dict[str, Array], rows: Array, mask: Array) -> Examples:
    """Images of these rows, bytes as numbers in 0..1."""
    x = data["x"][rows]
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255
    return Examples(x=x, y=data["y"][rows], mask=mask)
