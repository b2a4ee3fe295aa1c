"""Metrics of ratings and of their order: mean absolute error, NDCG, AUC."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from metalearn.core import checks, losses
from metalearn.core.task import Examples
from metalearn.core.trees import widened
from metalearn.core.types import Array


def mae(outputs: Array, examples: Examples) -> Array:
    """Mean absolute error over the valid examples; lower is better.

    Args:
      outputs: Predictions, float `[N, ...]`.
      examples: Targets `y`, float of the same shape, and `mask` `[N]`.

    Returns:
      Scalar; 0 if every row is masked.

    Raises:
      ValueError: the shapes of outputs and targets differ.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]]))
      >>> float(ml.metrics.mae(jnp.zeros((2, 1)), examples))
      2.0
    """
    losses.check_equal(outputs, examples, "mae")
    errors = jnp.abs(widened(outputs) - widened(examples.y))
    return losses.mean_of_rows(errors, examples.mask)


def ndcg(at: int | None = None) -> Callable[[Array, Examples], Array]:
    """Metric: normalised discounted cumulative gain of the order of the predictions.

    `DCG = sum over the first places of (2^y - 1) / log2(1 + place)`, divided by that of the
    best order (K. Jarvelin, J. Kekalainen, ACM TOIS 2002, with the gain of C. Burges et
    al., ICML 2005). Equal predictions share the mean discount of their places, so that a
    constant predictor is worth a random order.

    Args:
      at: Number of places that count, 1 or more; all if None.

    Returns:
      Function `(outputs, examples) -> scalar` in 0..1; higher is better. Outputs and `y`
      are `[N]` or `[N, 1]`, with `y` of 0 or more. NaN where no valid `y` is above 0, for
      no order is better than another, where one is below 0, and where a prediction is NaN.

    Raises:
      ValueError: `at` is below 1; in the function: shapes differ.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros(3), jnp.array([3.0, 0.0, 2.0]))
      >>> round(float(ml.metrics.ndcg(at=2)(jnp.array([0.1, 0.9, 0.5]), examples)), 4)
      0.2129
    """
    if at is not None:
        checks.whole_number("at", at, least=1)
    return _Ndcg(None if at is None else int(at))


@dataclasses.dataclass(frozen=True)
class _Ndcg:
    """The function that `ndcg` returns. Equal settings are equal, to share compilations."""

    at: int | None

    def __call__(self, outputs: Array, examples: Examples) -> Array:
        scores, y, mask = _columns(outputs, examples, "ndcg")
        gains = jnp.where(mask, jnp.exp2(y) - 1, 0)
        best = jnp.sum(gains * _discounts(y, mask, self.at))
        found = jnp.sum(gains * _discounts(scores, mask, self.at))
        known = jnp.all(~mask | ((y >= 0) & ~jnp.isnan(scores)))
        # Without a gain the quotient is 0 / 0, which is what is meant.
        return jnp.where(known, found / best, jnp.nan)


def auc(outputs: Array, examples: Examples) -> Array:
    """Area under the ROC curve: how often a positive example is above a negative one.

    Ties count half, so that a constant predictor has 0.5.

    Args:
      outputs: Scores, `[N]` or `[N, 1]`.
      examples: Targets `y` of the same shape: 1 or True for positive, 0 for negative.

    Returns:
      Scalar in 0..1; higher is better. NaN where valid examples are all of one kind, a
      target is neither 0 nor 1, or a score is NaN.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros(4), jnp.array([1.0, 0.0, 1.0, 0.0]))
      >>> float(ml.metrics.auc(jnp.array([3.0, 2.0, 1.0, 1.0]), examples))
      0.625
    """
    scores, y, mask = _columns(outputs, examples, "auc")
    positive, negative = mask & (y == 1), mask & (y == 0)
    # Shares of the negatives below each positive and their mean: sums of ranks would lose
    # the digits of float32 where there are many examples.
    below, equal = _below_and_equal(scores, negative)
    num = negative.sum().astype(scores.dtype)
    shares = (below + equal / 2) / num
    total = jnp.sum(jnp.where(positive, shares, 0))
    area = total / positive.sum().astype(scores.dtype)
    known = jnp.all(~mask | ((positive | negative) & ~jnp.isnan(scores))) & (num > 0)
    return jnp.where(known, area, jnp.nan)


def _columns(outputs: Array, examples: Examples, name: str) -> tuple[Array, Array, Array]:
    """Scores, targets and mask, `[N]`."""
    losses.check_equal(outputs, examples, name)
    if outputs.size != examples.mask.size:
        raise ValueError(
            f"{name} got outputs of shape {outputs.shape}; expected one score an example, "
            "[N] or [N, 1]."
        )
    scores, y = widened(outputs).reshape(-1), widened(examples.y).reshape(-1)
    dtype = jnp.promote_types(scores.dtype, jnp.float32)
    return scores.astype(dtype), y.astype(dtype), examples.mask


def _below_and_equal(scores: Array, counted: Array) -> tuple[Array, Array]:
    """How many of the counted scores are below each score, and how many equal it."""
    # What does not count goes behind all others. A NaN does not, or it would go further.
    ordered = jnp.sort(jnp.where(counted & ~jnp.isnan(scores), scores, jnp.inf))
    most = counted.sum()
    below = jnp.minimum(jnp.searchsorted(ordered, scores, side="left"), most)
    upto = jnp.minimum(jnp.searchsorted(ordered, scores, side="right"), most)
    return below.astype(scores.dtype), (upto - below).astype(scores.dtype)


def _discounts(scores: Array, mask: Array, at: int | None) -> Array:
    """Mean discount of the places that a score shares, highest score first, `[N]`."""
    below, equal = _below_and_equal(scores, mask)
    num = scores.shape[0]
    places = jnp.arange(1, num + 1)
    each = 1 / jnp.log2(1 + places.astype(scores.dtype))
    each = jnp.where(places <= (num if at is None else at), each, 0)
    total = jnp.concatenate([jnp.zeros((1,), each.dtype), jnp.cumsum(each)])
    above = (mask.sum().astype(scores.dtype) - below - equal).astype(jnp.int32)
    last = above + equal.astype(jnp.int32)
    shared = (total[last] - total[jnp.maximum(above, 0)]) / jnp.maximum(equal, 1)
    return jnp.where(mask, shared, 0)
