"""Examples that are judged once each, dealt out to tasks of one size."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree
from metalearn.tasks.arrays import scaled

Rows = dict[str, np.ndarray]  # "x" and "y"


def dealt(
    queries: Rows,
    shown: Rows,
    *,
    per_task: int,
    num_support: int | None = None,
    name: str = "dealt",
) -> TaskSampler:
    """Tasks that have each example as a query once, dealt out in turn.

    Task t of T has the queries t, t + T, t + 2 T and so on, so that queries in the order of
    their classes give tasks of about the same classes.

    Args:
      queries: Examples to judge on: arrays `x` `[I, ...]` and `y` `[I]`.
      shown: Examples of the support sets.
      per_task: Most queries of a task; tasks differ by one at most, which is masked.
      num_support: Rows of a support set, drawn by the key of the task; `None` shows all
        examples in each.
      name: Name in logs and results.

    Returns:
      A sampler, whose `sample` has `num_tasks` and `one`, as `ml.tasks.in_order` asks.
    """
    num = len(queries["y"])
    num_tasks = max(-(-num // per_task), 1)
    size = -(-num // num_tasks)
    places = np.full(num_tasks * size, -1)
    places[:num] = np.arange(num)
    data = {
        "queries": on_device(queries),
        "places": jnp.asarray(places.reshape(size, num_tasks).T, jnp.int32),
        "shown": on_device(shown),
    }
    return TaskSampler(_Dealt(num_tasks, num_support), data, name)


@dataclasses.dataclass(frozen=True)
class _Dealt:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations."""

    num_tasks: int
    num_support: int | None

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_number, k_rows = jax.random.split(key)
        number = jax.random.randint(k_number, (), 0, self.num_tasks)
        return self.one(data, number, k_rows)

    def one(self, data: PyTree, number: Array, key: Key) -> Task:
        """The task of that number; the key draws its support set."""
        places = data["places"][number]
        mask = places >= 0
        query = rows_of(data["queries"], jnp.where(mask, places, 0), mask)
        shown = data["shown"]
        if self.num_support is None:
            support = Examples.of(scaled(shown["x"]), shown["y"])
        else:
            support = drawn(shown, key, self.num_support)
        info = {"task": jnp.asarray(number, jnp.int32)}
        return Task(support=support, query=query, info=info)


def on_device(rows: Rows) -> dict[str, Array]:
    """Examples as arrays of jax."""
    return jax.tree.map(jnp.asarray, rows)


def drawn(data: dict[str, Array], key: Key, size: int) -> Examples:
    """Rows at random, masked where there are too few.

    None repeats, unless there are more than 20 times as many as are drawn: then each is
    drawn alone, and a row may come twice.
    """
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
    """Examples of these rows, bytes as numbers in 0..1."""
    return Examples(x=scaled(data["x"][rows]), y=data["y"][rows], mask=mask)
