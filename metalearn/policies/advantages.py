"""Returns, advantages and the baseline that they are measured against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metalearn.core import checks, loops
from metalearn.core.types import Array
from metalearn.inner.solve import solve
from metalearn.policies import steps


def discounted_returns(rewards: Array, mask: Array, discount: float) -> Array:
    """Rewards to come, `G_t = r_t + discount G_(t+1)`.

    Args:
      rewards: Rewards, float `[..., H]`.
      mask: Mask of the valid steps, bool `[..., H]`.
      discount: Factor of the next step's return, in [0, 1].

    Returns:
      Returns from each step on, float `[..., H]`; 0 at invalid steps.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: `discount` is outside [0, 1], or the shapes differ.

    Example:
      >>> rewards, mask = jnp.array([1.0, 2.0, 4.0]), jnp.array([True, True, False])
      >>> discounted_returns(rewards, mask, 0.5).tolist()
      [2.0, 2.0, 0.0]
    """
    steps.check(mask, rewards=rewards)
    checks.share("discount", discount)
    return _accumulated(rewards, mask, discount)


def gae(
    rewards: Array,
    values: Array,
    last_value: Array,
    mask: Array,
    terminated: Array,
    discount: float,
    trace: float,
) -> Array:
    """Generalised advantages (Schulman et al. 2016, equation 16).

    They are the sums of `(discount trace)^k delta_(t+k)` with the errors `delta_t = r_t +
    discount V_(t+1) - V_t`. After the last valid step of an episode V is `last_value` if it
    was truncated, for it would have gone on, and 0 if it terminated. If the return up to
    the horizon is all that counts, as in MAML's experiments, pass `terminated` all True.

    Args:
      rewards: Rewards, float `[..., H]`.
      values: Values V of the observations of the steps, float `[..., H]`.
      last_value: Values of the last observations, float `[...]`.
      mask: Mask of the valid steps, bool `[..., H]`.
      terminated: Flag of the episodes after which no reward can follow, bool `[...]`.
      discount: Factor of the next step's value, in [0, 1].
      trace: Weight of long sums, in [0, 1]: 0 trusts the values, 1 the rewards.

    Returns:
      Advantages, float `[..., H]`; 0 at invalid steps.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: a factor is outside [0, 1], or the shapes differ.

    Example:
      >>> advantages = gae(  # doctest: +SKIP
      ...     seen.rewards, values, last, seen.mask, seen.terminated, 0.99, 0.97
      ... )
    """
    steps.check(mask, rewards=rewards, values=values)
    checks.share("discount", discount)
    checks.share("trace", trace)
    for name, array in (("last_value", last_value), ("terminated", terminated)):
        if jnp.shape(array) != mask.shape[:-1]:
            raise ValueError(
                f"{name} has shape {jnp.shape(array)}; expected {mask.shape[:-1]}, one "
                "value an episode."
            )
    checks.mask_of_bools(terminated, "terminated")
    goes_on = jnp.concatenate([mask[..., 1:], jnp.zeros_like(mask[..., :1])], axis=-1)
    shifted = jnp.concatenate([values[..., 1:], values[..., :1]], axis=-1)
    beyond = jnp.where(terminated, 0.0, last_value)[..., None]
    following = jnp.where(goes_on, shifted, beyond)
    errors = rewards + discount * following - values
    return _accumulated(errors, mask, discount * trace)


def linear_baseline(
    observations: Array,
    rewards_to_go: Array,
    mask: Array,
    last_observation: Array,
    *,
    ridge: float = 1e-5,
) -> tuple[Array, Array]:
    """Values that are linear in features of observation and time (Duan et al. 2016).

    The features of observation `o` at step `t` are `o`, `o^2`, `t/100`, `(t/100)^2`,
    `(t/100)^3` and 1. The weights are those of ridge regression onto the returns of the
    valid steps. Features are scaled to a mean square of 1 first, so that `ridge` means the
    same for all of them and float32 suffices.

    Args:
      observations: Observations of the steps, float `[E, H, D]`.
      rewards_to_go: Returns to fit, as of `discounted_returns`, float `[E, H]`.
      mask: Mask of the valid steps, bool `[E, H]`.
      last_observation: Observations after the last valid steps, float `[E, D]`.
      ridge: Penalty of the squared weights against the mean squared error, above 0.

    Returns:
      Values of the steps, float `[E, H]`, 0 at invalid steps; and values of the last
      observations, float `[E]`. Derivatives do not flow through either.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: `ridge` is not above 0, or the shapes differ.

    Example:
      >>> to_go = discounted_returns(seen.rewards, seen.mask, 0.99)  # doctest: +SKIP
      >>> values, last = linear_baseline(  # doctest: +SKIP
      ...     seen.observations, to_go, seen.mask, seen.last_observation
      ... )
    """
    steps.check(mask, rewards_to_go=rewards_to_go)
    checks.number("ridge", ridge, positive=True)
    if observations.shape[:-1] != mask.shape or mask.ndim != 2:
        raise ValueError(
            f"observations have shape {observations.shape} and mask {mask.shape}; expected "
            "[E, H, D] and [E, H]. For a batch of tasks use jax.vmap."
        )
    if last_observation.shape != (mask.shape[0], observations.shape[-1]):
        raise ValueError(
            f"last_observation has shape {last_observation.shape}; expected "
            f"{(mask.shape[0], observations.shape[-1])}, one an episode."
        )
    # A baseline must not depend on what it is subtracted for: its derivative would bias
    # that of the objective.
    observations, rewards_to_go, last_observation = jax.lax.stop_gradient(
        (observations, rewards_to_go, last_observation)
    )
    times = jnp.broadcast_to(jnp.arange(mask.shape[1])[None], mask.shape)
    features = _features(observations, times)
    features = jnp.where(mask[..., None], features, 0.0)
    rows = features.reshape((-1, features.shape[-1]))
    targets = jnp.where(mask, rewards_to_go, 0.0).reshape((-1, 1))
    num = jnp.maximum(jnp.sum(mask, dtype=rows.dtype), 1)
    scale = jnp.sqrt(jnp.sum(rows**2, axis=0) / num)
    scale = jnp.where(scale > 0, scale, 1.0)
    rows = rows / scale[None]
    # In full precision: an accelerator's shorter products would exceed the ridge.
    product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    square = product(rows.T, rows) / num + ridge * jnp.eye(rows.shape[1], dtype=rows.dtype)
    weights = solve(square, product(rows.T, targets) / num) / scale[:, None]
    last = product(_features(last_observation, jnp.sum(mask, axis=1)), weights)
    return product(features, weights)[..., 0], last[..., 0]


def normalised(advantages: Array, mask: Array) -> Array:
    """Advantages with mean 0 and standard deviation 1 over all valid steps of a task.

    Advantages that are all equal become 0, whatever their last digits are.

    Args:
      advantages: Advantages of one task, float `[E, H]`.
      mask: Mask of the valid steps, bool `[E, H]`.

    Returns:
      Advantages, float `[E, H]`; 0 at invalid steps.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: the shapes differ.

    Example:
      >>> normalised(jnp.array([[1.0, 3.0]]), jnp.ones((1, 2), bool)).tolist()
      [[-1.0, 1.0]]
    """
    steps.check(mask, advantages=advantages)
    kept = jnp.where(mask, advantages, 0.0)
    num = jnp.maximum(jnp.sum(mask, dtype=kept.dtype), 1)
    centred = jnp.where(mask, kept - jnp.sum(kept) / num, 0.0)
    variance = jnp.sum(centred**2) / num
    rounding = 10 * jnp.finfo(kept.dtype).eps * jnp.max(jnp.abs(kept))
    flat = variance <= rounding**2
    # The variance is replaced before its root, whose derivative at 0 is infinite.
    return jnp.where(flat, 0.0, centred / jnp.sqrt(jnp.where(flat, 1.0, variance)))


def _accumulated(values: Array, mask: Array, factor: float) -> Array:
    """Sums `s_t = x_t + factor s_(t+1)` over the last axis, within the mask."""

    def step(total: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        value, valid = now
        total = jnp.where(valid, value + factor * total, 0.0)
        return total, total

    pairs = jnp.moveaxis(values, -1, 0), jnp.moveaxis(mask, -1, 0)
    _, totals = loops.scan(step, jnp.zeros_like(pairs[0][0]), pairs, reverse=True)
    return jnp.moveaxis(totals, 0, -1)


def _features(observations: Array, times: Array) -> Array:
    """Features `[..., 2 D + 4]` of observations `[..., D]` at steps `[...]`."""
    time = times.astype(observations.dtype)[..., None] / 100
    parts = [observations, observations**2, time, time**2, time**3, jnp.ones_like(time)]
    return jnp.concatenate(parts, axis=-1)
