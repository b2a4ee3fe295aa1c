"""Tasks of several domains: batches with one domain held out, and images in order."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree
from metalearn.data.domains import DomainImages
from metalearn.tasks.arrays import scaled
from metalearn.tasks.dealt import Rows, dealt


def held_out_batches(
    data: DomainImages,
    rows: np.ndarray,
    *,
    per_domain: int,
    mirror: bool = False,
    target: np.ndarray | None = None,
    unlabelled: int = 0,
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
      target: Numbers of the images that are there without labels.
      unlabelled: Number of these in a task; 0 for none.
      name: Name in logs and results.

    Returns:
      A sampler. Support sets have equal shares of domains in order; `info` holds their
      numbers `domains`, counted among those of `rows`, that of the query `held_out`, and
      the unlabelled images `target`, if there are any.
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
    if target is not None:
        # Images of their own: the labels of these rows are nowhere near.
        arrays["target"] = jnp.asarray(data.images[target])
    sample = _HeldOut(len(found), per_domain, mirror, unlabelled)
    return TaskSampler(sample, arrays, name)


@dataclasses.dataclass(frozen=True)
class _HeldOut:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations."""

    num_domains: int
    per_domain: int
    mirror: bool
    unlabelled: int = 0

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_order, k_rows, k_mirror = jax.random.split(key, 3)
        order = jax.random.permutation(k_order, self.num_domains).astype(jnp.int32)
        shape = (self.num_domains, self.per_domain)
        offset = jax.random.randint(k_rows, shape, 0, data["counts"][order][:, None])
        rows = data["rows"][order[:, None], offset].reshape(-1)
        x = self._turned(scaled(data["images"][rows]), k_mirror)
        y, cut = data["labels"][rows], rows.shape[0] - self.per_domain
        info = {"domains": order[:-1], "held_out": order[-1]}
        if self.unlabelled:
            # A key apart, so that the labelled images are those of a task without these.
            k_target, k_turn = jax.random.split(jax.random.fold_in(key, 1))
            num = data["target"].shape[0]
            chosen = jax.random.randint(k_target, (self.unlabelled,), 0, num)
            info["target"] = self._turned(scaled(data["target"][chosen]), k_turn)
        return Task(
            support=Examples.of(x[:cut], y[:cut]),
            query=Examples.of(x[cut:], y[cut:]),
            info=info,
        )

    def _turned(self, x: Array, key: Key) -> Array:
        """Half of the images mirrored, if that is asked for."""
        if not self.mirror:
            return x
        turned = jax.random.bernoulli(key, shape=x.shape[:1])
        return jnp.where(turned[:, None, None, None], x[:, :, ::-1], x)


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
    order = np.random.default_rng(0).permutation(rows)

    def examples(numbers: np.ndarray) -> Rows:
        return {"x": data.images[numbers], "y": data.labels[numbers]}

    return dealt(examples(order), examples(shown), per_task=per_task, name=name)
