"""Random tabular decision processes, with exact values of policies."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds
from metalearn.core.types import Array, Key
from metalearn.environments.environment import Discrete, Environment, Info

TabularTask = dict[str, Array]


def tabular_mdp(
    states: int = 10, actions: int = 5, horizon: int = 10, noise: float = 1.0
) -> Environment:
    """Random decision processes with a table of transitions and one of mean rewards.

    These are the processes of Y. Duan, J. Schulman, X. Chen, P. Bartlett, I. Sutskever, P.
    Abbeel, RL2: Fast Reinforcement Learning via Slow Reinforcement Learning, 2016, section
    3.2. A task is `{"transitions": [S, A, S], "rewards": [S, A]}`. The rows of the
    transitions are drawn from the flat Dirichlet distribution, and the mean rewards from
    N(1, 1). A reward is the mean of its state and action with Gaussian noise. Every episode
    starts in state 0. The observation is the state as a one-hot vector, float32 `[S]`.
    `info["mean"]` is the reward without its noise.

    Args:
      states: Number S of states, 1 or more.
      actions: Number A of actions, 1 or more. Actions beyond them are clipped.
      horizon: Number of steps of an episode, after which it is truncated.
      noise: Standard deviation of the noise of a reward, 0 or more.

    Returns:
      An environment.

    Raises:
      ValueError: a count is no integer of 1 or more, or `noise` no number of 0 or more.

    Example:
      >>> from metalearn.environments import tabular_mdp
      >>> tabular_mdp(states=4, actions=2).task(jax.random.key(0))["transitions"].shape
      (4, 2, 4)
    """
    states, actions = kinds.count("states", states), kinds.count("actions", actions)
    horizon = kinds.count("horizon", horizon)
    checks.number("noise", noise)
    return _tabular(states, actions, horizon, float(noise))


# Equal settings are the same functions, to share compilations.
@functools.lru_cache
def _tabular(states: int, actions: int, horizon: int, noise: float) -> Environment:
    def task(key: Key) -> TabularTask:
        k_transitions, k_rewards = jax.random.split(key)
        weights = jax.random.exponential(k_transitions, (states, actions, states))
        return {
            "transitions": weights / jnp.sum(weights, -1, keepdims=True),
            "rewards": 1.0 + jax.random.normal(k_rewards, (states, actions)),
        }

    def seen(state: Array) -> Array:
        return jax.nn.one_hot(state, states, dtype=jnp.float32)

    def reset(key: Key, task: TabularTask):
        del key, task
        start = jnp.int32(0)
        return seen(start), {"state": start, "steps": jnp.int32(0)}

    def step(key: Key, state: dict[str, Array], action: Array, task: TabularTask):
        k_reward, k_next = jax.random.split(key)
        action = jnp.clip(action, 0, actions - 1)
        mean = task["rewards"][state["state"], action]
        reward = mean + noise * jax.random.normal(k_reward)
        upto = jnp.cumsum(task["transitions"][state["state"], action])
        # The sum of all may be a little below 1, and the draw above it.
        after = jnp.sum(jax.random.uniform(k_next) >= upto[:-1], dtype=jnp.int32)
        steps = state["steps"] + 1
        info: Info = {"mean": mean}
        return (
            seen(after),
            {"state": after, "steps": steps},
            reward,
            jnp.bool_(False),
            steps >= horizon,
            info,
        )

    name = f"tabular-{states}states-{actions}actions-{horizon}steps"
    if noise != 1.0:
        name += f"-noise{noise:g}"
    return Environment(name, task, reset, step, states, Discrete(actions), horizon)


def policy_value(task: TabularTask, probabilities: Array, horizon: int) -> Array:
    """Expected sum of rewards of a policy, exact, by backward recursion.

    Args:
      task: Tables `{"transitions": [S, A, S], "rewards": [S, A]}`.
      probabilities: Probabilities of the actions in each state, `[S, A]`.
      horizon: Number of steps.

    Returns:
      The expectation from each state, `[S]`. Episodes of `tabular_mdp` start in state 0.

    Raises:
      ValueError: `horizon` is no integer of 1 or more, or shapes do not fit.

    Example:
      >>> from metalearn.environments import policy_value
      >>> task = {"transitions": jnp.ones((1, 2, 1)), "rewards": jnp.array([[0.0, 2.0]])}
      >>> float(policy_value(task, jnp.array([[0.5, 0.5]]), horizon=3)[0])
      3.0
    """
    expected = task["rewards"].shape
    if jnp.shape(probabilities) != expected:
        raise ValueError(
            f"probabilities have the shape {jnp.shape(probabilities)}; expected "
            f"{expected}, those of the actions in each state."
        )
    return _backward(task, lambda gains: jnp.sum(probabilities * gains, -1), horizon)


def optimal_value(task: TabularTask, horizon: int) -> Array:
    """Expected sum of rewards of the best policy that knows the task.

    The best policy may act otherwise in the same state as the end comes nearer.

    Args:
      task: Tables `{"transitions": [S, A, S], "rewards": [S, A]}`.
      horizon: Number of steps.

    Returns:
      The expectation from each state, `[S]`. Episodes of `tabular_mdp` start in state 0.

    Raises:
      ValueError: `horizon` is no integer of 1 or more.

    Example:
      >>> from metalearn.environments import optimal_value
      >>> task = {"transitions": jnp.ones((1, 2, 1)), "rewards": jnp.array([[0.0, 2.0]])}
      >>> float(optimal_value(task, horizon=3)[0])
      6.0
    """
    return _backward(task, lambda gains: jnp.max(gains, -1), horizon)


def _backward(task: TabularTask, choose, horizon: int) -> Array:
    """Values `[S]` with `horizon` steps to go; `choose` makes one of values `[S, A]`."""
    horizon = kinds.count("horizon", horizon)

    def sooner(later: Array, _: None):
        # Accelerators would round the factors of a product to 10 bits otherwise.
        after = jnp.einsum(
            "sat,t->sa", task["transitions"], later, precision=jax.lax.Precision.HIGHEST
        )
        return choose(task["rewards"] + after), None

    start = jnp.zeros(task["rewards"].shape[:1])
    return jax.lax.scan(sooner, start, None, length=horizon)[0]
