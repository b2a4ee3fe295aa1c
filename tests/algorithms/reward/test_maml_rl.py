"""MAML by reward: its gradients, and that it learns to adapt."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn import environments, policies
from metalearn.algorithms.reward.maml_rl import advantages_of

ENVIRONMENT = environments.navigation(horizon=8)
POLICY = policies.gaussian_policy((6,), log_std=-1.0)
KEY = jax.random.key(2)


@functools.cache
def learner(rate=0.5, steps=1, **options):
    return ml.maml_rl(
        ENVIRONMENT, POLICY, inner_rate=rate, num_steps=steps, task_chunk=8, **options
    )


def task_of(num_support=3, num_query=4):
    sampler = environments.episodes(
        ENVIRONMENT, num_support=num_support, num_query=num_query
    )
    return sampler(jax.random.key(5))


def variables_of():
    # Beyond the small head of the start, where second derivatives are small too.
    found = learner().init(jax.random.key(0), task_of())
    params = dict(found.params["policy"])
    params["head_kernel"] = 100 * params["head_kernel"]
    return ml.Variables(params={"policy": params}, state={})


def gain(params, seen, how="likelihood_ratio"):
    """The surrogate written out: products of probabilities in place of logarithms."""
    advantages = advantages_of(seen, 0.99, 1.0)
    law = POLICY.apply(params, seen.observations)
    logs = law.log_prob(seen.actions)
    ratio = jnp.exp(logs - jax.lax.stop_gradient(logs))
    if how == "dice":
        whole = jnp.exp(jnp.cumsum(logs - jax.lax.stop_gradient(logs), axis=1))
        before = jnp.concatenate([jnp.ones_like(whole[:, :1]), whole[:, :-1]], axis=1)
        ratio = whole - before
    return jnp.sum(ratio * advantages * seen.mask) / jnp.sum(seen.mask)


def play(params, examples, key):
    return policies.play(ENVIRONMENT, POLICY, params, examples.x, key)


def meta_loss(params, task, *, rate=0.5, steps=1, how="likelihood_ratio"):
    """The objective by hand, with loops of Python."""
    k_before, k_after = jax.random.split(jax.random.split(KEY, 1)[0])
    for key in jax.random.split(k_before, steps):
        slope = jax.grad(gain)(params, play(params, task.support, key), how)
        params = jax.tree.map(lambda p, g: p + rate * g, params, slope)
    return -gain(params, play(params, task.query, k_after))


def close(found, expected, rtol=1e-3):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=5e-3 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize(
    ("steps", "how"), [(1, "likelihood_ratio"), (2, "likelihood_ratio"), (1, "dice")]
)
def test_meta_gradient_is_that_of_the_objective_by_hand(steps, how):
    task, variables = task_of(), variables_of()
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    estimate = jax.jit(learner(steps=steps, surrogate=how).estimate)
    found = estimate(variables, batch, key=KEY)
    by_hand = functools.partial(meta_loss, task=task, steps=steps, how=how)
    params = variables.params["policy"]
    expected = jax.jit(jax.grad(by_hand))(params)
    close(found.grads["policy"], expected)
    # A first-order gradient is another one: the test would see it.
    k_before, k_after = jax.random.split(jax.random.split(KEY, 1)[0])
    if steps == 1:
        slope = jax.grad(gain)(params, play(params, task.support, k_before), how)
        moved = jax.tree.map(lambda p, g: p + 0.5 * g, params, slope)
        first_order = jax.grad(lambda p: -gain(p, play(p, task.query, k_after)))(moved)
        apart = [
            float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
            for a, b in zip(jax.tree.leaves(first_order), jax.tree.leaves(expected))
        ]
        assert max(apart) > 0.02


def test_reported_returns_are_those_before_and_after():
    task, variables = task_of(), variables_of()
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    told = jax.jit(learner().estimate)(variables, batch, key=KEY).metrics
    k_before, k_after = jax.random.split(jax.random.split(KEY, 1)[0])
    params = variables.params["policy"]
    before = play(params, task.support, jax.random.split(k_before, 1)[0])
    slope = jax.grad(gain)(params, before)
    moved = jax.tree.map(lambda p, g: p + 0.5 * g, params, slope)
    after = policies.mean_return(play(moved, task.query, k_after))
    np.testing.assert_allclose(told["query/return"][0], after, rtol=1e-4)
    np.testing.assert_allclose(told["query/loss"][0], -after, rtol=1e-4)
    np.testing.assert_allclose(
        told["support/return"][0], policies.mean_return(before), rtol=1e-4
    )


def test_predictions_are_returns_of_the_adapted_policy():
    task, variables = task_of(), variables_of()
    adapted = learner().adapt(variables, task.support, key=KEY)
    found = learner().predict(adapted, task.query.x, key=KEY)
    expected = policies.returns(play(adapted.params, task.query, KEY))
    np.testing.assert_array_equal(found, expected)
    still = learner(steps=0).adapt(variables, task.support, key=KEY)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, still.params, variables.params["policy"])
    )


def test_padded_episodes_have_no_part_in_an_update():
    """Not even in the baseline, or the mean of the advantages."""
    task, variables = task_of(num_support=4), variables_of()
    mask = jnp.array([True, True, False, True])
    padded = dataclasses.replace(task.support, mask=mask)
    kept = jax.tree.map(lambda leaf: leaf[mask], task.support)
    found, expected = (
        learner().adapt(variables, support, key=KEY).params for support in (padded, kept)
    )
    close(found, expected, rtol=1e-4)


def test_values_after_the_horizon_are_not_hoped_for():
    """An advantage with trace 0 at the last step is its reward less its value."""
    seen = play(variables_of().params["policy"], task_of().support, KEY)
    rewards = seen.rewards.at[:, -1].add(1.0)
    found = advantages_of(dataclasses.replace(seen, rewards=rewards), 1.0, 0.0)
    to_go = policies.discounted_returns(rewards, seen.mask, 1.0)
    values, _ = policies.linear_baseline(
        seen.observations, to_go, seen.mask, seen.last_observation
    )
    following = jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], 1)
    expected = rewards + following - values
    expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_it_learns_to_adapt():
    tasks = environments.episodes(ENVIRONMENT, num_support=10, num_query=10)
    result = ml.fit(
        ml.meta_trainer(learner(), optax.adam(2e-2)),
        tasks,
        num_steps=60,
        tasks_per_step=8,
        key=jax.random.key(0),
        progress=False,
        log_every=10,
    )
    first, last = (result.history[i]["query/return"] for i in (0, -1))
    assert last > first
    found = [
        ml.evaluate(
            learner(steps=steps),
            result.variables,
            tasks,
            num_tasks=64,
            key=jax.random.key(1),
            tasks_per_call=64,
        ).values["query/loss"]
        for steps in (0, 1)
    ]
    # The same goals, and the same noise, without an update and with one.
    gained = found[0] - found[1]
    assert gained.mean() > 1.96 * gained.std() / np.sqrt(len(gained))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"environment": 3}, TypeError, "environment is"),
        ({"policy": 3}, TypeError, "policy is"),
        ({"inner_rate": -1.0}, ValueError, "inner_rate is -1"),
        ({"num_steps": -1}, ValueError, "num_steps is -1"),
        ({"surrogate": "lvc"}, ValueError, "expected one of likelihood_ratio, dice"),
        ({"discount": 1.5}, ValueError, "discount is 1.5; expected a number from 0 to 1"),
        ({"trace": -0.5}, ValueError, "trace is -0.5"),
    ],
)
def test_settings_out_of_range_are_refused(options, error, words):
    given = {"environment": ENVIRONMENT, "policy": POLICY} | options
    with pytest.raises(error, match=words):
        ml.maml_rl(given.pop("environment"), given.pop("policy"), **given)


def test_episodes_without_a_key_are_refused():
    variables, task = variables_of(), task_of()
    with pytest.raises(ValueError, match=r"give a key: adapt\("):
        learner().adapt(variables, task.support)
    adapted = learner().adapt(variables, task.support, key=KEY)
    with pytest.raises(ValueError, match=r"give a key: predict\("):
        learner().predict(adapted, task.query.x)


def test_examples_that_are_no_episodes_are_refused():
    given = ml.Examples.of(jnp.zeros((3, 2)), jnp.zeros(3))
    with pytest.raises(TypeError, match=r"expected \{'task': ..., 'episode'"):
        learner().adapt(variables_of(), given, key=KEY)


def test_tasks_of_another_environment_are_refused():
    tasks = environments.episodes(environments.drift_point(horizon=5), num_support=2)
    support = tasks(jax.random.key(0)).support
    with pytest.raises(ValueError, match=r"the task has shapes .*gains.*goal.*navigation"):
        learner().adapt(variables_of(), support, key=KEY)
