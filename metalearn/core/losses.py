"""Losses of one task: means over its valid examples, in float32 at least.

A loss with numbers of its own becomes a loss by `functools.partial`:

    loss_fn = functools.partial(ml.losses.focal, gamma=2.0)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalearn.core import trees
from metalearn.core.task import Examples
from metalearn.core.trees import masked_mean, widened
from metalearn.core.types import Array


def _check_rows(outputs: Array, examples: Examples, loss: str) -> None:
    if not isinstance(examples, Examples):
        raise TypeError(
            f"{loss} got a {type(examples).__name__} for the examples; expected "
            f"ml.Examples with y and mask. Write {loss}(outputs, ml.Examples.of(x, y))."
        )
    if not hasattr(outputs, "shape") or not hasattr(examples.y, "shape"):
        kinds = f"{type(outputs).__name__} and {type(examples.y).__name__}"
        raise TypeError(
            f"{loss} got outputs and targets that are {kinds}; expected arrays. Write a "
            "loss of your own for others: loss_fn(outputs, examples) -> scalar."
        )
    if outputs.shape[:1] != examples.mask.shape:
        raise ValueError(
            f"{loss} got outputs of shape {outputs.shape} for {examples.mask.shape[0]} "
            "examples; both need the same leading axis [N]. A loss sees one task: for "
            "a batch of tasks call estimate or evaluate, which map over them."
        )


def check_equal(outputs: Array, examples: Examples, loss: str) -> None:
    """Raises a `ValueError` unless outputs and targets have one shape, a row an example."""
    _check_rows(outputs, examples, loss)
    if outputs.shape != examples.y.shape:
        raise ValueError(
            f"{loss} got outputs of shape {outputs.shape} and targets y of shape "
            f"{examples.y.shape}; they must be equal. Targets of one number an example "
            "are [N, 1] for a network that ends in Dense(1)."
        )


def mean_of_rows(values: Array, mask: Array) -> Array:
    """Mean over valid rows of the mean of each row: values `[N, ...]`, mask `[N]`."""
    return masked_mean(values.reshape(values.shape[0], -1).mean(-1), mask)


def negative_return(outputs: Array, examples: Examples) -> Array:
    """Mean negative return over the valid episodes of one task; less is better.

    Args:
      outputs: Returns of the episodes, float `[N]`.
      examples: Episodes, of which `mask` `[N]` alone is read.

    Returns:
      Scalar; 0 if every row is masked.

    Raises:
      ValueError: the outputs are not `[N]`.

    Example:
      >>> episodes = ml.Examples.of(jnp.zeros((2, 1)), jnp.zeros(2))
      >>> float(ml.losses.negative_return(jnp.array([1.0, 3.0]), episodes))
      -2.0
    """
    if jnp.shape(outputs) != examples.mask.shape:
        raise ValueError(
            f"negative_return got outputs of shape {jnp.shape(outputs)} for "
            f"{examples.mask.shape[0]} episodes; expected a return of each, [N]."
        )
    return -masked_mean(outputs, examples.mask)


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
    check_equal(outputs, examples, "mse")
    errors = jnp.square(widened(outputs) - widened(examples.y))
    return mean_of_rows(errors, examples.mask)


def huber(outputs: Array, examples: Examples, *, delta: float = 1.0) -> Array:
    """Mean Huber loss: `e^2 / 2` up to `delta`, `delta (|e| - delta / 2)` beyond.

    Args:
      outputs: Predictions, float `[N, ...]`.
      examples: Targets `y`, float of the same shape, and `mask` `[N]`.
      delta: Size of an error from which on its loss grows linearly, above 0.

    Returns:
      Scalar; 0 if every row is masked.

    Raises:
      ValueError: the shapes of outputs and targets differ, or `delta` is not above 0.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]]))
      >>> float(ml.losses.huber(jnp.zeros((2, 1)), examples))  # of 0.5 and 2.5
      1.5
    """
    check_equal(outputs, examples, "huber")
    _check_number("delta", delta, above=0)
    losses = optax.huber_loss(widened(outputs), widened(examples.y), delta=delta)
    return mean_of_rows(losses, examples.mask)


def binary_cross_entropy(outputs: Array, examples: Examples) -> Array:
    """Mean logistic loss of yes-or-no targets, such as clicks, over the valid examples.

    Args:
      outputs: Logits of "yes", float `[N, ...]`.
      examples: Targets `y`, float of the same shape in 0..1, and `mask` `[N]`.

    Returns:
      Scalar, in nats; 0 if every row is masked, NaN for a target outside 0..1.

    Raises:
      ValueError: the shapes of outputs and targets differ.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([[1.0], [0.0]]))
      >>> loss = ml.losses.binary_cross_entropy(jnp.zeros((2, 1)), examples)
      >>> round(float(loss), 4)  # the logarithm of two answers
      0.6931
    """
    check_equal(outputs, examples, "binary_cross_entropy")
    logits, y = widened(outputs), widened(examples.y)
    losses = optax.sigmoid_binary_cross_entropy(logits, y)
    losses = jnp.where((y >= 0) & (y <= 1), losses, jnp.nan)
    return mean_of_rows(losses, examples.mask)


def cross_entropy(
    outputs: Array,
    examples: Examples,
    *,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
) -> Array:
    """Mean softmax cross-entropy over the valid examples of one task.

    The loss is a mean over examples. The original TensorFlow code of MAML sums over the
    classes instead, so multiply the inner rates that such papers print by the number of
    ways.

    Args:
      outputs: Logits, float `[N, W]`.
      examples: Class indices `y`, int `[N]` in `0..W-1`, and `mask` `[N]`.
      class_weights: Weights of the classes, `[W]`, of 0 or more. The mean is then weighted
        by the class of each example: `sum w_y l / sum w_y`. The weights belong to labels,
        so they make sense where a label means the same in all tasks.
      label_smoothing: Share of the target that all classes have in equal parts, from 0 to
        below 1.

    Returns:
      Scalar, in nats; 0 if every row is masked, NaN for a label outside `0..W-1`.

    Raises:
      TypeError: `y` is not of integer type.
      ValueError: the shapes of logits, labels and mask do not fit together, or an option
        is out of range.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([0, 3]))
      >>> loss = ml.losses.cross_entropy(jnp.zeros((2, 4)), examples)
      >>> round(float(loss), 4)  # the logarithm of four classes
      1.3863
    """
    check_classes(outputs, examples, "cross_entropy")
    _check_number("label_smoothing", label_smoothing, least=0, below=1)
    logits, labels = widened(outputs), _inside_or_nan(examples.y, outputs.shape[-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        even = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * even
    if class_weights is None:
        return masked_mean(losses, examples.mask)
    weights = _of_classes(class_weights, labels, logits)
    weights = jnp.where(examples.mask, weights, 0)
    total = jnp.sum(jnp.where(examples.mask, weights * losses, 0))
    # Without weight: 0 / 1 and not 0 / 0.
    sums = jnp.sum(weights)
    return total / jnp.where(sums > 0, sums, 1)


def focal(
    outputs: Array, examples: Examples, *, gamma: float = 2.0, class_weights: Any = None
) -> Array:
    """Mean focal loss `-w_y (1 - p_y)^gamma log p_y` (Lin et al. 2017, equations 4 and 5).

    Args:
      outputs: Logits, float `[N, W]`.
      examples: Class indices `y`, int `[N]` in `0..W-1`, and `mask` `[N]`.
      gamma: Power that takes weight from examples which are classified well; 0 gives the
        cross-entropy, others are 1 or more.
      class_weights: Weights `w` of the classes, `[W]`, of 0 or more; 1 if `None`. The mean
        stays one over examples, as in the paper.

    Returns:
      Scalar, in nats; 0 if every row is masked, NaN for a label outside `0..W-1`.

    Raises:
      TypeError: `y` is not of integer type.
      ValueError: the shapes do not fit together, or an option is out of range.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros((1, 1)), jnp.array([0]))
      >>> loss = ml.losses.focal(jnp.zeros((1, 2)), examples)  # -(1/2)^2 log(1/2)
      >>> round(float(loss), 4)
      0.1733
    """
    check_classes(outputs, examples, "focal")
    _check_number("gamma", gamma, least=0)
    if 0 < gamma < 1:
        raise ValueError(
            f"gamma is {gamma}; expected 0, or a number of 1 or more: below it the "
            "derivative is infinite where a class is certain."
        )
    logits, labels = widened(outputs), _inside_or_nan(examples.y, outputs.shape[-1])
    # The power of a masked row may be NaN, and 0 times NaN is NaN in its derivative.
    labels = jnp.where(examples.mask, labels, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if gamma:
        # Of the logarithm, for 1 - p has no digits near 1. Above zero, where every
        # derivative of the power is finite.
        missing = jnp.maximum(-jnp.expm1(-losses), 1e-7)
        losses = missing**gamma * losses
    if class_weights is not None:
        losses = _of_classes(class_weights, labels, logits) * losses
    return masked_mean(losses, examples.mask)


def takes_classes(loss_fn: Callable | None) -> bool:
    """Whether targets of a loss are known to be class indices."""
    return _is_one_of(loss_fn, cross_entropy, focal)


def is_own(loss_fn: Callable | None) -> bool:
    """Whether a loss is one of this package, with numbers of its own or without."""
    return _is_one_of(loss_fn, cross_entropy, binary_cross_entropy, focal, mse, huber)


def divides_by_weights(loss_fn: Callable | None) -> bool:
    """Whether a loss is known to be a mean by class weights, whose divisor they are."""
    while loss_fn is not None:
        if isinstance(loss_fn, functools.partial):
            weighted = loss_fn.keywords.get("class_weights") is not None
            if weighted and _is_one_of(loss_fn, cross_entropy):
                return True
            loss_fn = loss_fn.func
        else:
            loss_fn = getattr(loss_fn, "__wrapped__", None)
    return False


def _is_one_of(loss_fn: Callable | None, *losses: Callable) -> bool:
    """By identity: what users call a loss may compare itself to nothing."""
    while True:
        if isinstance(loss_fn, functools.partial):
            loss_fn = loss_fn.func
        elif hasattr(loss_fn, "__wrapped__"):
            loss_fn = loss_fn.__wrapped__
        else:
            return any(loss_fn is known for known in losses)


def check_classes(outputs: Array, examples: Examples, loss: str) -> None:
    """Checks logits `[N, W]` and labels int `[N]` for a loss or metric of this name.

    Raises:
      TypeError: the targets are no integers, or no `Examples` were given.
      ValueError: the shapes do not fit.
    """
    _check_rows(outputs, examples, loss)
    if not jnp.issubdtype(examples.y.dtype, jnp.integer):
        raise TypeError(
            f"{loss} got targets of dtype {examples.y.dtype}; expected integer "
            "class indices [N]. Use mse for real-valued targets."
        )
    if outputs.ndim != 2 or examples.y.ndim != 1:
        raise ValueError(
            f"{loss} got logits of shape {outputs.shape} and labels of shape "
            f"{examples.y.shape}; expected [N, W] and [N]."
        )


def _check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    given = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    good = given and np.isfinite(value)
    good = good and (least is None or value >= least) and (above is None or value > above)
    if not good or (below is not None and value >= below):
        low = f"of {least} or more" if above is None else f"above {above}"
        high = "" if below is None else f" and below {below}"
        raise ValueError(f"{name} is {value!r}; expected a number {low}{high}.")


def _inside_or_nan(labels: Array, ways: int) -> Array:
    """Labels of which negative ones lie beyond the end, where a lookup gives NaN."""
    # A negative index would count from the end, and a wrong label pass for another one.
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    return jnp.where(labels < 0, jnp.asarray(ways, labels.dtype), labels)


def _of_classes(class_weights: Any, labels: Array, logits: Array) -> Array:
    """The weight of each example, by its class, `[N]`."""
    if np.shape(class_weights) != logits.shape[-1:]:
        raise ValueError(
            f"class_weights has shape {np.shape(class_weights)}; expected "
            f"[{logits.shape[-1]}], a weight for each logit."
        )
    if not isinstance(class_weights, jax.core.Tracer):
        known = np.asarray(class_weights, np.float64)
        if not np.all(np.isfinite(known) & (known >= 0)):
            raise ValueError(
                f"class_weights is {class_weights}; expected finite weights of 0 or more."
            )
    weights = jnp.asarray(class_weights, logits.dtype)
    return weights.at[labels].get(mode="fill", fill_value=jnp.nan)


def present_classes(support: Examples, num_ways: int) -> Array:
    """Mask of the classes that have at least one valid support example, bool `[W]`.

    Example:
      >>> support = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([0, 2]))
      >>> ml.losses.present_classes(support, 4).tolist()
      [True, False, True, False]
    """
    y = support.y
    if y.dtype.itemsize < 4:  # W may lie beyond what its dtype holds
        y = y.astype(jnp.int32)
    ways = jnp.arange(num_ways, dtype=y.dtype)
    hits = (y[:, None] == ways[None]) & support.mask[:, None]
    return jnp.any(hits, axis=0)


def mask_absent(logits: Array, present: Array) -> Array:
    """Gives absent classes of a task with fewer ways a logit that never wins.

    Raises:
      TypeError: the outputs are a container of arrays.
    """
    trees.one_array(logits, "the output of the network", "logits [N, W], to mask classes")
    # Without any class the logits stay: beside one another, those of absent classes would
    # swallow every difference, and the loss would be 0.
    shown = (present | ~jnp.any(present))[None]
    # Logits of distances have no bound: below all that is there, whatever it is.
    least = jnp.min(jnp.where(shown, jax.lax.stop_gradient(logits), 0), -1, keepdims=True)
    absent = jnp.minimum(2 * least, absent_logit(logits.dtype))
    absent = jnp.maximum(absent, jnp.finfo(logits.dtype).min)
    return jnp.where(shown, logits, absent)


def absent_logit(dtype: Any) -> float:
    """The logit of an absent class among logits of a dtype."""
    # Not -inf: without a valid support example all classes are absent, and the softmax of a
    # row of -inf is NaN. Nor what float16 would round to it.
    return max(-1e9, float(jnp.finfo(dtype).min))
