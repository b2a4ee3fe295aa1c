"""Losses of one task: means over its valid examples."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from metalearn.core.task import Examples
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array


def _check_rows(outputs: Array, examples: Examples, loss: str) -> None:
    if outputs.shape[:1] != examples.mask.shape:
        raise ValueError(
            f"{loss} got outputs of shape {outputs.shape} for {examples.mask.shape[0]} "
            "examples; both need the same leading axis [N]. A loss sees one task: for "
            "a batch of tasks call estimate or evaluate, which map over them."
        )


def mse(outputs: Array, examples: Examples) -> Array:
    """Mean squared error over the valid examples of one task.

    Args:
      outputs: Predictions, float `[N, ...]`.
      examples: Targets `y`, float of the same shape, and `mask` `[N]`.

    Returns:
      Scalar; 0 if every row is masked.

    Raises:
      ValueError: the shapes of outputs and targets differ.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]]))
      >>> float(ml.losses.mse(jnp.zeros((2, 1)), examples))
      5.0
    """
    _check_rows(outputs, examples, "mse")
    if outputs.shape != examples.y.shape:
        raise ValueError(
            f"mse got outputs of shape {outputs.shape} and targets y of shape "
            f"{examples.y.shape}; they must be equal. Targets of one number an example "
            "are [N, 1] for a network that ends in Dense(1)."
        )
    errors = jnp.square(outputs - examples.y)
    return masked_mean(errors.reshape(errors.shape[0], -1).mean(-1), examples.mask)


def cross_entropy(outputs: Array, examples: Examples) -> Array:
    """Mean softmax cross-entropy over the valid examples of one task.

    The loss is a mean over examples. The original TensorFlow code of MAML sums over the
    classes instead, so multiply the inner rates that such papers print by the number of
    ways.

    Args:
      outputs: Logits, float `[N, W]`.
      examples: Class indices `y`, int `[N]` in `0..W-1`, and `mask` `[N]`.

    Returns:
      Scalar, in nats; 0 if every row is masked.

    Raises:
      TypeError: `y` is not of integer type.
      ValueError: the shapes of logits, labels and mask do not fit together.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([0, 3]))
      >>> loss = ml.losses.cross_entropy(jnp.zeros((2, 4)), examples)
      >>> round(float(loss), 4)  # the logarithm of four classes
      1.3863
    """
    _check_rows(outputs, examples, "cross_entropy")
    if not jnp.issubdtype(examples.y.dtype, jnp.integer):
        raise TypeError(
            f"cross_entropy got targets of dtype {examples.y.dtype}; expected integer "
            "class indices [N]. Use mse for real-valued targets."
        )
    if outputs.ndim != 2 or examples.y.ndim != 1:
        raise ValueError(
            f"cross_entropy got logits of shape {outputs.shape} and labels of shape "
            f"{examples.y.shape}; expected [N, W] and [N]."
        )
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, examples.y)
    return masked_mean(losses, examples.mask)


def present_classes(support: Examples, num_ways: int) -> Array:
    """Mask of the classes that have at least one valid support example, bool `[W]`.

    Example:
      >>> support = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([0, 2]))
      >>> ml.losses.present_classes(support, 4).tolist()
      [True, False, True, False]
    """
    ways = jnp.arange(num_ways, dtype=support.y.dtype)
    hits = (support.y[:, None] == ways[None]) & support.mask[:, None]
    return jnp.any(hits, axis=0)


def mask_absent(logits: Array, present: Array) -> Array:
    """Gives absent classes of a task with fewer ways a logit that never wins."""
    # Not -inf: without a valid support example all classes are absent, and the softmax of a
    # row of -inf is NaN.
    absent = jnp.asarray(-1e9, logits.dtype)
    return jnp.where(present[None], logits, absent)
