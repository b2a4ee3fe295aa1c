"""Bandits, their exact optimum, and policies of counts."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn import environments as env


def _optimum(counts, pulls):
    """The recursion as it is written down, with fractions and no symmetry."""
    if not pulls:
        return Fraction(0)
    values = []
    for arm, (s, f) in enumerate(counts):
        after = [list(counts), list(counts)]
        after[0][arm], after[1][arm] = (s, f + 1), (s + 1, f)
        chance = Fraction(s + 1, s + f + 2)
        lost, won = (_optimum(c, pulls - 1) for c in after)
        values.append(chance * (1 + won) + (1 - chance) * lost)
    return max(values)


def test_the_optimum_is_what_is_computed_by_hand():
    assert env.bayes_optimal_value(2, 1) == env.bayes_optimal_value(5, 1) == 0.5
    # A first reward keeps the arm, at 2/3; without one the other is as good as ever.
    hand = 0.5 + 0.5 * 2 / 3 + 0.5 * 1 / 2
    assert env.bayes_optimal_value(2, 2) == pytest.approx(hand, abs=1e-12)
    assert env.bayes_optimal_value(1, 7) == pytest.approx(3.5, abs=1e-12)


@pytest.mark.parametrize(("arms", "pulls"), [(2, 3), (2, 5), (3, 4)])
def test_the_optimum_is_that_of_the_plain_recursion(arms, pulls):
    plain = _optimum([(0, 0)] * arms, pulls)
    assert env.bayes_optimal_value(arms, pulls) == pytest.approx(float(plain), abs=1e-12)


def test_the_optimum_of_too_many_counts_is_refused():
    with pytest.raises(ValueError, match=r"arms is 5 and pulls 40.*Take fewer"):
        env.bayes_optimal_value(5, 40)
    with pytest.raises(ValueError, match="pulls is 0; expected an integer of 1"):
        env.bayes_optimal_value(2, 0)


def _steps(bandit, means, arm, num=4000):
    keys = jax.random.split(jax.random.key(3), num)
    task = {"means": jnp.asarray(means)}
    step = lambda key: bandit.step(key, jnp.int32(0), jnp.int32(arm), task)
    _, _, reward, _, _, info = jax.jit(jax.vmap(step))(keys)
    return np.asarray(reward), np.asarray(info["regret"])


def test_bernoulli_rewards_are_zeros_and_ones_with_the_mean_of_the_arm():
    reward, regret = _steps(env.bernoulli_bandit(3, 2), [0.9, 0.2, 0.5], 1)
    assert set(reward) == {0.0, 1.0} and reward.dtype == np.float32
    assert abs(reward.mean() - 0.2) < 0.025
    np.testing.assert_allclose(regret, 0.7, rtol=1e-6)


def test_gaussian_rewards_have_the_mean_of_the_arm_and_the_spread():
    reward, regret = _steps(env.gaussian_bandit(3, 2, spread=0.5), [0.5, -1.0, 2.0], 1)
    assert abs(reward.mean() + 1.0) < 0.03 and abs(reward.std() - 0.5) < 0.02
    np.testing.assert_allclose(regret, 3.0, rtol=1e-6)


def test_means_are_uniform_and_those_of_gaussian_arms_normal():
    keys = jax.random.split(jax.random.key(0), 4000)
    uniform = np.asarray(jax.vmap(env.bernoulli_bandit(2).task)(keys)["means"])
    assert uniform.min() >= 0 and uniform.max() <= 1
    assert abs(uniform.mean() - 0.5) < 0.015 and abs(uniform.var() - 1 / 12) < 0.004
    normal = np.asarray(jax.vmap(env.gaussian_bandit(2).task)(keys)["means"])
    assert abs(normal.mean()) < 0.04 and abs(normal.var() - 1) < 0.06


def test_thompson_pulls_an_arm_as_often_as_it_believes_it_the_best():
    """The draw of Beta(2, 1) is above that of Beta(1, 1) in two of three cases."""
    keys = jax.random.split(jax.random.key(1), 2000)
    counts = jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0])
    arms = jax.jit(jax.vmap(lambda key: env.thompson(key, *counts, jnp.int32(1))))(keys)
    assert abs(float(jnp.mean(arms == 0)) - 2 / 3) < 0.03


@pytest.mark.parametrize(("weight", "arm"), [(0.0, 0), (0.54, 0), (0.555, 1), (1.0, 1)])
def test_ucb1_pulls_the_arm_of_the_larger_bound(weight, arm):
    """5/6 + w sqrt(2 log 8 / 6) is below 1/2 + w sqrt(2 log 8 / 2) from w = 0.547 on."""
    counts = jnp.array([5.0, 1.0]), jnp.array([1.0, 1.0])
    pull = lambda key: env.ucb1(key, *counts, jnp.int32(8), weight=weight)
    found = jax.jit(jax.vmap(pull))(jax.random.split(jax.random.key(0), 5))
    assert found.tolist() == [arm] * 5


def test_ucb1_counts_the_prior_as_pulls():
    """The means are 3/4 of four and 1/2 of two pulls, though the second had none."""
    counts = jnp.array([2.0, 0.0]), jnp.zeros((2,))
    # 1/4 = w sqrt(2 log 2) (1 / sqrt(2) - 1 / sqrt(4)) at w = 1.025.
    for weight, arm in ((1.02, 0), (1.03, 1)):
        found = env.ucb1(jax.random.key(0), *counts, jnp.int32(2), weight=weight, prior=1)
        assert int(found) == arm


def test_ucb1_begins_with_each_arm_in_random_order():
    keys = jax.random.split(jax.random.key(2), 600)
    counts = jnp.array([1.0, 0.0, 0.0]), jnp.zeros((3,))
    arms = jax.jit(jax.vmap(lambda key: env.ucb1(key, *counts, jnp.int32(1))))(keys)
    share = np.bincount(np.asarray(arms), minlength=3) / 600
    np.testing.assert_allclose(share, [0, 0.5, 0.5], atol=0.08)


def _stay_if_won(key, successes, failures, t):
    """The optimum of two arms and two pulls: the first again if it paid."""
    del key, t
    return jnp.where(failures[0] > 0, 1, 0)


def _at_random(key, successes, failures, t):
    del failures, t
    return jax.random.randint(key, (), 0, successes.shape[0])


@functools.cache
def _mean_total(policy, arms, pulls, games=1500):
    bandit = env.bernoulli_bandit(arms, pulls)
    played = env.play(policy, bandit)
    one = lambda key: jnp.sum(played(jax.random.fold_in(key, 1), bandit.task(key)))
    keys = jax.random.split(jax.random.key(0), games)
    return float(jnp.mean(jax.jit(jax.vmap(one))(keys)))


def test_the_best_policy_of_two_pulls_earns_the_optimum():
    assert abs(_mean_total(_stay_if_won, 2, 2) - env.bayes_optimal_value(2, 2)) < 0.06


def test_policies_that_learn_earn_more_than_chance_and_no_more_than_the_optimum():
    best = env.bayes_optimal_value(2, 10)
    random = _mean_total(_at_random, 2, 10)
    assert abs(random - 5.0) < 0.2
    for policy in (env.thompson, env.ucb1):
        assert random + 0.4 < _mean_total(policy, 2, 10) < best + 0.1


def test_play_keeps_the_counts_of_arms_and_the_time():
    seen = []

    def watched(key, successes, failures, t):
        jax.debug.callback(lambda *now: seen.append(now), successes, failures, t)
        return (t % 2).astype(jnp.int32)

    bandit = env.bernoulli_bandit(2, 4)
    task = {"means": jnp.array([1.0, 0.0])}
    rewards = env.play(watched, bandit)(jax.random.key(0), task)
    jax.effects_barrier()
    np.testing.assert_array_equal(rewards, [1, 0, 1, 0])
    seen.sort(key=lambda now: int(now[2]))
    assert [int(t) for _, _, t in seen] == [0, 1, 2, 3]
    np.testing.assert_array_equal([s for s, _, _ in seen], [[0, 0], [1, 0], [1, 0], [2, 0]])
    np.testing.assert_array_equal([f for _, f, _ in seen], [[0, 0], [0, 0], [0, 1], [0, 1]])


def test_play_refuses_what_is_no_policy_and_no_bandit():
    bandit = env.bernoulli_bandit(2, 4)
    with pytest.raises(TypeError, match=r"policy takes .* such as thompson"):
        env.play(lambda key: 0, bandit)
    with pytest.raises(TypeError, match="environment is a function; expected Environment"):
        env.play(env.thompson, env.bernoulli_bandit)
    with pytest.raises(TypeError, match="expected Discrete"):
        env.play(env.thompson, env.navigation())


@pytest.mark.parametrize(("arms", "pulls"), [(50, 200), (10**9, 2), (5, 30)])
def test_too_many_counts_are_refused_in_time(arms, pulls):
    with pytest.raises(ValueError, match=r"more counts of arms .*Take fewer"):
        env.bayes_optimal_value(arms, pulls)
