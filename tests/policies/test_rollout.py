"""Rollouts: ends of episodes, what is drawn, and what has no derivative."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_worlds

from metalearn import policies
from metalearn.environments import Discrete, check_environment
from metalearn.policies import DiagonalGaussian, Policy

WORLDS = {
    "bandit": small_worlds.bandit(),
    "chain": small_worlds.chain(),
    "countdown": small_worlds.countdown(),
    "truncated": small_worlds.countdown(terminates=False),
}


@functools.cache
def setting(name):
    environment = WORLDS[name]
    policy = policies.policy_for(environment, (3,))
    params = policy.init(jax.random.key(0), environment)
    run = lambda params, task, key, episodes: policies.rollout(
        environment, policy, params, task, key, episodes
    )
    return policy, params, jax.jit(run, static_argnums=3)


log_probs = jax.jit(policies.log_probs, static_argnums=0)
first_nonfinite = jax.jit(policies.first_nonfinite)


@functools.cache
def seen(name="countdown", task=3, episodes=2):
    """Trajectories of a countdown, worked out in the tests."""
    _, params, run = setting(name)
    return run(params, jnp.array(task), jax.random.key(1), episodes)


@pytest.mark.parametrize("name", WORLDS)
def test_the_worlds_keep_the_contract(name):
    check_environment(WORLDS[name])


def test_an_episode_ends_with_its_last_valid_step_and_freezes():
    found = seen()
    np.testing.assert_array_equal(found.mask, [[1, 1, 1, 0, 0]] * 2)
    np.testing.assert_array_equal(found.rewards, [[1, 2, 3, 0, 0]] * 2)
    np.testing.assert_array_equal(found.observations[0, :, 0], [0, 1, 2, 3, 3])
    np.testing.assert_array_equal(found.last_observation, [[3, 3]] * 2)
    np.testing.assert_array_equal(found.info["time"], [[1, 2, 3, 0, 0]] * 2)
    np.testing.assert_array_equal(found.terminated, [True, True])
    np.testing.assert_array_equal(found.log_probs != 0, found.mask)
    np.testing.assert_array_equal(policies.returns(found), [6, 6])
    assert policies.mean_return(found) == 6
    assert first_nonfinite(found) == -1


@pytest.mark.parametrize(
    ("name", "task", "steps", "terminated"),
    [("countdown", 5, 5, True), ("truncated", 2, 2, False), ("truncated", 9, 5, False)],
)
def test_only_what_terminates_is_terminated(name, task, steps, terminated):
    found = seen(name, task)
    np.testing.assert_array_equal(found.mask.sum(-1), [steps] * 2)
    np.testing.assert_array_equal(found.terminated, [terminated] * 2)
    np.testing.assert_array_equal(found.last_observation[:, 0], [steps] * 2)


def test_observations_follow_from_actions():
    _, params, run = setting("chain")
    task = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    found = run(params, task, jax.random.key(0), 30)
    first, second = np.asarray(found.actions).T
    assert set(zip(first.tolist(), second.tolist())) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    np.testing.assert_array_equal(found.observations[:, 0], [[1, 0]] * 30)
    np.testing.assert_array_equal(found.observations[:, 1], np.eye(2)[first])
    np.testing.assert_array_equal(found.last_observation, np.eye(2)[second])
    table = np.asarray(task)
    np.testing.assert_array_equal(found.rewards[:, 0], table[0, first])
    np.testing.assert_array_equal(found.rewards[:, 1], table[first, second])
    np.testing.assert_array_equal(found.info["place"][:, 1], first)


def test_actions_come_as_often_as_the_policy_says():
    policy, params, run = setting("bandit")
    params = {**params, "head_bias": jnp.array([0.0, 1.0])}
    found = run(params, jnp.array([0.0, 1.0]), jax.random.key(0), 4000)
    share = np.exp(policy.apply(params, jnp.ones(1)).log_prob(jnp.array(1)))
    np.testing.assert_allclose(policies.mean_return(found), share, atol=0.03)


@pytest.mark.parametrize("name", ["chain", "countdown"])
def test_log_probabilities_are_those_of_the_policy_that_acted(name):
    policy, params, run = setting(name)
    task = jnp.ones((2, 2)) if name == "chain" else jnp.array(3)
    found = run(params, task, jax.random.key(1), 2)
    logs = log_probs(policy, params, found)
    np.testing.assert_allclose(found.log_probs, logs, rtol=1e-5, atol=1e-6)
    assert np.abs(found.log_probs[:, :2]).min() > 0.1
    slope = jax.grad(lambda p: log_probs(policy, p, found).sum())(params)
    assert np.abs(slope["head_bias"]).max() > 0.01


def test_no_derivative_flows_through_draws():
    """Actions of a Gaussian are a smooth function of its mean, rewards one of the task."""

    def step(key, state, action, task):
        flag = jnp.zeros((), bool)
        return action, state, task * action.sum(), flag, flag, {"twice": 2 * action}

    world = WORLDS["countdown"]._replace(step=step, reset=lambda k, t: (jnp.ones(2), t))
    policy = policies.policy_for(world, ())
    params = policy.init(jax.random.key(0), world)

    def everything(params, task):
        found = policies.rollout(world, policy, params, task, jax.random.key(0), 2)
        leaves = [found.observations, found.actions, found.rewards, found.log_probs]
        leaves += [found.last_observation, found.info["twice"]]
        return sum(leaf.sum() for leaf in leaves)

    slopes = jax.jit(jax.grad(everything, (0, 1)))(params, jnp.array(2.0))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slopes))


def test_an_episode_does_not_depend_on_how_many_there_are():
    few, many = seen(episodes=2), seen(episodes=4)
    np.testing.assert_array_equal(few.actions, many.actions[:2])
    assert len(np.unique(many.actions[:, 0, 0])) == 4


def test_steps_of_an_episode_draw_anew():
    assert len(np.unique(seen(task=5).actions)) == 2 * 5 * 2


def test_tasks_are_mapped():
    _, params, run = setting("countdown")
    tasks = jnp.array([1, 4])
    keys = jax.random.split(jax.random.key(1), 2)
    together = jax.vmap(lambda task, key: run(params, task, key, 2))(tasks, keys)
    np.testing.assert_array_equal(together.mask.sum(-1), [[1, 1], [4, 4]])
    np.testing.assert_array_equal(policies.mean_return(together), [1, 10])
    alone = run(params, tasks[1], keys[1], 2)
    np.testing.assert_allclose(together.actions[1], alone.actions, rtol=1e-5, atol=1e-6)


def test_a_policy_that_breaks_down_is_told_with_its_step():
    def apply(params, observations):
        broken = observations[..., :1] >= params
        return DiagonalGaussian(
            jnp.where(broken, jnp.nan, observations), jnp.zeros(observations.shape)
        )

    policy = Policy(lambda key, environment: jnp.array(2.0), apply)
    run = lambda params: policies.first_nonfinite(
        policies.rollout(
            WORLDS["countdown"], policy, params, jnp.array(4), jax.random.key(0), 3
        )
    )
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(run))(jnp.arange(6.0)), [0, 1, 2, 3, -1, -1]
    )


@pytest.mark.parametrize(
    ("name", "at", "wanted"),
    [
        ("rewards", (1, 2), 2),
        ("actions", (0, 1, 1), 1),
        ("observations", (1, 0, 0), 0),
        ("log_probs", (0, 2), 2),
        ("last_observation", (1, 1), 3),
        ("rewards", (1, 4), -1),  # an invalid step
    ],
)
def test_every_number_that_is_not_finite_is_found(name, at, wanted):
    found = seen()
    leaf = np.array(getattr(found, name))
    leaf[at] = np.inf
    step = first_nonfinite(dataclasses.replace(found, **{name: leaf}))
    assert step == wanted and step.dtype == jnp.int32


def test_discrete_actions_beyond_the_end_are_finite_for_surrogates():
    world = small_worlds.countdown(Discrete(3))

    def apply(params, observations):
        logits = jnp.broadcast_to(params, (*observations.shape[:-1], 3))
        return policies.Categorical(logits)

    policy = Policy(lambda key, environment: jnp.zeros(3), apply)
    params = jnp.array([-jnp.inf, 0.0, 1.0])
    run = lambda params: policies.rollout(
        world, policy, params, jnp.array(2), jax.random.key(0), 8
    )
    found = jax.jit(run)(params)
    assert set(np.unique(found.actions)) == {1, 2}
    slope = jax.grad(lambda p: log_probs(policy, p, found).sum())(params)
    assert np.isfinite(slope).all()


def roll(**changed):
    policy, params, _ = setting("bandit")
    given = {
        "environment": WORLDS["bandit"],
        "policy": policy,
        "params": params,
        "task": jnp.ones(2),
        "key": jax.random.key(0),
        "episodes": 2,
    }
    return policies.rollout(**(given | changed))


MISTAKES = {
    "environment is a str": lambda: roll(environment="bandit"),
    "policy is a function": lambda: roll(policy=lambda params, x: x),
    "key is the number 3": lambda: roll(key=3),
    "episodes is 0": lambda: roll(episodes=0),
    "episodes is 2.0": lambda: roll(episodes=2.0),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message):
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message]()
