"""Bernoulli bandits: the best that can be expected, and policies of counts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds
from metalearn.core.types import Array, Key
from metalearn.environments.environment import Discrete, Environment

# Function `(key, successes [K], failures [K], t) -> arm`, of the counts after `t` pulls.
CountPolicy = Callable[[Key, Array, Array, Array], Array]
MOST_COUNTS = 250_000  # of single arms: seconds of work


def bayes_optimal_value(arms: int, pulls: int) -> float:
    """Expected total reward of the best policy of a Bernoulli bandit.

    The probabilities of the arms are independent and uniform between 0 and 1, so that
    after s successes and f failures an arm pays with probability (s + 1) / (s + f + 2).
    The value is exact, by dynamic programming over the counts of all arms. No policy that
    starts without knowledge of the task, learned or not, has a greater expectation.

    Args:
      arms: Number of arms, 1 or more.
      pulls: Number of pulls, 1 or more.

    Returns:
      The expectation, between `pulls / 2` and `pulls * arms / (arms + 1)`.

    Raises:
      ValueError: no such integers, or more than 250,000 counts of arms to go through: five
        arms are served up to 17 pulls, two arms up to 46 at least.

    Example:
      >>> from metalearn.environments import bayes_optimal_value
      >>> round(bayes_optimal_value(arms=2, pulls=2), 4)
      1.0833
    """
    arms, pulls = kinds.count("arms", arms), kinds.count("pulls", pulls)
    work: int = arms
    layers: list[set] = []
    while len(layers) < pulls:
        if work > MOST_COUNTS:
            raise ValueError(
                f"arms is {arms} and pulls {pulls}, with more counts of arms to go through "
                f"than {MOST_COUNTS:,}. Take fewer arms or fewer pulls."
            )
        layers.append(_following(layers[-1]) if layers else {((0, 0),) * arms})
        work += arms * len(layers[-1])
    # The last pull has no later ones: it pays the chance of the best arm.
    later: dict = {}
    for layer in reversed(layers):
        later = {counts: _best(counts, later) for counts in layer}
    return later[((0, 0),) * arms]


def _following(layer: set) -> set:
    """All counts after one more pull; arms in another order are worth the same."""
    return {
        _after(counts, arm, won)
        for counts in layer
        for arm in range(len(counts))
        for won in (0, 1)
    }


def _after(counts: tuple, arm: int, won: int) -> tuple:
    """Counts after a pull, in the order that stands for all others."""
    successes, failures = counts[arm]
    pulled = (successes + won, failures + 1 - won)
    return tuple(sorted((*counts[:arm], pulled, *counts[arm + 1 :])))


def _best(counts: tuple, later: dict) -> float:
    """Largest expected sum of rewards, given the values of all counts one pull later."""
    values = []
    for arm, (successes, failures) in enumerate(counts):
        chance = (successes + 1) / (successes + failures + 2)
        won, lost = (later.get(_after(counts, arm, r), 0.0) for r in (1, 0))
        values.append(chance * (1 + won) + (1 - chance) * lost)
    return max(values)


def thompson(key: Key, successes: Array, failures: Array, t: Array) -> Array:
    """Arm by Thompson sampling with a uniform prior (W. R. Thompson, 1933).

    Each arm has a draw of its posterior, Beta(successes + 1, failures + 1), and the arm of
    the largest draw is pulled.

    Args:
      key: Key of the draw.
      successes: Numbers `[K]` of rewards of 1 of each arm.
      failures: Numbers `[K]` of rewards of 0 of each arm.
      t: Number of pulls so far, which it does not read.

    Returns:
      An arm, int32 `[]`.

    Example:
      >>> from metalearn.environments import thompson
      >>> counts = jnp.array([0.0, 500.0]), jnp.array([500.0, 0.0])
      >>> int(thompson(jax.random.key(0), *counts, jnp.int32(1000)))
      1
    """
    del t
    # Two gamma draws make one of Beta; to draw them at once compiles in half the time.
    won, lost = jax.random.gamma(key, jnp.stack([successes, failures]) + 1.0)
    return jnp.argmax(won / (won + lost)).astype(jnp.int32)


def ucb1(
    key: Key,
    successes: Array,
    failures: Array,
    t: Array,
    *,
    weight: float = 1.0,
    prior: float = 0.0,
) -> Array:
    """Arm of the largest upper confidence bound.

    The bound is `mean + weight * sqrt(2 log(t) / n)` with the mean of n pulls of an arm,
    the prior's 2 `prior` included. An arm with n = 0 comes first, and ties are broken at
    random. With the weight 1 and no prior
    it is UCB1 of P. Auer, N. Cesa-Bianchi, P. Fischer, Finite-time Analysis of the
    Multiarmed Bandit Problem, Machine Learning, 2002. Over few pulls a small weight and the
    prior 1, that of uniform probabilities, earn more: with them not all arms are tried.

    Args:
      key: Key of the order in which ties are broken.
      successes: Numbers `[K]` of rewards of 1 of each arm.
      failures: Numbers `[K]` of rewards of 0 of each arm.
      t: Number of pulls so far.
      weight: Factor of the width of the bound, 0 or more.
      prior: Number of rewards of 1, and as many of 0, that each arm counts before the
        first pull, 0 or more.

    Returns:
      An arm, int32 `[]`.

    Example:
      >>> from metalearn.environments import ucb1
      >>> counts = jnp.array([3.0, 0.0]), jnp.array([0.0, 0.0])
      >>> int(ucb1(jax.random.key(0), *counts, jnp.int32(3)))
      1
    """
    checks.number("weight", weight)
    checks.number("prior", prior)
    num = successes + failures + 2.0 * prior
    pulled = jnp.where(num > 0, num, 1.0)
    width = jnp.sqrt(2.0 * jnp.log(jnp.maximum(t, 1).astype(jnp.float32)) / pulled)
    bound = jnp.where(num > 0, (successes + prior) / pulled + weight * width, jnp.inf)
    order = jax.random.permutation(key, bound.shape[0])
    return order[jnp.argmax(bound[order])].astype(jnp.int32)


def play(
    policy: CountPolicy, environment: Environment
) -> Callable[[Key, dict[str, Array]], Array]:
    """Function `(key, task) -> rewards` that plays a bandit by a policy of counts.

    Args:
      policy: Function `(key, successes [K], failures [K], t) -> arm`, e.g. `thompson`.
      environment: Bandit of rewards 0 and 1, see `bernoulli_bandit`.

    Returns:
      A function of a key and a task, for `jit` and `vmap`. The rewards are float `[pulls]`.

    Raises:
      TypeError: the policy is no such function, or the environment is none, or has actions
        of another kind.

    Example:
      >>> from metalearn.environments import bernoulli_bandit, play, thompson
      >>> bandit = bernoulli_bandit(arms=3, pulls=10)
      >>> play(thompson, bandit)(jax.random.key(1), bandit.task(jax.random.key(0))).shape
      (10,)
    """
    arguments = ("key", "successes", "failures", "t")
    kinds.function("policy", policy, arguments, "thompson")
    kinds.instance(environment, Environment, "environment", "Make a bernoulli_bandit().")
    actions = environment.actions
    if not isinstance(actions, Discrete):
        raise TypeError(
            f"actions of {environment.name} are {actions}; expected Discrete, the arms of "
            "a bandit. Make a bernoulli_bandit()."
        )
    arms = jnp.arange(actions.num)

    def pull(task, carry, inputs):
        state, successes, failures = carry
        key, t = inputs
        k_arm, k_step = jax.random.split(key)
        arm = policy(k_arm, successes, failures, t)
        _, state, reward, _, _, _ = environment.step(k_step, state, arm, task)
        here = (arms == arm).astype(jnp.float32)
        carry = (state, successes + reward * here, failures + (1.0 - reward) * here)
        return carry, reward

    def rewards(key: Key, task: dict[str, Array]) -> Array:
        k_reset, key = jax.random.split(key)
        _, state = environment.reset(k_reset, task)
        zeros = jnp.zeros((actions.num,))
        keys = jax.random.split(key, environment.horizon)
        inputs = (keys, jnp.arange(environment.horizon))
        step = lambda carry, given: pull(task, carry, given)
        return jax.lax.scan(step, (state, zeros, zeros), inputs)[1]

    return rewards
