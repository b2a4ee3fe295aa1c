"""LEO's chances: where features are dropped, and which draws are new ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, differs, grads_of, wide_blobs
from tiny import INPUTS, WAYS, one

import metalearn as ml
from metalearn.algorithms.context.leo import leo
from metalearn.algorithms.context.leo_net import drop_features

pytestmark = pytest.mark.usefixtures("x64")
LATENTS = 3
ALL = 1 - 1e-12  # no feature is left
KEY = jax.random.key(0)


def learner_of(ways=WAYS, **options):
    return leo(ways, **{"latents": LATENTS, "task_chunk": 9, "num_steps": 0, **options})


@functools.cache
def params_of():
    """Codes of means and deviations that are not zero."""
    with jax.enable_x64(True):
        learner = learner_of(latent_rate=0.2, fine_tune_rate=0.2)
        made = learner.init(jax.random.key(1), one(wide_blobs())).params
        made = jax.tree.map(lambda p: p.astype(jnp.float64), made)
        last = jnp.abs(made["model"]["relation_2"]["kernel"])
        return {**made, "model": {**made["model"], "relation_2": {"kernel": last}}}


def metrics_of(learner, tasks, params=None):
    variables = ml.Variables(params=params or params_of(), state={})
    return jax.jit(lambda v, t: learner.estimate(v, t, key=KEY).metrics)(variables, tasks)


def test_dropout_keeps_the_expectation():
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, size=(400, 50)))
    found = np.asarray(drop_features(KEY, x, 0.3))
    kept = found != 0
    close(found[kept], np.asarray(x)[kept] / 0.7)
    for axis in (0, 1):  # by number, neither by row nor by column
        assert abs(kept.mean() - 0.7) < 0.01 and kept.mean(axis).std() < 0.1
    assert drop_features(None, x, 0.3) is x and drop_features(KEY, x, 0) is x


@pytest.mark.parametrize("steps", [{"num_steps": 2}, {"fine_tune_steps": 2}])
def test_features_are_dropped_wherever_they_are_read(steps):
    """Without a feature the encoder learns nothing, and every logit is the same."""
    options = {"fine_tune_steps": 0, "kl_weight": 1.0, "orthogonality": 0.0, **steps}
    every = grads_of(learner_of(dropout=ALL, **options), params_of(), wide_blobs())
    none = metrics_of(learner_of(dropout=0.0, **options), wide_blobs())
    assert not np.any(every.grads["model"]["encoder"]["kernel"])
    for name in ("support/loss", "query/loss"):
        close(every.metrics[name], np.full(3, np.log(WAYS)))
        assert differs(none[name], every.metrics[name])
    assert not np.any(every.metrics["encoder/penalty"])  # no step had a slope
    if "num_steps" in steps:
        assert none["encoder/penalty"].min() > 1e-6


@pytest.mark.parametrize("rate", ["latent_rate", "fine_tune_rate"])
def test_every_step_drops_other_features(rate):
    """A rate has no gradient where its feature was dropped in all steps.

    With an identity as decoder, a code is the weights of its class.
    """
    size, num = 40, 6
    steps = {"latent_rate": {"num_steps": num}, "fine_tune_rate": {"fine_tune_steps": num}}
    options = {"latents": size, "latent_rate": 0.05, "fine_tune_rate": 0.05}
    options |= {"orthogonality": 0.0, "fine_tune_steps": 0, **steps[rate]}
    learner, rng = learner_of(2, dropout=0.5, **options), np.random.default_rng(0)

    def part(num):
        x = jnp.asarray(rng.normal(size=(num, size)))
        return ml.Examples.of(x, jnp.arange(num, dtype=jnp.int32) % 2)

    task = ml.Task(support=part(2), query=part(12))
    params = jax.jit(learner.init)(KEY, task).params
    decoder = jnp.eye(size, 2 * size)
    params = {**params, "model": {**params["model"], "decoder": {"kernel": decoder}}}
    found = grads_of(learner, params, ml.stack_tasks([task])).grads[rate]
    # Both examples lack a feature in one step of four, and in six of six hardly ever.
    assert np.sum(np.asarray(found) == 0) <= 1


def test_rates_begin_where_they_are_told():
    learner = learner_of(latent_rate=0.3, fine_tune_rate=0.02)
    params = learner.init(KEY, one(wide_blobs())).params
    close(params["latent_rate"], np.full(LATENTS, 0.3), rtol=1e-6)
    close(params["fine_tune_rate"], np.full(INPUTS, 0.02), rtol=1e-6)


def test_every_decoding_draws_weights_anew():
    """Also where the code has not moved."""
    params = {**params_of(), "latent_rate": jnp.zeros(LATENTS)}
    options = {"dropout": 0.0, "fine_tune_steps": 0}
    still, moved = (
        metrics_of(learner_of(num_steps=num, **options), wide_blobs(), params)
        for num in (0, 1)
    )
    close(moved["encoder/kl"], still["encoder/kl"])
    assert differs(moved["query/loss"], still["query/loss"])


def test_absent_classes_have_no_divergence():
    """A code of nothing has a deviation of 1e-10, so a divergence of 23 or so."""
    tasks = wide_blobs()
    there = tasks.support.y != 2
    support = ml.Examples(x=tasks.support.x, y=tasks.support.y, mask=there)
    learner = learner_of(dropout=0.0, num_steps=1, fine_tune_steps=0)
    whole = metrics_of(learner, tasks)
    part = metrics_of(learner, ml.Task(support=support, query=tasks.query))
    assert (part["encoder/kl"] < whole["encoder/kl"] + 4).all(), (whole, part)
