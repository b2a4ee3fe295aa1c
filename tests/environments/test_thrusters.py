"""The point with thrusters, and chains in which they fail."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from metalearn import environments as env

KEY = jax.random.key(0)
E = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], float)


def _plain(gains, goal, actions, dt, drag):
    """Positions, velocities and rewards with plain loops."""
    x, v, rows = np.zeros(2), np.zeros(2), []
    for action in np.clip(actions, -1, 1):
        force = sum(gains[i] * action[i] * E[i] for i in range(4))
        v = v + dt * (force - drag * v)
        x = x + dt * v
        rows.append((*x, *v, -np.hypot(*(x - goal))))
    return np.array(rows)


@functools.cache
def _flown(show_goal):
    point = env.drift_point(6, dt=0.2, drag=0.7, show_goal=show_goal)
    gains, goal = np.array([0.9, 0.4, 0.6, 0.1]), np.array([0.6, -0.8])
    actions = np.random.default_rng(0).uniform(-2, 2, (6, 4))
    task = {"gains": jnp.array(gains), "goal": jnp.array(goal)}
    _, state = point.reset(KEY, task)

    def step(state, action):
        seen, state, reward, _, _, info = point.step(KEY, state, action, task)
        return state, (seen, reward, info["distance"])

    _, rows = jax.jit(lambda s, a: jax.lax.scan(step, s, a))(state, jnp.array(actions))
    return *rows, _plain(gains, goal, actions, 0.2, 0.7), goal


def test_flights_are_those_of_plain_loops():
    seen, reward, distance, plain, _ = _flown(False)
    np.testing.assert_allclose(seen, plain[:, :4], atol=1e-6)
    np.testing.assert_allclose(reward, plain[:, 4], atol=1e-6)
    np.testing.assert_allclose(distance, -plain[:, 4], atol=1e-6)


def test_the_goal_is_shown_as_the_way_to_it():
    seen, reward, _, plain, goal = _flown(True)
    np.testing.assert_allclose(seen[:, :2], goal - plain[:, :2], atol=1e-6)
    np.testing.assert_allclose(seen[:, 2:], plain[:, 2:4], atol=1e-6)
    np.testing.assert_allclose(reward, plain[:, 4], atol=1e-6)


def test_the_first_observation_shows_the_goal_only_if_asked():
    task = {"gains": jnp.ones((4,)), "goal": jnp.array([0.6, -0.8])}
    first, _ = env.drift_point().reset(KEY, task)
    np.testing.assert_allclose(first, [0.6, -0.8, 0, 0])
    first, _ = env.drift_point(show_goal=False).reset(KEY, task)
    np.testing.assert_array_equal(first, [0, 0, 0, 0])


def test_goals_are_on_the_circle_and_gains_uniform():
    tasks = jax.vmap(env.drift_point().task)(jax.random.split(KEY, 2000))
    goals, gains = np.asarray(tasks["goal"]), np.asarray(tasks["gains"])
    np.testing.assert_allclose(np.hypot(*goals.T), 1, rtol=1e-5)
    assert np.abs(goals.mean(0)).max() < 0.05
    assert gains.min() >= 0 and gains.max() <= 1
    np.testing.assert_allclose(gains.mean(0), 0.5, atol=0.03)


def test_pairs_part_all_six_and_use_each_thruster_alike():
    train, test = env.TRAIN_PAIRS, env.TEST_PAIRS
    assert sorted(train + test) == list(itertools.combinations(range(4), 2))
    np.testing.assert_array_equal(np.bincount(np.ravel(train)), [2, 2, 2, 2])
    np.testing.assert_array_equal(np.bincount(np.ravel(test)), [1, 1, 1, 1])


def test_gains_of_one_pair_fall_from_one_to_nothing():
    chain = env.drift_chain(episodes=5, pairs=env.TEST_PAIRS)
    drawn = jax.vmap(chain.tasks)(jax.random.split(KEY, 300))
    gains, goals = np.asarray(drawn["gains"]), np.asarray(drawn["goal"])
    pairs = [tuple(np.flatnonzero(last == 0).tolist()) for last in gains[:, -1]]
    assert set(pairs) == set(env.TEST_PAIRS)
    assert abs(np.mean([pair == (0, 3) for pair in pairs]) - 0.5) < 0.1
    for falls, pair in zip(gains, pairs):
        others = [i for i in range(4) if i not in pair]
        np.testing.assert_allclose(falls[:, pair[0]], [1, 0.75, 0.5, 0.25, 0])
        np.testing.assert_array_equal(falls[:, pair[0]], falls[:, pair[1]])
        np.testing.assert_array_equal(falls[:, others], 1)
    np.testing.assert_array_equal(goals, goals[:, :1].repeat(5, 1))
    assert len(np.unique(goals[:, 0], axis=0)) > 290


def test_a_chain_keeps_the_settings_of_its_environment():
    chain = env.drift_chain(horizon=9, dt=0.2, drag=0.5, show_goal=False)
    assert chain.environment is env.drift_point(9, dt=0.2, drag=0.5, show_goal=False)
    assert chain.length == 7 and "9steps" in chain.name and "hidden" in chain.name
