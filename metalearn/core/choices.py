"""Metrics of a choice among candidates: hit rate and gain of the one that was chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from metalearn.core import checks, losses
from metalearn.core.task import Examples
from metalearn.core.trees import widened
from metalearn.core.types import Array

Kind = Literal["hit_rate", "choice_ndcg"]


def hit_rate(at: int) -> Callable[[Array, Examples], Array]:
    """Metric: share of the choices whose chosen candidate is among the first `at`.

    Ties count against it: a candidate with the same score, or a NaN, is before the chosen
    one. So a constant predictor has 0, where random ties would give `at / K`.

    Args:
      at: Number of places that count, 1 or more.

    Returns:
      Function `(outputs, examples) -> scalar` in 0..1; higher is better. Outputs are
      scores `[N, K]`, and `y` `[N, K]` is 1 for the chosen candidate and 0 for the others.
      NaN where a valid row has not one chosen candidate.

    Raises:
      ValueError: `at` is below 1; in the function: shapes differ.

    Example:
      >>> y = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
      >>> examples = ml.Examples.of(jnp.zeros((2, 1)), y)
      >>> scores = jnp.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
      >>> float(ml.metrics.hit_rate(at=1)(scores, examples))
      0.5
    """
    checks.whole_number("at", at, least=1)
    return _Choice("hit_rate", int(at))


def choice_ndcg(at: int) -> Callable[[Array, Examples], Array]:
    """Metric: mean of `1 / log2(1 + place)` of the chosen candidate, 0 beyond `at`.

    The normalised discounted cumulative gain of an order in which one candidate is right.
    Ties count against it, as in `hit_rate`.

    Args:
      at: Number of places that count, 1 or more.

    Returns:
      Function `(outputs, examples) -> scalar` as that of `hit_rate`.

    Raises:
      ValueError: `at` is below 1; in the function: shapes differ.

    Example:
      >>> examples = ml.Examples.of(jnp.zeros((1, 1)), jnp.array([[0.0, 1.0, 0.0]]))
      >>> gain = ml.metrics.choice_ndcg(at=3)(jnp.array([[3.0, 2.0, 1.0]]), examples)
      >>> round(float(gain), 4)
      0.6309
    """
    checks.whole_number("at", at, least=1)
    return _Choice("choice_ndcg", int(at))


def places_of_chosen(outputs: Array, examples: Examples) -> Array:
    """Place of the chosen candidate from 1 on, ties against it, int32 `[N]`.

    Raises:
      ValueError: outputs and targets are not `[N, K]`.
    """
    losses.check_equal(outputs, examples, "a choice")
    if outputs.ndim != 2:
        raise ValueError(
            f"a choice got outputs of shape {outputs.shape}; expected scores [N, K] of K "
            "candidates."
        )
    chosen = examples.y == 1
    score = jnp.max(jnp.where(chosen, outputs, -jnp.inf), axis=1, keepdims=True)
    before = ~(outputs < score) & ~chosen
    return 1 + jnp.sum(before, axis=1, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """The function of a metric. Equal settings are equal, to share compilations."""

    kind: Kind
    at: int

    def __call__(self, outputs: Array, examples: Examples) -> Array:
        place = places_of_chosen(outputs, examples)
        y = widened(examples.y)
        dtype = jnp.promote_types(y.dtype, jnp.float32)
        worth = jnp.ones(place.shape, dtype)
        if self.kind == "choice_ndcg":
            worth = 1 / jnp.log2(1 + place.astype(dtype))
        worth = jnp.where(place <= self.at, worth, 0)
        one = (jnp.sum(y == 1, axis=1) == 1) & jnp.all((y == 0) | (y == 1), axis=1)
        known = jnp.all(one | ~examples.mask)
        return jnp.where(known, losses.mean_of_rows(worth, examples.mask), jnp.nan)
