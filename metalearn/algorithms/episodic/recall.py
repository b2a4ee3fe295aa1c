"""Inner steps along the gradients of a task and of those that it recalls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.episodic import store
from metalearn.algorithms.episodic.aggregate import Aggregate, Recalled, aggregate
from metalearn.algorithms.episodic.store import EpisodicMemory, Eviction, Recall
from metalearn.core import trees
from metalearn.core.model import Variables
from metalearn.core.task import Examples
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, PathFilter, PyTree


class How(NamedTuple):
    """What the inner loop and the memory have to know of the options.

    Attributes:
      num_steps: Inner steps.
      rate: Rate of all weights, where none are learned.
      capacity: Number of slots.
      recall: Number of tasks to recall.
      aggregate: How gradients are combined.
      eviction: Which entry goes.
      select: Which gradients are stored; all when `None`.
      embed: Function that makes the key of a task, or `None`.
      head: Regular expression of the paths that `select` leaves out.
    """

    num_steps: int
    rate: float
    capacity: int
    recall: int
    aggregate: Aggregate
    eviction: Eviction
    select: PathFilter | None
    embed: Callable[[Variables, Examples], Array] | None
    head: str = "head"


class Entry(NamedTuple):
    """What one training task leaves for the memory.

    Attributes:
      key: Key of the task, `[K]`.
      grads: Its gradients, leaves `[S, ...]`.
      recall: Slots that it used, or `None`.
      valid: Whether it has a support example; else it leaves nothing, a bool scalar.
    """

    key: Array
    grads: PyTree
    recall: Recall | None
    valid: Array


class Noted(NamedTuple):
    """State of the inner optimiser.

    Attributes:
      step: Inner steps so far, int32.
      grads: Gradients of these steps, leaves `[S, ...]`.
    """

    step: Array
    grads: PyTree


def recalling(
    how: How, past: Recalled | None, rates: PyTree, weights: PyTree
) -> optax.GradientTransformation:
    """Descent along combined gradients, which notes the current ones.

    Args:
      how: The options.
      past: What was recalled, leaves `[k, S, ...]`; `None` if nothing ever is.
      rates: Learned rates, or `None`.
      weights: Parameters of the transformer, or `None`.
    """

    def init(params: PyTree) -> Noted:
        grads = trees.split(params, how.select)[0]
        return Noted(jnp.zeros((), jnp.int32), by_step(how, grads))

    def update(grads: PyTree, noted: Noted, params: PyTree = None):
        del params
        stored, others = trees.split(grads, how.select)
        notes = jax.tree.map(
            # Constants: they are for other tasks.
            lambda rows, g: rows.at[noted.step].set(jax.lax.stop_gradient(g)),
            noted.grads,
            stored,
        )
        if past is not None:

            def of_step(leaf: Array) -> Array:
                # The last one of a memory that was written with fewer steps.
                return leaf[:, jnp.minimum(noted.step, leaf.shape[1] - 1)]

            now = past._replace(grads=jax.tree.map(of_step, past.grads))
            stored = aggregate(how.aggregate, weights, stored, now)
        direction = trees.merge(stored, others)
        if rates is None:
            updates = jax.tree.map(lambda g: -how.rate * g, direction)
        else:
            updates = jax.tree.map(lambda a, g: -a * g, rates, direction)
        return updates, Noted(noted.step + 1, notes)

    return optax.GradientTransformation(init, update)


def by_step(how: How, tree: PyTree) -> PyTree:
    """Room for a tree at each inner step, one at least."""
    steps = max(how.num_steps, 1)
    return jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), leaf.dtype), tree)


def task_key(how: How, variables: Variables, support: Examples) -> Array:
    """The key of a task, `[K]`, without a derivative."""
    if how.embed is not None:
        found = how.embed(variables, support)
    else:
        found = masked_mean(_moments(support), support.mask)
    return jax.lax.stop_gradient(trees.widened(found))


def _moments(support: Examples) -> Array:
    """Rows whose mean describes a task, `[N, K]`."""

    def flat(tree: PyTree) -> Array:
        leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)]
        dtype = widest(leaves)
        return jnp.concatenate([leaf.astype(dtype) for leaf in leaves], axis=-1)

    x = flat(support.x)
    targets = jax.tree.leaves(support.y)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in targets):
        # Names of classes say nothing of a task.
        return x
    y = flat(support.y).astype(x.dtype)
    products = (x[:, :, None] * y[:, None]).reshape(x.shape[0], -1)
    return jnp.concatenate([x, y, products], axis=-1)


def recall_of(
    how: How, memory: EpisodicMemory, name: Array
) -> tuple[Recall | None, Recalled | None]:
    """The slots of similar tasks, and their gradients."""
    if not how.recall:
        return None, None
    if name.shape != memory.keys.shape[1:]:
        expected = (
            "one shape for all tasks from embed"
            if how.embed is not None
            else "inputs and targets of the shapes and kinds of the task that init was "
            "given, such as integers for classes"
        )
        raise ValueError(
            f"the key of this task has the shape {name.shape}, those of the memory "
            f"{memory.keys.shape[1:]}; expected {expected}."
        )
    found = store.nearest(memory, name, how.recall, "cosine")
    similarity = jnp.where(found.found, 1 - found.distances, 0)
    grads = jax.tree.map(lambda leaf: leaf[found.slots], memory.values)
    return found, Recalled(grads, similarity, found.found)


def facts(entry: Entry) -> dict[str, Array]:
    """Metrics of what a task recalled."""
    if entry.recall is None:
        return {}
    found, distances = entry.recall.found, entry.recall.distances
    similarity = jnp.where(found, 1 - distances, 0)
    return {
        "memory/found": jnp.sum(found).astype(distances.dtype),
        "memory/similarity": masked_mean(similarity, found),
    }


def widest(tree: PyTree) -> Any:
    """The widest floating dtype of a tree, float32 at least."""
    found = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    real = [dtype for dtype in found if jnp.issubdtype(dtype, jnp.floating)]
    return functools.reduce(jnp.promote_types, real, jnp.dtype(jnp.float32))
