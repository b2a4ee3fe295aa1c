"""Returns, advantages and baselines: by hand, by identities and by loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn import policies

RNG = np.random.default_rng(0)
LENGTHS = np.array([6, 4, 1, 5])
MASK = np.arange(6)[None] < LENGTHS[:, None]
REWARDS, VALUES = RNG.normal(size=(2, 4, 6)).astype(np.float32)
LAST = RNG.normal(size=4).astype(np.float32)
TERMINATED = np.array([False, True, False, False])
OBSERVATIONS = RNG.normal(size=(4, 6, 2)).astype(np.float32)
AFTER = RNG.normal(size=(4, 2)).astype(np.float32)


def arrays(*given):
    return [jnp.asarray(array) for array in given]


@functools.cache
def compiled(discount, trace):
    return jax.jit(lambda *given: policies.gae(*given, discount, trace))


def gae(discount, trace, rewards=REWARDS, values=VALUES, terminated=TERMINATED):
    return compiled(discount, trace)(*arrays(rewards, values, LAST, MASK, terminated))


def by_loops(discount, trace):
    """Schulman's sums, written out for each step of each episode."""
    found = np.zeros((4, 6))
    for e, length in enumerate(LENGTHS):
        values = [*VALUES[e, :length], 0.0 if TERMINATED[e] else LAST[e]]
        for t in range(length):
            for k in range(t, length):
                error = REWARDS[e, k] + discount * values[k + 1] - values[k]
                found[e, t] += (discount * trace) ** (k - t) * error
    return found


def test_returns_are_those_worked_out_by_hand():
    rewards = jnp.array([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 9.0, 9.0]])
    mask = jnp.array([[True] * 4, [True, True, False, False]])
    found = policies.discounted_returns(rewards, mask, 0.5)
    np.testing.assert_array_equal(found, [[4, 6, 8, 8], [2, 2, 0, 0]])
    found = policies.discounted_returns(rewards, mask, 1)
    np.testing.assert_array_equal(found, [[15, 14, 12, 8], [3, 2, 0, 0]])
    one = policies.discounted_returns(rewards[0], mask[0], 0.0)
    np.testing.assert_array_equal(one, rewards[0])


def test_advantages_are_those_worked_out_by_hand():
    """Errors 1 + 2/2 - 4 = -2 and 2 + 6/2 - 2 = 3; without the last value 2 - 2 = 0."""
    rewards, values = jnp.array([[1.0, 2.0, 7.0]] * 2), jnp.array([[4.0, 2.0, 5.0]] * 2)
    mask = jnp.array([[True, True, False]] * 2)
    terminated, last = jnp.array([False, True]), jnp.array([6.0, 6.0])
    found = policies.gae(rewards, values, last, mask, terminated, 0.5, 0.5)
    np.testing.assert_array_equal(found, [[-2 + 0.25 * 3, 3, 0], [-2, 0, 0]])


@pytest.mark.parametrize(("discount", "trace"), [(0.9, 0.7), (1, 0.5)])
def test_advantages_are_the_sums_of_loops(discount, trace):
    np.testing.assert_allclose(gae(discount, trace), by_loops(discount, trace), atol=1e-5)


def test_a_trace_of_one_gives_returns_less_values():
    to_go = policies.discounted_returns(*arrays(REWARDS, MASK), 0.9)
    left = LENGTHS[:, None] - np.arange(6)[None]
    beyond = 0.9**left * np.where(TERMINATED, 0, LAST)[:, None]
    wanted = np.where(MASK, to_go + beyond - VALUES, 0)
    np.testing.assert_allclose(gae(0.9, 1), wanted, atol=1e-5)


def test_a_trace_of_zero_gives_the_errors_of_one_step():
    following = np.concatenate([VALUES[:, 1:], LAST[:, None]], axis=1)
    ends = LENGTHS - 1
    following[np.arange(4), ends] = np.where(TERMINATED, 0, LAST)
    wanted = np.where(MASK, REWARDS + 0.9 * following - VALUES, 0)
    np.testing.assert_allclose(gae(0.9, 0), wanted, atol=1e-5)


def test_invalid_steps_count_nowhere():
    spoiled = [np.where(MASK, array, np.nan) for array in (REWARDS, VALUES)]
    np.testing.assert_array_equal(gae(0.9, 0.7, *spoiled), gae(0.9, 0.7))


def features(observations, times):
    t = times[..., None] / 100
    return np.concatenate([observations, observations**2, t, t**2, t**3, t**0], -1)


@functools.cache
def fitted():
    return jax.jit(policies.linear_baseline)


