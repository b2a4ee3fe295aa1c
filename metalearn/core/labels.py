"""Class indices and the logits that have to hold them, counted on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from metalearn.core import losses, trees
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, PyTree

PARTS = ("support", "query")


def num_classes(loss_fn: Callable | None, outputs: PyTree, y: PyTree) -> int | None:
    """W of logits `[N, W]` where the targets `y` are class indices; `None` elsewhere.

    Integers `[N]` are class indices. One output a row says nothing of classes, unless the
    loss is one of classes: it may be a count, or the logit of yes against no.

    Args:
      loss_fn: Loss of the outputs, if known.
      outputs: Predictions, or their shapes.
      y: Targets, or their shapes.
    """
    if not is_classes(y) or y.ndim != 1 or getattr(outputs, "ndim", 0) != 2:
        return None
    ways = int(outputs.shape[-1])
    return ways if ways > 1 or losses.takes_classes(loss_fn) else None


def is_classes(y: PyTree) -> bool:
    """Whether targets are an array of integers."""
    return hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.integer)


def outside(examples: Examples, ways: int) -> Array:
    """Valid labels that no logit stands for, int32 `[]`, or `[T]` of a batch of tasks."""
    y, mask = examples.y, examples.mask
    if not is_classes(y) or y.ndim != mask.ndim:
        return jnp.zeros(mask.shape[:-1], jnp.int32)
    if y.dtype.itemsize < 4:  # W may lie beyond what its dtype holds
        y = y.astype(jnp.int32)
    return jnp.sum(((y < 0) | (y >= ways)) & mask, axis=-1, dtype=jnp.int32)


def of_training(examples: Examples, info: Mapping[str, Any]) -> Examples:
    """Examples of one task whose labels are classes of the training set.

    A label that is none of the task gives -1, which is no class either: a loss of classes
    is NaN there. The labels of masked rows are 0.

    Args:
      examples: Examples with labels `0..W-1`, integers `[N]`.
      info: What the task says of itself: `class_ids` `[W]` are the training classes of its
        labels.

    Raises:
      ValueError: the task does not say its classes, or not as integers `[W]`.
    """
    if "class_ids" not in info:
        raise ValueError(
            "a learner that is trained as a classifier needs task.info['class_ids'] [W], "
            f"the training class of each label; got info {sorted(info)}. Samplers of "
            "ml.data.few_shot provide it."
        )
    ids, y = jnp.asarray(info["class_ids"]), examples.y
    if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.ndim != 1:
        raise ValueError(
            f"task.info['class_ids'] is {ids.dtype}{list(ids.shape)}; expected integers "
            "[W], the training class of each label of the task."
        )
    ids = ids.astype(jnp.int32)
    if y.dtype.itemsize < 4:  # W may lie beyond what its dtype holds
        y = y.astype(jnp.int32)
    # Alone, a look-up counts negative labels from the end, and takes too large ones for
    # the last.
    inside = (y >= 0) & (y < ids.shape[0])
    classes = jnp.where(inside, ids[jnp.where(inside, y, 0)], -1)
    classes = jnp.where(examples.mask, classes, 0)
    return Examples(x=examples.x, y=classes, mask=examples.mask)


def outside_training(tasks: Task, num_classes: int) -> Array:
    """Valid examples whose training class has no logit, int32 `[T]` of a batch of tasks."""

    def of_one(task: Task) -> Array:
        parts = (of_training(getattr(task, part), task.info) for part in PARTS)
        return sum((outside(part, num_classes) for part in parts), jnp.int32(0))

    return jax.vmap(of_one)(tasks)


def outside_of(tasks: Task, ways: int) -> Array:
    """`outside` of support and query, int32 `[2]`, or `[T, 2]` of a batch of tasks."""
    return jnp.stack([outside(getattr(tasks, part), ways) for part in PARTS], axis=-1)


def without_support(tasks: Task) -> Array:
    """Which queries are valid and of a class without support, bool `[Q]` or `[T, Q]`.

    None in a task without any support example: no class is absent beside others.
    """
    support, query = tasks.support, tasks.query
    if not all(is_classes(p.y) and p.y.ndim == p.mask.ndim for p in (support, query)):
        return jnp.zeros(query.mask.shape, bool)
    same = query.y[..., :, None] == support.y[..., None, :]
    answered = jnp.any(same & support.mask[..., None, :], axis=-1)
    return ~answered & query.mask & jnp.any(support.mask, axis=-1, keepdims=True)


def unsupported(tasks: Task) -> Array:
    """Number of rows `without_support`, int32 `[]`, or `[T]` of a batch."""
    return jnp.sum(without_support(tasks), axis=-1, dtype=jnp.int32)


def unanswered(task: Task, logits: Array) -> Array:
    """Those of `unsupported` queries whose logit was masked as absent, int32 `[]`.

    Args:
      task: One task.
      logits: Logits `[Q, W]` of its queries.
    """
    labels = task.query.y.astype(jnp.int32)[:, None]
    own = jnp.take_along_axis(logits, labels, axis=-1, mode="clip")[:, 0]
    # Half of it: a softmax moves the logit a little.
    masked = own <= 0.5 * losses.absent_logit(logits.dtype)
    return jnp.sum(without_support(task) & masked, dtype=jnp.int32)


def stray(task: Task, logits: Array) -> Array:
    """Valid queries whose largest logit is of a class that is not in the task, int32 `[]`.

    Args:
      task: One task.
      logits: Logits `[Q, W]` of its queries.
    """
    there = losses.present_classes(task.support, logits.shape[-1])
    some = jnp.any(there)
    there = there | losses.present_classes(task.query, logits.shape[-1])
    best = jnp.argmax(logits, axis=-1)
    return jnp.sum(~there[best] & task.query.mask & some, dtype=jnp.int32)


def no_answer(number: int, where: str, several: str = "") -> str:
    """What to say of queries whose class has no support example, and a masked logit.

    Args:
      number: Number of such queries.
      where: Task that holds the first of them.
      several: What else was found, such as the number of tasks.
    """
    return (
        f"{where} holds queries of classes without a support example: {number} valid "
        f"queries{several}. The learner masks the logits of such classes, so their loss "
        "has no bound. Mask these queries, give their classes a support example, or make "
        "the learner with mask_absent_classes=False where it has that option."
    )


def message(number: int, where: str, part: str, ways: int, several: str = "") -> str:
    """What to say of labels outside the logits.

    Args:
      number: Number of such labels.
      where: Task that holds the first of them.
      part: Word of `PARTS`.
      ways: W.
      several: What else was found, such as the number of tasks.
    """
    return (
        f"{where} holds labels outside the logits of the model in {part}.y: {number} "
        f"valid labels{several} are not in 0..{ways - 1}. Give the model at least as many "
        "outputs as the tasks have ways, and labels from 0; mask padded rows. Targets that "
        "are no classes have to be floats."
    )


def no_training_class(number: int, where: str, num_classes: int, several: str = "") -> str:
    """What to say of examples `outside_training`.

    Args:
      number: Number of such examples.
      where: Task that holds the first of them.
      num_classes: Number of training classes of the learner.
      several: What else was found, such as the number of tasks.
    """
    return (
        f"{where} holds training classes that the classifier of the learner has not: "
        f"task.info['class_ids'] gives classes that are not in 0..{num_classes - 1} to "
        f"{number} valid examples{several}, and num_classes is {num_classes}. Give "
        "num_classes the number of training classes; rotations count as further classes."
    )


def not_finite(examples: Examples) -> Array:
    """Whether x or y hold what is no finite number, a bool scalar."""
    return ~trees.all_finite((examples.x, examples.y))
