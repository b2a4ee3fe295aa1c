"""EMO for curves, with keys that say which function a task is of.

The means of a support set, which `ml.emo` takes for a key, depend more on where the few
points lie than on the function through them. Here a smooth curve is fitted to the points,
and its heights at fixed places are the key. The means of a Gaussian process are such a
curve; it knows nothing of sines.

    python -m benchmarks against sinusoid-emo sinusoid-maml \\
        --set-system learner=benchmarks.curve_keys:emo_by_fit
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

import metalearn as ml
from metalearn.algorithms.episodic.aggregate import Aggregate
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, LossFn

PLACES = 21  # from -5 to 5, where the points of `ml.tasks.sinusoid` are
LIFT = 3.0  # by which the cosine of two curves tells their heights too


def emo_by_fit(
    model: Model,
    loss_fn: LossFn,
    *,
    num_steps: int = 1,
    inner_rate: float = 0.005,
    rates: Literal["fixed", "learned"] = "fixed",
    capacity: int = 400,
    recall: int = 5,
    aggregate: Aggregate = "mean",
    length: float = 1.5,
    noise: float = 0.05,
) -> ml.MetaLearner:
    """EMO that knows a task by a smooth curve through its points.

    Args:
      model: The network.
      loss_fn: Loss of one task.
      num_steps: Number of inner steps.
      inner_rate: Rate of all weights; where it is learned, at the start.
      rates: Kind of rates: "fixed", one of all weights; "learned", one of each weight.
      capacity: Number of tasks in the memory.
      recall: Number of tasks that are recalled.
      aggregate: Way to combine gradients, see `ml.emo`.
      length: Distance over which the curve is smooth.
      noise: Variance of points about the curve, beside a variance of 1 of the curve.
    """

    def embed(variables: Variables, support: Examples) -> Array:
        del variables
        return key_of(support, length, noise)

    return ml.emo(
        model,
        loss_fn,
        num_steps=num_steps,
        inner_rate=inner_rate,
        learn_rates=rates == "learned",
        capacity=capacity,
        recall=recall,
        aggregate=aggregate,
        remember="all",
        embed=embed,
    )


def key_of(support: Examples, length: float, noise: float) -> Array:
    """Heights of the fitted curve at fixed places, and a constant, `[PLACES + 1]`.

    Args:
      support: Points, `x` and `y` `[N, 1]`; masked ones leave no trace.
      length: See `emo_by_fit`.
      noise: See `emo_by_fit`.
    """
    there = support.mask.astype(support.x.dtype)[:, None]
    places = jnp.linspace(-5.0, 5.0, PLACES, dtype=support.x.dtype)[:, None]

    def alike(a: Array, b: Array) -> Array:
        return jnp.exp(-jnp.square(a - b.T) / (2 * length**2))

    among = alike(support.x, support.x) * there * there.T
    own = noise * jnp.eye(among.shape[0], dtype=among.dtype)
    weights = jnp.linalg.solve(among + own, support.y * there)
    heights = (alike(places, support.x) * there.T) @ weights
    return jnp.append(heights[:, 0], jnp.asarray(LIFT, heights.dtype))
