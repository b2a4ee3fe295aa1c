"""Surrogates: scalars to be maximised whose derivatives are those of expected returns.

All take arrays `[E, H]` of one task. Log-probabilities are differentiated, everything else
counts as constant. "episodes" is the mean over episodes of sums over their valid steps,
whose derivative estimates that of the expected return; "steps" is the mean over all valid
steps, smaller by the mean length of an episode, which published rates are made for.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.types import Array
from metalearn.policies import steps
from metalearn.policies.steps import Over


def dice(
    log_probs: Array, advantages: Array, mask: Array, *, over: Over = "episodes"
) -> Array:
    """The objective of Loaded DiCE, right in its derivatives of every order.

    With the box `b(x) = exp(x - stop_gradient(x))` and the log-probabilities `w_t` of all
    actions up to step t it is the sum of `(b(w_t) - b(w_(t-1))) A_t` (Farquhar et al. 2019,
    with lambda = 1). For returns to come `A_t` its derivatives are those of
    DiCE (Foerster et al. 2018), where the reward of step t stands beside
    `b(w_t)`. Any baseline of the state may be subtracted from them; that leaves all
    expectations and lowers the variance.

    Args:
      log_probs: Log-probabilities under the policy that acted, float `[E, H]`.
      advantages: Returns to come, or advantages, float `[E, H]`. For a discounted return
        they have to have the factor `discount^t`; most authors leave it out.
      mask: Mask of the valid steps, bool `[E, H]`.
      over: Kind of average: "episodes" or "steps", see the module.

    Returns:
      A scalar of value 0; what counts are its derivatives.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: the shapes differ, or `over` is something else.

    Example:
      >>> logs, mask = jnp.log(jnp.array([[0.5, 0.5]])), jnp.ones((1, 2), bool)
      >>> jax.grad(dice)(logs, jnp.array([[3.0, 1.0]]), mask).tolist()
      [[3.0, 1.0]]
    """
    steps.check(mask, log_probs=log_probs, advantages=advantages)
    logs = jnp.where(mask, log_probs, 0.0)
    past = jnp.cumsum(logs, axis=-1)
    # Shifted rather than subtracted: what is left of w_t - log_prob_t would differ from
    # w_(t-1) by rounding.
    before = jnp.concatenate([jnp.zeros_like(past[..., :1]), past[..., :-1]], axis=-1)
    gains = (_box(past) - _box(before)) * _constant(advantages, mask)
    return steps.average(gains, mask, over)


def likelihood_ratio(
    log_probs: Array,
    behaviour_log_probs: Array,
    advantages: Array,
    mask: Array,
    *,
    over: Over = "episodes",
) -> Array:
    """The sum of `ratio_t A_t` with the ratio of each step's probabilities alone.

    Where the policy is the one that acted this is the low-variance curvature of ProMP
    (Rothfuss et al. 2019). Its first derivative is the policy gradient. With
    the scores `g_t`, the derivatives of `log_probs`, its second derivative is the sum of
    `A_t (d g_t + g_t g_t')`. The exact one, that of `dice`, has besides

        sum over t of  A_t (g_t p_t' + p_t g_t'),    p_t = g_0 + ... + g_(t-1),

    which is dropped. Its expectation vanishes where an action does not change the policy
    gradient of the steps after it.

    Args:
      log_probs: Log-probabilities under the policy that is improved, float `[E, H]`.
      behaviour_log_probs: Log-probabilities under the policy that acted, float `[E, H]`.
      advantages: Returns to come, or advantages, float `[E, H]`.
      mask: Mask of the valid steps, bool `[E, H]`.
      over: Kind of average: "episodes" or "steps", see the module.

    Returns:
      A scalar; where the policies agree, the average of the advantages.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: the shapes differ, or `over` is something else.

    Example:
      >>> gain = likelihood_ratio(  # doctest: +SKIP
      ...     logs, seen.log_probs, advantages, seen.mask
      ... )
    """
    ratios = jnp.exp(_log_ratios(log_probs, behaviour_log_probs, advantages, mask))
    return steps.average(ratios * _constant(advantages, mask), mask, over)


def clipped(
    log_probs: Array,
    old_log_probs: Array,
    advantages: Array,
    mask: Array,
    clip: float = 0.2,
    *,
    over: Over = "episodes",
) -> Array:
    """The clipped objective of PPO (Schulman et al. 2017, equation 7).

    A step counts with `min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)`: nothing is gained
    by a ratio further off in the direction that its advantage asks for.

    Args:
      log_probs: Log-probabilities under the policy that is improved, float `[E, H]`.
      old_log_probs: Log-probabilities under the policy that acted, float `[E, H]`.
      advantages: Advantages, float `[E, H]`.
      mask: Mask of the valid steps, bool `[E, H]`.
      clip: Distance from 1 at which a ratio is clipped, in (0, 1).
      over: Kind of average: "episodes" or "steps", see the module.

    Returns:
      A scalar; where the policies agree, value and derivative of `likelihood_ratio`.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: `clip` is outside (0, 1), the shapes differ, or `over` is something else.

    Example:
      >>> gain = clipped(logs, seen.log_probs, advantages, seen.mask)  # doctest: +SKIP
    """
    checks.number("clip", clip, positive=True)
    if clip >= 1:
        raise ValueError(f"clip is {clip}; expected a number between 0 and 1, such as 0.2.")
    logs = _log_ratios(log_probs, old_log_probs, advantages, mask)
    # Clipped as logarithms: a ratio that overflows would have 0 times infinity for its
    # derivative.
    high = jnp.minimum(logs, math.log1p(clip))
    low = jnp.maximum(logs, math.log1p(-clip))
    gains = _constant(advantages, mask)
    ratios = jnp.exp(jnp.where(gains >= 0, high, low))
    return steps.average(ratios * gains, mask, over)


def importance_weights(
    log_probs: Array,
    behaviour_log_probs: Array,
    mask: Array,
    limit: float,
    per: Literal["step", "decision", "trajectory"] = "step",
) -> tuple[Array, Array]:
    """Weights that make trajectories of one policy count as those of another.

    "trajectory" is the ratio of the probabilities of whole episodes: unbiased for whatever
    is averaged over episodes. "decision" is the ratio up to and with each step: unbiased
    for rewards of the steps, and less noisy (Precup et al. 2000). "step" is the ratio of
    each step alone: the least noisy, but biased, for it takes the states as they came.
    Below the limit, that is: what is clipped biases all of them.

    Args:
      log_probs: Log-probabilities under the policy in question, float `[E, H]`.
      behaviour_log_probs: Log-probabilities under the policy that acted, float `[E, H]`.
      mask: Mask of the valid steps, bool `[E, H]`.
      limit: Largest weight, 1 or more.
      per: Kind of ratio: "step", "decision" or "trajectory".

    Returns:
      The weights, float `[E, H]`, or `[E]` for "trajectory", without derivative; 1 where
      the log-probabilities are equal. And the number of weights that were clipped, int32;
      those of invalid steps do not count.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: `limit` is below 1, `per` is something else, or the shapes differ.

    Example:
      >>> logs, mask = jnp.log(jnp.array([[0.5, 0.25]])), jnp.ones((1, 2), bool)
      >>> weights, num = importance_weights(logs, logs[:, ::-1], mask, 1.5)
      >>> weights.tolist(), int(num)
      ([[1.5, 0.5]], 1)
    """
    checks.number("limit", limit)
    if limit < 1:
        raise ValueError(
            f"limit is {limit}; expected a number of 1 or more, for equal policies have 1."
        )
    checks.one_of("per", per, ("step", "decision", "trajectory"))
    logs = jax.lax.stop_gradient(_log_ratios(log_probs, behaviour_log_probs, None, mask))
    counted = mask
    if per == "decision":
        logs = jnp.cumsum(logs, axis=-1)
    elif per == "trajectory":
        logs, counted = jnp.sum(logs, axis=-1), jnp.any(mask, axis=-1)
    bound = math.log(limit)
    num = jnp.sum(counted & (logs > bound)).astype(jnp.int32)
    return jnp.minimum(jnp.exp(jnp.minimum(logs, bound)), limit), num


def exploration_term(
    log_probs: Array, mask: Array, post_return: Array, baseline: Array | float = 0.0
) -> Array:
    """What adaptation data is worth: the term that MAML's objective leaves out.

    The return after adaptation depends on the policy in two ways: through the adapted
    parameters, and through the trajectories that they were adapted on, which the policy
    drew. The second part of the derivative is `sum of d log pi(a|s)` over all steps of all
    these trajectories, times the return after adaptation (Stadie et al. 2018;
    Al-Shedivat et al. 2018). Add this to an objective of the same unit: a surrogate over
    "episodes" of advantages that are not normalised. With several steps of adaptation
    there is a term for the trajectories of each, with the log-probabilities of the policy
    that drew them.

    Args:
      log_probs: Log-probabilities of the trajectories before adaptation under the policy
        that drew them, float `[E, H]`. They are summed over all E episodes.
      mask: Mask of their valid steps, bool `[E, H]`.
      post_return: Return after adaptation, a scalar: the mean over its episodes.
      baseline: Number that does not depend on these trajectories, such as the mean return
        after adaptation of other tasks, a scalar. It lowers the variance.

    Returns:
      A scalar of value 0, whose derivative is the term.

    Raises:
      TypeError: the mask is not of bools.
      ValueError: shapes differ, or `post_return` or `baseline` is no scalar.

    Example:
      >>> logs, mask = jnp.log(jnp.array([[0.5, 0.25]])), jnp.ones((1, 2), bool)
      >>> jax.grad(exploration_term)(logs, mask, jnp.array(3.0), 1.0).tolist()
      [[2.0, 2.0]]
    """
    steps.check(mask, log_probs=log_probs)
    for name, value in (("post_return", post_return), ("baseline", baseline)):
        if jnp.shape(value) != ():
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}; expected a scalar. Take the mean "
                "over episodes."
            )
    total = jnp.sum(jnp.where(mask, log_probs, 0.0))
    return (_box(total) - 1.0) * jax.lax.stop_gradient(post_return - baseline)


def _box(logs: Array) -> Array:
    """One, with the derivatives of a probability divided by its value."""
    return jnp.exp(logs - jax.lax.stop_gradient(logs))


def _constant(advantages: Array, mask: Array) -> Array:
    """Advantages without derivative; 0 at invalid steps, where they may be anything."""
    return jax.lax.stop_gradient(jnp.where(mask, advantages, 0.0))


def _log_ratios(
    log_probs: Array, behaviour_log_probs: Array, advantages: Array | None, mask: Array
) -> Array:
    given = {} if advantages is None else {"advantages": advantages}
    steps.check(mask, log_probs=log_probs, behaviour_log_probs=behaviour_log_probs, **given)
    ratios = log_probs - jax.lax.stop_gradient(behaviour_log_probs)
    return jnp.where(mask, ratios, 0.0)
