"""The support vector machine as the classifier of a learner, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, wide_blobs
from tiny import WAYS, blob_batch, linen, one

import metalearn as ml
from metalearn.algorithms.closed_form import metaoptnet

x64 = pytest.mark.usefixtures("x64")


def raw():
    """The encoder that gives its inputs."""
    return ml.from_apply_fn(lambda key, x: {"unused": jnp.zeros(1)}, lambda params, x: x)


@x64
def test_logits_are_products_with_sums_of_support_vectors():
    """Orthonormal embeddings of one example a class, for which alpha is known."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    y, query = np.array([2, 0, 1]), one(wide_blobs()).query
    support = ml.Examples.of(jnp.asarray(rotation[:WAYS]), jnp.asarray(y))
    task = ml.Task(support=support, query=query)

    options = {"cost": 9.0, "diagonal": 0.5, "scale": 2.5}
    learner = metaoptnet(raw(), num_ways=WAYS, **options)

    def run(key, task):
        adapted = learner.adapt(learner.init(key, task), task.support)
        return adapted.fitted, learner.predict(adapted, task.query.x)

    fitted, logits = jax.jit(run)(jax.random.key(0), task)
    own = (1 - 1 / WAYS) / (1 + 0.5)
    alpha = np.full((WAYS, WAYS), -own / (WAYS - 1))
    alpha[np.arange(WAYS), y] = own
    close(fitted.alpha, alpha)
    close(logits, 2.5 * np.asarray(query.x) @ rotation[:WAYS].T @ alpha)
    assert fitted.residual < 1e-9


@x64
def test_encoder_and_scale_learn_through_the_solution():
    """The whole meta-gradient, with masked rows, by differences of the outer loss."""
    encoder = ml.from_apply_fn(
        lambda key, x: jnp.ones((4, 5)), lambda w, x: jnp.tanh(x @ w)
    )
    learner = metaoptnet(encoder, num_ways=WAYS, cost=0.3)
    tasks = wide_blobs()
    mask = tasks.support.mask.at[1, 2].set(False)
    support = dataclasses.replace(tasks.support, mask=mask)
    tasks = ml.Task(support=support, query=tasks.query)
    rng = np.random.default_rng(0)
    w, way = rng.normal(size=(2, 4, 5))

    @jax.jit
    def run(w, scale):
        params = {"encoder": w, "head": {"scale": scale}}
        variables = ml.Variables(params=params, state={})
        return learner.estimate(variables, tasks, key=jax.random.key(0))

    def loss(w, scale):
        return float(run(jnp.asarray(w), jnp.asarray(scale)).metrics["query/loss"].mean())

    found = run(jnp.asarray(w), jnp.asarray(1.3))
    h = 1e-5
    difference = (loss(w + h * way, 1.3) - loss(w - h * way, 1.3)) / (2 * h)
    close(np.sum(found.grads["encoder"] * way), difference, rtol=1e-6)
    scale = (loss(w, 1.3 + h) - loss(w, 1.3 - h)) / (2 * h)
    close(found.grads["head"]["scale"], scale, rtol=1e-6)
    assert found.metrics["support/residual"].max() < 1e-9


def test_a_scale_that_is_not_learned_is_no_parameter():
    learner = metaoptnet(raw(), num_ways=WAYS, learn_scale=False)
    made = jax.eval_shape(learner.init, jax.random.key(0), one(blob_batch()))
    assert list(made.params) == ["unused"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": 0.0}, "cost is 0.0; expected a finite number above 0"),
        ({"diagonal": -1.0}, "diagonal is -1.0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"scale": 0.0}, "scale is 0.0; expected a finite number above 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        metaoptnet(linen(None), num_ways=WAYS, **options)
