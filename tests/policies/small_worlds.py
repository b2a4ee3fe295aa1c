"""Environments that are small enough to be worked out by hand or enumerated."""

import jax
import jax.numpy as jnp

from metalearn.environments import Continuous, Discrete, Environment

NEVER, NOW = jnp.zeros((), bool), jnp.ones((), bool)


def bandit():
    """One pull of two arms; a task is their rewards `[2]`."""

    def step(key, state, action, task):
        del key
        return jnp.ones((1,)), state, task[action], NEVER, NOW, {}

    return Environment(
        name="bandit",
        task=lambda key: jax.random.normal(key, (2,)),
        reset=lambda key, task: (jnp.ones((1,)), jnp.zeros((), jnp.int32)),
        step=step,
        observation_size=1,
        actions=Discrete(2),
        horizon=1,
    )


def chain():
    """Two steps among two states; the action is the next state, the task rewards [2, 2]."""

    def step(key, state, action, task):
        del key
        place, time = state
        reward, time = task[place, action], time + 1
        seen = jax.nn.one_hot(action, 2)
        return seen, (action, time), reward, NEVER, time == 2, {"place": place}

    return Environment(
        name="chain",
        task=lambda key: jax.random.normal(key, (2, 2)),
        reset=lambda key, task: (
            jax.nn.one_hot(0, 2),
            (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
        ),
        step=step,
        observation_size=2,
        actions=Discrete(2),
        horizon=2,
    )


def countdown(actions=None, terminates=True):
    """Ends after as many steps as the task says, at most 5, and is NaN beyond.

    Step t has the reward t + 1 and leads to the observation [t + 1, task]. The state holds
    a key, which a rollout has to keep like any other part.
    """

    def step(key, state, action, task):
        del key, action
        time, held = state
        time = time + 1
        beyond = jnp.where(time > task, jnp.nan, 0.0)
        reward = time.astype(jnp.float32) + beyond
        seen = jnp.stack([time, task]).astype(jnp.float32) + beyond
        ended = time == task
        flags = (ended, NEVER) if terminates else (NEVER, ended)
        return seen, (time, jax.random.fold_in(held, 1)), reward, *flags, {"time": time}

    return Environment(
        name="countdown",
        task=lambda key: jax.random.randint(key, (), 1, 6),
        reset=lambda key, task: (
            jnp.stack([0, task]).astype(jnp.float32),
            (jnp.zeros((), jnp.int32), key),
        ),
        step=step,
        observation_size=2,
        actions=Continuous(2, 1.0) if actions is None else actions,
        horizon=5,
    )
