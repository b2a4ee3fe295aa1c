"""Random tabular processes against their exact values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn import environments as env

STATES, ACTIONS, HORIZON = 3, 2, 4


@functools.cache
def _task():
    return env.tabular_mdp(STATES, ACTIONS, HORIZON).task(jax.random.key(5))


def test_transitions_are_flat_dirichlet_and_mean_rewards_normal_around_one():
    keys = jax.random.split(jax.random.key(0), 500)
    tasks = jax.vmap(env.tabular_mdp(4, 3).task)(keys)
    rows = np.asarray(tasks["transitions"]).reshape(-1, 4)
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-6)
    # Entries of the flat Dirichlet of 4 are Beta(1, 3), of mean 1/4 and variance 3/80.
    np.testing.assert_allclose(rows.mean(0), 0.25, atol=0.01)
    np.testing.assert_allclose(rows.var(0), 3 / 80, atol=0.003)
    rewards = np.asarray(tasks["rewards"])
    assert rewards.shape == (500, 4, 3)
    assert abs(rewards.mean() - 1) < 0.05 and abs(rewards.std() - 1) < 0.04


def test_an_episode_starts_in_state_zero_and_shows_the_state():
    first, state = env.tabular_mdp(STATES, ACTIONS).reset(jax.random.key(0), _task())
    np.testing.assert_array_equal(first, [1, 0, 0])
    assert int(state["state"]) == 0


def test_steps_follow_the_tables():
    task, mdp = _task(), env.tabular_mdp(STATES, ACTIONS, HORIZON, noise=0.5)
    state = {"state": jnp.int32(2), "steps": jnp.int32(0)}
    keys = jax.random.split(jax.random.key(1), 8000)
    step = lambda key: mdp.step(key, state, jnp.int32(1), task)
    seen, after, reward, _, _, info = jax.jit(jax.vmap(step))(keys)
    share = np.bincount(np.asarray(after["state"]), minlength=STATES) / len(keys)
    np.testing.assert_allclose(share, task["transitions"][2, 1], atol=0.02)
    np.testing.assert_array_equal(np.asarray(seen).argmax(-1), after["state"])
    assert abs(float(reward.mean()) - float(task["rewards"][2, 1])) < 0.025
    assert abs(float(reward.std()) - 0.5) < 0.02
    np.testing.assert_allclose(info["mean"], float(task["rewards"][2, 1]), rtol=1e-6)
    # What is left of the reward does not tell the next state.
    noise = np.asarray(reward) - float(task["rewards"][2, 1])
    assert abs(np.corrcoef(noise, np.asarray(after["state"]))[0, 1]) < 0.04


def test_a_transition_of_chance_zero_never_happens():
    task = dict(_task(), transitions=jnp.zeros((3, 2, 3)).at[:, :, 1].set(1.0))
    mdp, keys = env.tabular_mdp(STATES, ACTIONS), jax.random.split(jax.random.key(2), 500)
    state = {"state": jnp.int32(0), "steps": jnp.int32(0)}
    step = lambda key: mdp.step(key, state, jnp.int32(0), task)[1]["state"]
    assert set(np.asarray(jax.vmap(step)(keys)).tolist()) == {1}


def _plain_value(task, choose, horizon):
    """The recursion with loops in double precision."""
    p = np.asarray(task["transitions"], float)
    r = np.asarray(task["rewards"], float)
    value = np.zeros(STATES)
    for _ in range(horizon):
        gains = np.array(
            [
                [r[s, a] + sum(p[s, a] * value) for a in range(ACTIONS)]
                for s in range(STATES)
            ]
        )
        value = np.array([choose(s, gains[s]) for s in range(STATES)])
    return value


def test_values_are_those_of_plain_loops():
    chances = np.array([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]], np.float32)
    plain = _plain_value(_task(), lambda s, gains: chances[s] @ gains, 5)
    found = env.policy_value(_task(), jnp.asarray(chances), 5)
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    plain = _plain_value(_task(), lambda s, gains: gains.max(), 5)
    np.testing.assert_allclose(env.optimal_value(_task(), 5), plain, rtol=1e-5)


def test_values_of_a_process_by_hand():
    """Action 0 stays and pays 1, action 1 goes to state 1, which pays 3 for ever."""
    stay, go = [1.0, 0.0], [0.0, 1.0]
    task = {
        "transitions": jnp.array([[stay, go], [go, go]]),
        "rewards": jnp.array([[1.0, 0.0], [3.0, 3.0]]),
    }
    np.testing.assert_allclose(env.optimal_value(task, 1), [1, 3])
    np.testing.assert_allclose(env.optimal_value(task, 3), [6, 9])
    # Half of the times: 0.5 + (0.5 + 0.5 * 0.5 + ...)
    half = jnp.full((2, 2), 0.5)
    np.testing.assert_allclose(env.policy_value(task, half, 2), [0.5 + 0.25 + 1.5, 6])


def test_episodes_return_on_average_what_the_value_says():
    task, mdp = _task(), env.tabular_mdp(STATES, ACTIONS, HORIZON)
    chances = jnp.array([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5]])

    def episode(key):
        def step(state, key):
            k_act, k_step = jax.random.split(key)
            here = chances[state["state"]]
            action = jax.random.categorical(k_act, jnp.log(here))
            _, state, reward, *_ = mdp.step(k_step, state, action, task)
            return state, reward

        _, state = mdp.reset(key, task)
        return jnp.sum(jax.lax.scan(step, state, jax.random.split(key, HORIZON))[1])

    returns = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(3), 8000))
    exact = float(env.policy_value(task, chances, HORIZON)[0])
    assert abs(float(returns.mean()) - exact) < 0.1


def test_values_refuse_other_shapes_and_no_steps():
    with pytest.raises(ValueError, match=r"probabilities have the shape \(2, 3\)"):
        env.policy_value(_task(), jnp.ones((2, 3)), 2)
    with pytest.raises(ValueError, match="horizon is 0; expected an integer of 1"):
        env.optimal_value(_task(), 0)
