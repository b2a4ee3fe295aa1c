"""Deep kernel transfer against SciPy's density and scikit-learn's kernel ridge."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, wide_blobs
from scipy.stats import multivariate_normal
from sklearn.kernel_ridge import KernelRidge
from tiny import WAYS, blob_batch, linen, one

import metalearn as ml
from metalearn.algorithms.closed_form import dkt
from metalearn.algorithms.closed_form.kernel import gram

x64 = pytest.mark.usefixtures("x64")


def kernel_of(kind, a, b, outputscale=1.3, lengthscale=0.8):
    """Covariances by loops over pairs."""
    length = np.linalg.norm
    one_of = {
        "linear": lambda u, v: u @ v,
        "cosine": lambda u, v: u @ v / (length(u) * length(v)),
        "rbf": lambda u, v: np.exp(-0.5 * (length(u - v) / lengthscale) ** 2),
    }[kind]
    return outputscale * np.array([[one_of(u, v) for v in b] for u in a])


@x64
def test_predictive_mean_is_kernel_ridge_regression():
    task = one(wide_blobs())
    encoder = ml.from_apply_fn(lambda key, x: {"unused": jnp.zeros(1)}, lambda params, x: x)
    options = {"outputscale": 1.3, "lengthscale": 0.8, "noise": 0.2, "jitter": 0.01}
    kinds = ("linear", "cosine", "rbf")

    def run(kind, key, task):
        learner = dkt(encoder, num_ways=WAYS, kernel=kind, **options)
        variables = learner.init(key, task)
        params = {**variables.params, "head": {**variables.params["head"]}}
        params["head"]["mean"] = params["head"]["mean"] - 0.4
        moved = ml.Variables(params=params, state=variables.state)
        support = dataclasses.replace(task.support, mask=mask)
        return learner.predict(learner.adapt(moved, support), task.query.x)

    mask = jnp.array([True, True, True, False, True, False])
    every = jax.jit(lambda key, task: {kind: run(kind, key, task) for kind in kinds})
    found = every(jax.random.key(0), task)
    keep = np.asarray(mask)
    x, y = np.asarray(task.support.x)[keep], np.asarray(task.support.y)[keep]
    for kind in kinds:
        near = kernel_of(kind, np.asarray(task.query.x), x)
        model = KernelRidge(alpha=0.21, kernel="precomputed")
        model.fit(kernel_of(kind, x, x), 2 * np.eye(WAYS)[y] - 1 + 0.4)
        close(found[kind], model.predict(near) - 0.4)


@x64
def test_training_maximises_the_likelihood_of_support_and_query():
    """Loss and meta-gradient, with masked rows and an absent class, by differences."""
    tasks = wide_blobs()
    support_mask = tasks.support.mask.at[0, 2].set(False).at[1, :2].set(False)
    query_mask = tasks.query.mask.at[0, 5].set(False).at[1, :2].set(False)
    tasks = ml.Task(
        support=dataclasses.replace(tasks.support, mask=support_mask),
        query=dataclasses.replace(tasks.query, mask=query_mask),
    )
    encoder = ml.from_apply_fn(
        lambda key, x: jnp.ones((4, 5)), lambda w, x: jnp.tanh(x @ w)
    )
    learner = dkt(encoder, num_ways=WAYS, kernel="rbf", learn_noise=True, jitter=0.01)
    rng = np.random.default_rng(0)
    w, way = rng.normal(size=(2, 4, 5))

    def loss(w, head):
        losses = []
        for i in range(3):
            parts = [
                (np.asarray(part.x[i]), np.asarray(part.y[i]), np.asarray(part.mask[i]))
                for part in (tasks.support, tasks.query)
            ]
            x = np.concatenate([np.tanh(x[keep] @ w) for x, _, keep in parts])
            y = np.concatenate([y[keep] for _, y, keep in parts])
            scales = np.exp([head["log_outputscale"], head["log_lengthscale"]])
            matrix = kernel_of("rbf", x, x, *scales)
            matrix += (np.exp(head["log_noise"]) + 0.01) * np.eye(len(y))
            densities = [
                multivariate_normal(np.full(len(y), head["mean"]), matrix).logpdf(
                    np.where(y == k, 1.0, -1.0)
                )
                for k in np.unique(y)
            ]
            losses.append(-np.mean(densities) / len(y))
        return np.array(losses)

    head = {
        "log_outputscale": 0.3,
        "log_lengthscale": -0.2,
        "log_noise": -1.5,
        "mean": -0.4,
    }
    found = grads_of(learner, {"encoder": w, "head": head}, tasks)
    close(found.metrics["joint/nll"], loss(w, head))
    h = 1e-5
    difference = (loss(w + h * way, head) - loss(w - h * way, head)).mean() / (2 * h)
    close(np.sum(found.grads["encoder"] * way), difference, rtol=1e-6)
    for name, value in head.items():
        more, less = (loss(w, {**head, name: value + step}) for step in (h, -h))
        close(found.grads["head"][name], (more - less).mean() / (2 * h), rtol=1e-6)


def test_an_embedding_of_zero_has_a_derivative():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    values = {"outputscale": jnp.float32(1), "lengthscale": jnp.float32(1)}

    def first_row(x):
        matrix = gram("cosine", values, x, x, jnp.ones(2, bool))
        return jnp.sum(matrix[0]), matrix

    slope, matrix = jax.jit(jax.grad(first_row, has_aux=True))(x)
    assert np.abs(slope).max() < 10  # that of the identity, and none of a million
    close(matrix, np.array([[0.0, 0.0], [0.0, 1.0]]), rtol=1e-6)


def test_distances_far_from_zero_keep_their_digits():
    """Beside masked rows of zeros, too."""
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(6, 8))).astype(np.float32)
    mask = np.arange(12) < 6
    values = {"outputscale": jnp.float32(1), "lengthscale": jnp.float32(2)}
    rows = np.pad(x, ((0, 6), (0, 0)))
    found = jax.jit(lambda x: gram("rbf", values, x, x, jnp.asarray(mask)))(rows)
    wide = x.astype(np.float64)
    squares = ((wide[:, None] - wide[None]) ** 2).sum(-1)
    np.testing.assert_allclose(found[:6, :6], np.exp(-squares / 8), atol=1e-5)


def test_the_noise_is_a_parameter_on_request_alone():
    names = {"log_outputscale", "mean"}
    for kernel, learned in (("cosine", False), ("rbf", True)):
        learner = dkt(linen(None), num_ways=WAYS, kernel=kernel, learn_noise=learned)
        made = jax.eval_shape(learner.init, jax.random.key(0), one(blob_batch()))
        more = {"log_noise", "log_lengthscale"} if learned else set()
        assert set(made.params["head"]) == names | more


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "matern"}, "kernel is 'matern'; expected one of linear, rbf, cosine"),
        ({"noise": 0.0}, "noise is 0.0; expected a finite number above 0"),
        ({"outputscale": -1.0}, "outputscale is -1.0"),
        ({"jitter": -1.0}, "jitter is -1.0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        dkt(linen(None), num_ways=WAYS, **options)
