"""Navigation in the plane: moves, rewards and goals by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn import environments as env

KEY = jax.random.key(0)


def _walk(environment, goal, moves, start=None):
    """Observations, rewards, flags and distances of a sequence of actions."""
    task = {"goal": jnp.array(goal)}
    _, state = environment.reset(KEY, task)
    if start is not None:
        state = state._replace(position=jnp.array(start))
    step = jax.jit(environment.step)
    rows = []
    for move in moves:
        seen, state, reward, terminated, truncated, info = step(
            KEY, state, jnp.array(move), task
        )
        row = (*map(float, seen), float(reward), bool(terminated), bool(truncated))
        rows.append((*row, float(info["distance"])))
    return list(zip(*rows))


def test_navigation_by_hand():
    goal = [0.3, 0.4]
    x, y, reward, done, over, distance = _walk(
        env.navigation(horizon=3), goal, [[0.05, 0.0], [5.0, -0.02], [-0.3, 0.08]]
    )
    np.testing.assert_allclose(x, [0.05, 0.15, 0.05], atol=1e-6)
    np.testing.assert_allclose(y, [0, -0.02, 0.06], atol=1e-6)
    away = [math.hypot(a - 0.3, b - 0.4) for a, b in zip(x, y)]
    np.testing.assert_allclose(distance, away, rtol=1e-5)
    np.testing.assert_allclose(reward, [-d for d in away], rtol=1e-5)
    assert done == (False, False, False) and over == (False, False, True)


@pytest.mark.parametrize(
    ("end", "ends"),
    [
        ((0.009, 0.009), True),
        ((-0.009, 0.0), True),
        ((0.011, 0), False),
        ((0, 0.011), False),
    ],
)
def test_navigation_is_terminated_where_both_coordinates_are_near(end, ends):
    move = [0.05 + end[0], 0.05 + end[1]]
    _, _, reward, done, _, _ = _walk(env.navigation(), [0.05, 0.05], [move])
    assert done == (ends,) and -0.02 < reward[0] < 0


def test_goals_of_navigation_fill_the_square():
    keys = jax.random.split(KEY, 3000)
    goals = np.asarray(jax.vmap(env.navigation().task)(keys)["goal"])
    assert -0.5 <= goals.min() < -0.49 and 0.49 < goals.max() <= 0.5
    assert np.abs(goals.mean(0)).max() < 0.03
    assert abs(np.corrcoef(goals.T)[0, 1]) < 0.06


def test_sparse_rewards_are_progress_in_the_quadrant_of_the_goal():
    sparse = env.corner_point()
    # Within the radius, then out of it, on, back, and to the quadrant of another corner.
    moves = [[0.2, 0.2], [0.2, 0.2], [0.2, -0.1], [-0.2, 0.0], [0.2, -0.2], [0.2, -0.11]]
    x, y, reward, done, _, distance = _walk(sparse, [2.0, 2.0], moves, [0.0, 0.0])
    np.testing.assert_allclose(x, [0.2, 0.4, 0.6, 0.4, 0.6, 0.8], atol=1e-6)
    np.testing.assert_allclose(y, [0.2, 0.4, 0.3, 0.3, 0.1, -0.01], atol=1e-6)
    away = [math.hypot(2 - a, 2 - b) for a, b in zip(x, y)]
    np.testing.assert_allclose(distance, away, rtol=1e-5)
    progress = -np.diff(away)
    assert reward[0] == 0 and reward[5] == 0 and progress[4] > 0 > progress[2]
    np.testing.assert_allclose(reward[1:5], progress[:4], atol=1e-6)
    assert not any(done)


@pytest.mark.parametrize(("y", "paid"), [(0.28, False), (0.32, True)])
def test_the_radius_without_reward_is_a_sum_of_absolute_coordinates(y, paid):
    """(-0.2, 0.32) is nearer to the origin than 0.5, but its coordinates sum up to more."""
    start = [-0.2, y - 0.1]
    reward = _walk(env.corner_point(), [-2.0, 2.0], [[0.0, 0.1]], start)[2]
    assert (reward[0] > 0.05) if paid else reward == (0.0,)


def test_sparse_rewards_of_the_other_corners_are_zero():
    for goal in ([2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]):
        reward = _walk(env.corner_point(), goal, [[0.2, 0.2]] * 3, [0.4, 0.4])[2]
        assert reward == (0.0, 0.0, 0.0)


def test_dense_rewards_are_distances():
    dense = env.corner_point(sparse=False)
    moves = [[0.2, -0.5], [0.1, 0.1]]
    x, y, reward, _, _, _ = _walk(dense, [2.0, -2.0], moves, [0.0, 0.0])
    np.testing.assert_allclose(y, [-0.2, -0.1], atol=1e-6)
    away = [math.hypot(2 - a, -2 - b) for a, b in zip(x, y)]
    np.testing.assert_allclose(reward, [-d for d in away], rtol=1e-5)


def test_corners_are_drawn_alike_and_starts_near_the_origin():
    keys = jax.random.split(KEY, 2000)
    corner = env.corner_point()
    tasks = jax.vmap(corner.task)(keys)
    goals, counts = np.unique(np.asarray(tasks["goal"]), axis=0, return_counts=True)
    np.testing.assert_array_equal(goals, [[-2, -2], [-2, 2], [2, -2], [2, 2]])
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)
    first, state = jax.vmap(corner.reset)(keys, tasks)
    np.testing.assert_array_equal(first, state.position)
    first = np.asarray(first)
    assert -0.2 <= first.min() < -0.19 and 0.19 < first.max() <= 0.2
    assert np.abs(first.mean(0)).max() < 0.015


@functools.cache
def _chains(low=-0.8, high=0.8):
    chain = env.rotating_goal(5, (low, high), 0.4)
    goals = jax.vmap(chain.tasks)(jax.random.split(KEY, 400))["goal"]
    return np.asarray(goals)[..., 0] + 1j * np.asarray(goals)[..., 1]


def test_goals_of_a_chain_turn_by_one_angle():
    at = _chains()
    np.testing.assert_allclose(np.abs(at), 0.4, rtol=1e-5)
    turns = np.angle(at[:, 1:] / at[:, :-1])
    np.testing.assert_allclose(turns, turns[:, :1].repeat(4, 1), atol=1e-5)
    assert -0.8 <= turns.min() < -0.75 and 0.75 < turns.max() <= 0.8
    assert abs(np.corrcoef(np.angle(at[:, 0]), turns[:, 0])[0, 1]) < 0.15
    assert np.abs(at[:, 0].mean()) < 0.05


def test_an_angle_may_be_fixed():
    at = _chains(0.5, 0.5)
    np.testing.assert_allclose(np.angle(at[:, 1:] / at[:, :-1]), 0.5, atol=1e-5)