def test_the_baseline_is_ridge_regression_of_scaled_features():
    values, last = fitted()(*arrays(OBSERVATIONS, REWARDS, MASK, AFTER))
    times = np.broadcast_to(np.arange(6), (4, 6))
    every = features(OBSERVATIONS.astype(np.float64), times)
    rows, num = every[MASK], MASK.sum()
    scale = np.sqrt((rows**2).mean(0))
    rows = rows / scale
    square = rows.T @ rows / num + 1e-5 * np.eye(8)
    weights = np.linalg.solve(square, rows.T @ REWARDS[MASK] / num) / scale
    np.testing.assert_allclose(values, np.where(MASK, every @ weights, 0), atol=2e-3)
    after = features(AFTER.astype(np.float64), LENGTHS)
    np.testing.assert_allclose(last, after @ weights, atol=5e-3)


def test_returns_that_are_linear_in_the_features_are_fitted():
    weights = np.array([1.0, -2.0, 0.5, 0.3, 100.0, 0.0, 0.0, -3.0], np.float32)
    times = np.broadcast_to(np.arange(6), (4, 6))
    returns = features(OBSERVATIONS, times) @ weights
    values, last = fitted()(*arrays(OBSERVATIONS, returns, MASK, AFTER))
    np.testing.assert_allclose(values, np.where(MASK, returns, 0), atol=0.02)
    np.testing.assert_allclose(last, features(AFTER, LENGTHS) @ weights, atol=0.05)


def test_invalid_steps_do_not_enter_the_baseline():
    spoiled = np.where(MASK[..., None], OBSERVATIONS, 7), np.where(MASK, REWARDS, 7)
    values, _ = fitted()(*arrays(*spoiled, MASK, AFTER))
    wanted, _ = fitted()(*arrays(OBSERVATIONS, REWARDS, MASK, AFTER))
    np.testing.assert_array_equal(values, wanted)


@pytest.mark.parametrize("observations", [np.zeros((4, 6, 2)), np.full((4, 6, 2), 3e3)])
def test_features_that_say_nothing_are_no_trouble(observations):
    given = arrays(observations.astype(np.float32), REWARDS, MASK, AFTER)
    values, last = fitted()(*given)
    assert np.isfinite(values).all() and np.isfinite(last).all()
    residual = np.where(MASK, REWARDS - values, 0)
    assert (residual**2).sum() < (REWARDS[MASK] ** 2).sum()


def test_the_baseline_has_no_derivative():
    def total(observations, returns):
        values, last = fitted()(observations, returns, *arrays(MASK, AFTER))
        return values.sum() + last.sum()

    slopes = jax.grad(total, (0, 1))(*arrays(OBSERVATIONS, REWARDS))
    assert all((slope == 0).all() for slope in slopes)


def test_normalised_advantages_have_mean_zero_and_deviation_one():
    found = np.asarray(policies.normalised(*arrays(5 * REWARDS + 3, MASK)))
    kept = REWARDS[MASK]
    np.testing.assert_allclose(found[MASK], (kept - kept.mean()) / kept.std(), atol=1e-5)
    np.testing.assert_array_equal(found[~MASK], 0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_equal_advantages_become_zero_with_finite_derivatives(value):
    run = lambda a: policies.normalised(a, jnp.asarray(MASK))
    found, slope = run(jnp.full((4, 6), value)), jax.jacrev(run)(jnp.full((4, 6), value))
    np.testing.assert_array_equal(found, 0)
    assert np.isfinite(slope).all()
    assert (policies.normalised(jnp.ones((1, 2)), jnp.zeros((1, 2), bool)) == 0).all()


ONES, ALL = jnp.ones((2, 3)), jnp.ones((2, 3), bool)
MISTAKES = {
    "discount is 1.5; expected a number from 0 to 1": lambda: policies.discounted_returns(
        ONES, ALL, 1.5
    ),
    "discount is -0.1": lambda: policies.discounted_returns(ONES, ALL, -0.1),
    "mask has the dtype float32": lambda: policies.discounted_returns(ONES, ONES, 1.0),
    "rewards has shape \\(2, 2\\)": lambda: policies.discounted_returns(
        ONES[:, :2], ALL, 1.0
    ),
    "trace is 2": lambda: policies.gae(ONES, ONES, ONES[:, 0], ALL, ALL[:, 0], 1, 2),
    "last_value has shape \\(2, 3\\)": lambda: policies.gae(
        ONES, ONES, ONES, ALL, ALL[:, 0], 1, 1
    ),
    "terminated has the dtype float32": lambda: policies.gae(
        ONES, ONES, ONES[:, 0], ALL, ONES[:, 0], 1, 1
    ),
    "ridge is 0": lambda: policies.linear_baseline(
        ONES[..., None], ONES, ALL, ONES[:, :1], ridge=0
    ),
    "observations have shape \\(2, 3\\)": lambda: policies.linear_baseline(
        ONES, ONES, ALL, ONES[:, :1]
    ),
    "last_observation has shape \\(2, 2\\)": lambda: policies.linear_baseline(
        ONES[..., None], ONES, ALL, ONES[:, :2]
    ),
    "advantages has shape \\(3,\\)": lambda: policies.normalised(ONES[0], ALL),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message):
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message]()
