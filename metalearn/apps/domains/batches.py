"""Tasks of several domains: batches with one domain held out, and images in order."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree
from metalearn.data.domains import DomainImages


def held_out_batches(
    data: DomainImages,
    rows: np.ndarray,
    *,
    per_domain: int,
    mirror: bool = False,
    name: str = "domains",
) -> TaskSampler:
    """Tasks of as many images of each domain, one of which is held out as the query set.

    The held-out domain and the order of the others are drawn anew for each task, and so are
    the images, with replacement.

    Args:
      data: The images.
      rows: Numbers of the images to draw from, of two domains or more.
      per_domain: Images of a domain in a task.
      mirror: Whether half of the images are mirrored.
      name: Name in logs and results.

    Returns:
      A sampler. Support sets have equal shares of domains in order; `info` holds their
      numbers `domains`, counted among those of `rows`, and that of the query `held_out`.
    """
    found, counts = np.unique(data.domains[rows], return_counts=True)
    # As wide for any rows, and with all images, so that arrays have one shape whatever the
    # target is: every target then shares the program of training.
    table = np.zeros((len(found), np.bincount(data.domains).max()), np.int32)
    for place, (domain, count) in enumerate(zip(found, counts)):
        table[place, :count] = rows[data.domains[rows] == domain]
    arrays = {
        "images": jnp.asarray(data.images),
        "labels": jnp.asarray(data.labels),
        "rows": jnp.asarray(table),
        "counts": jnp.asarray(counts, jnp.int32),
    }
    return TaskSampler(_HeldOut(len(found), per_domain, mirror), arrays, name)


@dataclasses.dataclass(frozen=True)
class _HeldOut:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations."""

    num_domains: int
    per_domain: int
    mirror: bool

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_order, k_rows, k_mirror = jax.random.split(key, 3)
        order = jax.random.permutation(k_order, self.num_domains).astype(jnp.int32)
        shape = (self.num_domains, self.per_domain)
        offset = jax.random.randint(k_rows, shape, 0, data["counts"][order][:, None])
        rows = data["rows"][order[:, None], offset].reshape(-1)
        x = _floats(data["images"][rows])
        if self.mirror:
            turned = jax.random.bernoulli(k_mirror, shape=rows.shape)
            x = jnp.where(turned[:, None, None, None], x[:, :, ::-1], x)
        y, cut = data["labels"][rows], rows.shape[0] - self.per_domain
        return Task(
            support=Examples.of(x[:cut], y[:cut]),
            query=Examples.of(x[cut:], y[cut:]),
            info={"domains": order[:-1], "held_out": order[-1]},
        )


def images_in_order(
    data: DomainImages,
    rows: np.ndarray,
    shown: np.ndarray,
    *,
    per_task: int,
    name: str = "domains",
) -> TaskSampler:
    """Tasks that have each image as a query once, in a mixed order.

    Args:
      data: The images.
      rows: Numbers of the images that are queries.
      shown: Numbers of the images that every task has as its support set.
      per_task: Queries of a task; tasks differ by one at most, which is masked.
      name: Name in logs and results.

    Returns:
      A sampler, whose `sample` has `num_tasks` and `one`, as `ml.tasks.in_order` asks.
    """
    num_tasks = max(-(-len(rows) // per_task), 1)
    size = -(-len(rows) // num_tasks)
    order = np.random.default_rng(0).permutation(rows)
    places = np.full(num_tasks * size, -1)
    places[: len(rows)] = np.arange(len(rows))
    # Dealt out in turn, so that all tasks but for one query are as large.
    places = places.reshape(size, num_tasks).T
    arrays = {
        "images": jnp.asarray(data.images[order]),
        "labels": jnp.asarray(data.labels[order]),
        "places": jnp.asarray(places, jnp.int32),
        "shown": jnp.asarray(data.images[shown]),
        "shown_labels": jnp.asarray(data.labels[shown]),
    }
    return TaskSampler(_InOrder(num_tasks), arrays, name)


@dataclasses.dataclass(frozen=True)
class _InOrder:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations."""

    num_tasks: int

    def __call__(self, data: PyTree, key: Key) -> Task:
        return self.one(data, jax.random.randint(key, (), 0, self.num_tasks), key)

    def one(self, data: PyTree, number: Array, key: Key) -> Task:
        """The task of that number; nothing is drawn."""
        del key
        places = data["places"][number]
        mask = places >= 0
        rows = jnp.where(mask, places, 0)
        query = Examples.of(_floats(data["images"][rows]), data["labels"][rows], mask)
        support = Examples.of(_floats(data["shown"]), data["shown_labels"])
        return Task(support=support, query=query, info={"task": number})


def _floats(images: Array) -> Array:
    return images.astype(jnp.float32) / 255
