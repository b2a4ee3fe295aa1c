"""Meta-learning by reward on the contract of learners: episodes are examples."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn import environments, policies

ENVIRONMENT = environments.navigation(horizon=20)
POLICY = policies.gaussian_policy((8,), log_std=-1.0)


def played(params, inputs, key):
    return policies.play(ENVIRONMENT, POLICY, params, inputs, key)


def gain(params, seen):
    """The surrogate of ProMP, of advantages over a linear baseline."""
    to_go = policies.discounted_returns(seen.rewards, seen.mask, 0.99)
    values, _ = policies.linear_baseline(
        seen.observations, to_go, seen.mask, seen.last_observation
    )
    advantages = policies.normalised(to_go - values, seen.mask)
    logs = policies.log_probs(POLICY, params, seen)
    return policies.likelihood_ratio(
        logs, seen.log_probs, advantages, seen.mask, over="steps"
    )


@functools.cache
def maml_by_reward(rate):
    def init(key, task):
        del task
        return ml.Variables(params=POLICY.init(key, ENVIRONMENT), state={})

    def adapt(variables, support, *, key=None):
        seen = played(variables.params, support.x, key)
        slope = jax.grad(gain)(variables.params, seen)
        return jax.tree.map(lambda p, g: p + rate * g, variables.params, slope)

    def predict(adapted, x, *, key=None, mask=None):
        del mask
        return policies.returns(played(adapted, x, key))

    def objective(variables, task, *, key):
        k_before, k_after = jax.random.split(key)
        adapted = adapt(variables, task.support, key=k_before)
        seen = played(adapted, task.query.x, k_after)
        told = {"query/return": policies.mean_return(seen)}
        return -gain(adapted, seen), (variables.state, told)

    return ml.MetaLearner(
        init, adapt, predict, ml.gradient_estimator(objective, task_chunk=8)
    )


@functools.cache
def trained():
    tasks = environments.episodes(ENVIRONMENT, num_support=10, num_query=10)
    trainer = ml.meta_trainer(maml_by_reward(0.5), optax.adam(1e-2))
    return tasks, ml.fit(
        trainer,
        tasks,
        num_steps=40,
        tasks_per_step=8,
        key=jax.random.key(0),
        progress=False,
        log_every=10,
    )


def test_fit_and_evaluate_learn_by_reward():
    """Nothing of training or evaluation knows of environments."""
    tasks, result = trained()
    first, last = (result.history[i]["query/return"] for i in (0, -1))
    assert last > first + 1.0
    negative = lambda outputs, examples: -jnp.mean(outputs)
    found = {}
    for rate in (0.5, 0.0):
        found[rate] = -ml.evaluate(
            maml_by_reward(rate),
            result.variables,
            tasks,
            negative,
            num_tasks=64,
            key=jax.random.key(1),
            tasks_per_call=64,
        ).values["query/loss"]
    # The same goals, and the same noise, with an update and without.
    apart = found[0.5] - found[0.0]
    half = 1.96 * apart.std() / np.sqrt(len(apart))
    assert apart.mean() > half


def test_a_rate_of_zero_has_the_gradient_of_the_plain_policy():
    learner = maml_by_reward(0.0)
    tasks = environments.episodes(ENVIRONMENT, num_support=3, num_query=4)
    task = tasks(jax.random.key(5))
    variables = learner.init(jax.random.key(0), task)
    key = jax.random.key(2)
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    found = jax.jit(learner.estimate)(variables, batch, key=key).grads
    k_after = jax.random.split(jax.random.split(key, 1)[0])[1]
    seen = played(variables.params, task.query.x, k_after)
    expected = jax.grad(lambda params: -gain(params, seen))(variables.params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_what_is_learned_looks_through_the_update():
    """The meta-gradient has a part that the gradient at the adapted parameters lacks."""
    tasks = environments.episodes(ENVIRONMENT, num_support=3, num_query=4)
    batch = jax.tree.map(lambda leaf: leaf[None], tasks(jax.random.key(5)))
    learner = maml_by_reward(0.5)
    variables = learner.init(jax.random.key(0), None)
    key = jax.random.key(2)
    found = jax.jit(learner.estimate)(variables, batch, key=key).grads
    task = jax.tree.map(lambda leaf: leaf[0], batch)
    k_before, k_after = jax.random.split(jax.random.split(key, 1)[0])
    adapted = learner.adapt(variables, task.support, key=k_before)
    seen = played(adapted, task.query.x, k_after)
    first_order = jax.grad(lambda params: -gain(params, seen))(adapted)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(first_order), strict=True)
    assert max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) > 1e-3


def test_an_episode_is_its_own_wherever_its_input_stands():
    tasks = environments.episodes(ENVIRONMENT, num_support=2, num_query=4)
    task, params = tasks(jax.random.key(0)), POLICY.init(jax.random.key(1), ENVIRONMENT)
    key = jax.random.key(2)
    whole = policies.returns(played(params, task.query.x, key))
    turned = jax.tree.map(lambda leaf: leaf[::-1], task.query.x)
    np.testing.assert_array_equal(
        policies.returns(played(params, turned, key)), whole[::-1]
    )
    goal = task.query.x["task"]["goal"][0]
    seen = policies.rollout(ENVIRONMENT, POLICY, params, {"goal": goal}, key, 4)
    np.testing.assert_array_equal(policies.returns(seen), whole)
    assert len(set(np.asarray(whole).tolist())) == 4


# -- The samplers -------------------------------------------------------------------------


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
