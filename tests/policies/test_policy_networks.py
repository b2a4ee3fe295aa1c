"""Policies: their networks, their starts and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_worlds

from metalearn import policies
from metalearn.environments import Continuous, Discrete
from metalearn.policies import policy as policy_file

CONTINUOUS = small_worlds.countdown(Continuous(2, 1.0))
DISCRETE = small_worlds.countdown(Discrete(3))


@functools.cache
def start(environment, widths=(5, 4)):
    policy = policies.policy_for(environment, widths)
    return policy, policy.init(jax.random.key(0), environment)


def test_the_network_is_the_one_that_numpy_computes():
    policy, params = start(CONTINUOUS)
    x = np.random.default_rng(0).normal(size=(3, 7, 2)).astype(np.float32)
    params = {name: leaf + 0.1 for name, leaf in params.items()}
    law = jax.jit(policy.apply)(params, jnp.asarray(x))
    p = {name: np.asarray(leaf) for name, leaf in params.items()}
    y = np.tanh(x @ p["hidden_0_kernel"] + p["hidden_0_bias"])
    y = np.tanh(y @ p["hidden_1_kernel"] + p["hidden_1_bias"])
    y = y @ p["head_kernel"] + p["head_bias"]
    np.testing.assert_allclose(law.mean, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(law.log_std, np.broadcast_to(p["log_std"], (3, 7, 2)))


def test_one_observation_and_many_give_the_same():
    policy, params = start(DISCRETE)
    x = jnp.arange(6.0).reshape((3, 2))
    together = policy.apply(params, x).logits
    assert together.shape == (3, 3)
    for row, wanted in zip(x, together):
        np.testing.assert_allclose(policy.apply(params, row).logits, wanted, rtol=1e-4)


@pytest.mark.parametrize("environment", [CONTINUOUS, DISCRETE], ids=["normal", "softmax"])
def test_early_actions_hardly_depend_on_what_is_seen(environment):
    policy, params = start(environment, (64, 64))
    law = policy.apply(params, jax.random.normal(jax.random.key(1), (50, 2)))
    values = law.mean if environment is CONTINUOUS else law.logits
    assert 0 < np.abs(values).max() < 0.05
    shares = np.abs(params["hidden_0_kernel"]).max()
    assert 0.25 < shares <= np.sqrt(6 / 66)  # Glorot's bound for 2 inputs and 64 outputs


def test_the_spread_has_a_floor_without_derivative():
    policy = policies.gaussian_policy((), log_std=-1.0, least_log_std=-2.0)
    params = policy.init(jax.random.key(0), CONTINUOUS)
    np.testing.assert_array_equal(params["log_std"], [-1.0, -1.0])

    def spread(log_std):
        return policy.apply({**params, "log_std": log_std}, jnp.zeros(2)).log_std.sum()

    value, slope = jax.value_and_grad(spread)(jnp.array([-1.5, -7.0]))
    assert value == -3.5
    np.testing.assert_array_equal(slope, [1.0, 0.0])


def test_equal_settings_give_the_same_policy():
    assert policies.gaussian_policy([8]) is policies.gaussian_policy((8,))
    assert policies.gaussian_policy((8,)) is not policies.gaussian_policy((9,))


def test_params_are_flat_and_tell_the_head():
    names = {"hidden_0_kernel", "hidden_0_bias", "head_kernel", "head_bias"}
    assert set(start(DISCRETE, (4,))[1]) == names
    assert set(start(CONTINUOUS, (4,))[1]) == names | {"log_std"}


def of_neither():
    return small_worlds.countdown()._replace(actions=3)


MISTAKES = {
    "widths is 64": lambda: policies.gaussian_policy(64),
    "a width of widths is 0": lambda: policies.categorical_policy((0,)),
    "a width of widths is 3.0": lambda: policies.categorical_policy((3.0,)),
    "activation is 'tanh'": lambda: policies.gaussian_policy(activation="tanh"),
    "log_std is nan": lambda: policies.gaussian_policy(log_std=float("nan")),
    "log_std is -20": lambda: policies.gaussian_policy(log_std=-20),
    "expected Continuous. Take categorical_policy": lambda: policies.gaussian_policy().init(
        jax.random.key(0), DISCRETE
    ),
    "expected Discrete. Take gaussian_policy": lambda: policies.categorical_policy().init(
        jax.random.key(0), CONTINUOUS
    ),
    "environment is a str": lambda: policies.policy_for("navigation"),
    "are a int; expected Discrete or Continuous": lambda: policies.policy_for(of_neither()),
    "key is the number 0": lambda: policies.categorical_policy().init(0, DISCRETE),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message):
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message]()


def test_the_head_is_scaled_once():
    sizes = policy_file._layers(jax.random.key(0), (100, 100))
    bound = policy_file.HEAD_SCALE * np.sqrt(6 / 200)
    assert 0.9 * bound < np.abs(sizes["head_kernel"]).max() <= bound * 1.0001
