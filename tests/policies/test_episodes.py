"""Tasks whose examples are episodes."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from metalearn import environments, policies

ENVIRONMENT = environments.navigation(horizon=8)
POLICY = policies.gaussian_policy((6,), log_std=-1.0)


def test_an_episode_is_its_own_wherever_its_input_stands():
    tasks = environments.episodes(ENVIRONMENT, num_support=2, num_query=4)
    task, params = tasks(jax.random.key(0)), POLICY.init(jax.random.key(1), ENVIRONMENT)
    key = jax.random.key(2)
    whole = policies.returns(policies.play(ENVIRONMENT, POLICY, params, task.query.x, key))
    turned = jax.tree.map(lambda leaf: leaf[::-1], task.query.x)
    np.testing.assert_array_equal(
        policies.returns(policies.play(ENVIRONMENT, POLICY, params, turned, key)),
        whole[::-1],
    )
    goal = task.query.x["task"]["goal"][0]
    seen = policies.rollout(ENVIRONMENT, POLICY, params, {"goal": goal}, key, 4)
    np.testing.assert_array_equal(policies.returns(seen), whole)
    assert len(set(np.asarray(whole).tolist())) == 4


def test_all_episodes_of_a_task_have_its_parameters():
    tasks = environments.episodes(ENVIRONMENT, num_support=3, num_query=2)
    first, second = tasks(jax.random.key(0)), tasks(jax.random.key(1))
    goals = np.concatenate([first.support.x["task"]["goal"], first.query.x["task"]["goal"]])
    assert goals.shape == (5, 2) and (goals == goals[:1]).all()
    assert not np.array_equal(first.query.x["task"]["goal"], second.query.x["task"]["goal"])
    assert first.support.mask.all() and first.support.y.shape == (3,)


def test_a_pair_of_a_chain_is_of_neighbours_at_every_place():
    chain = environments.rotating_goal(episodes=4, angles=(0.5, 0.5))
    tasks = environments.neighbours(chain, num_support=2, num_query=3)
    drawn = jax.vmap(tasks.sample, (None, 0))((), jax.random.split(jax.random.key(0), 60))
    before, after = drawn.support.x["task"]["goal"], drawn.query.x["task"]["goal"]
    assert before.shape == (60, 2, 2) and after.shape == (60, 3, 2)
    angle = lambda goals: np.arctan2(goals[:, 0, 1], goals[:, 0, 0])
    turned = (angle(after) - angle(before)) % (2 * np.pi)
    np.testing.assert_allclose(turned, 0.5, atol=1e-5)
    # The last task of a chain has none after it.
    assert set(np.asarray(drawn.info["episode"]).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: environments.episodes(3), TypeError, "environment is"),
        (lambda: environments.episodes(ENVIRONMENT, num_support=0), ValueError, "num_supp"),
        (lambda: environments.neighbours(ENVIRONMENT), TypeError, "chain is"),
    ],
)
def test_what_is_no_environment_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_policy_that_is_no_number_has_a_return_that_is_none():
    """It draws the first of several actions, and no reward may tell that it is well."""
    bandit = environments.bernoulli_bandit(arms=3, pulls=4)
    policy = policies.categorical_policy((4,))
    params = policy.init(jax.random.key(0), bandit)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params)
    task = bandit.task(jax.random.key(1))
    for given, finite in ((params, True), (broken, False)):
        seen = policies.rollout(bandit, policy, given, task, jax.random.key(2), 2)
        assert bool(np.isfinite(policies.mean_return(seen))) == finite


def test_a_policy_of_another_environment_is_refused():
    small, large = (environments.bernoulli_bandit(arms=k, pulls=4) for k in (3, 7))
    policy = policies.categorical_policy((4,))
    params = policy.init(jax.random.key(0), small)
    task = large.task(jax.random.key(1))
    with pytest.raises(ValueError, match=r"\(3,\) numbers of an action.*Discrete\(num=7"):
        policies.rollout(large, policy, params, task, jax.random.key(2), 2)
    goal = ENVIRONMENT.task(jax.random.key(0))
    with pytest.raises(ValueError, match=r"do not take observations \[2\] of navigation"):
        policies.rollout(ENVIRONMENT, policy, params, goal, jax.random.key(2), 2)
