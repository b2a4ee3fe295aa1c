"""Bandits: arms whose mean rewards are the task."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds
from metalearn.core.types import Array, Key
from metalearn.environments.environment import Discrete, Environment, Info

BanditTask = dict[str, Array]


def bernoulli_bandit(arms: int = 5, pulls: int = 10) -> Environment:
    """Bandit of Bernoulli arms, whose probabilities are uniform between 0 and 1.

    This is the bandit of Y. Duan, J. Schulman, X. Chen, P. Bartlett, I. Sutskever, P.
    Abbeel, RL2: Fast Reinforcement Learning via Slow Reinforcement Learning, 2016, section
    3.1.

    A task is `{"means": [K]}`, the probabilities. An episode is `pulls` steps, and the
    reward is 0 or 1. The observation is the constant 1, float32 `[1]`: a bandit has no
    state, and all that a learner may know are the arms and rewards of before. A share of
    pulls done would tie a policy to the number of pulls. `info["regret"]` is the mean of
    the best arm less the mean of the arm that was pulled.

    Args:
      arms: Number K of arms, 2 or more. Actions beyond them are clipped.
      pulls: Number of steps of an episode, after which it is truncated.

    Returns:
      An environment.

    Raises:
      ValueError: `arms` is no integer of 2 or more, or `pulls` none of 1 or more.

    Example:
      >>> from metalearn.environments import bernoulli_bandit
      >>> bandit = bernoulli_bandit(arms=3, pulls=10)
      >>> bandit.task(jax.random.key(0))["means"].shape
      (3,)
    """
    arms, pulls = kinds.count("arms", arms, least=2), kinds.count("pulls", pulls)
    return _bernoulli(arms, pulls)


def gaussian_bandit(arms: int = 5, pulls: int = 10, spread: float = 1.0) -> Environment:
    """Bandit of Gaussian arms, whose means are N(0, 1).

    A task is `{"means": [K]}`. All else is as in `bernoulli_bandit`, but for the reward,
    which is the mean of the arm with Gaussian noise.

    Args:
      arms: Number K of arms, 2 or more. Actions beyond them are clipped.
      pulls: Number of steps of an episode, after which it is truncated.
      spread: Standard deviation of a reward around its mean, 0 or more.

    Returns:
      An environment.

    Raises:
      ValueError: `arms` is no integer of 2 or more, `pulls` none of 1 or more, or `spread`
        no number of 0 or more.

    Example:
      >>> from metalearn.environments import gaussian_bandit
      >>> gaussian_bandit(arms=3, pulls=10).horizon
      10
    """
    arms, pulls = kinds.count("arms", arms, least=2), kinds.count("pulls", pulls)
    checks.number("spread", spread)
    return _gaussian(arms, pulls, float(spread))


# Equal settings are the same functions, to share compilations.
@functools.lru_cache
def _bernoulli(arms: int, pulls: int) -> Environment:
    def task(key: Key) -> BanditTask:
        return {"means": jax.random.uniform(key, (arms,))}

    def pay(key: Key, mean: Array) -> Array:
        return jax.random.bernoulli(key, mean).astype(jnp.float32)

    return _bandit(f"bernoulli-bandit-{arms}arms-{pulls}pulls", task, pay, arms, pulls)


@functools.lru_cache
def _gaussian(arms: int, pulls: int, spread: float) -> Environment:
    def task(key: Key) -> BanditTask:
        return {"means": jax.random.normal(key, (arms,))}

    def pay(key: Key, mean: Array) -> Array:
        return mean + spread * jax.random.normal(key)

    name = f"gaussian-bandit-{arms}arms-{pulls}pulls-spread{spread:g}"
    return _bandit(name, task, pay, arms, pulls)


def _bandit(name: str, task, pay, arms: int, pulls: int) -> Environment:
    """A bandit whose rewards are `pay(key, mean of the arm)`; its state counts pulls."""

    def reset(key: Key, task: BanditTask) -> tuple[Array, Array]:
        del key, task
        return jnp.ones((1,)), jnp.int32(0)

    def step(key: Key, state: Array, action: Array, task: BanditTask):
        means = task["means"]
        mean = means[jnp.clip(action, 0, arms - 1)]
        steps = state + 1
        info: Info = {"regret": jnp.max(means) - mean}
        truncated = steps >= pulls
        return jnp.ones((1,)), steps, pay(key, mean), jnp.bool_(False), truncated, info

    return Environment(name, task, reset, step, 1, Discrete(arms), pulls)
