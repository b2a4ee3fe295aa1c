"""Logistic regression as a classifier, against scikit-learn and Newton's steps in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, numpy_tasks, wide_blobs
from sklearn.linear_model import LogisticRegression
from tiny import WAYS, linen, one

import metalearn as ml
from metalearn.algorithms.closed_form import lr_d2
from metalearn.algorithms.closed_form.logistic import logistic

x64 = pytest.mark.usefixtures("x64")


def raw():
    """The encoder that gives its inputs."""
    return ml.from_apply_fn(lambda key, x: {"unused": jnp.zeros(1)}, lambda params, x: x)


def newton(x, y, penalty, steps):
    """Weights of one class by plain Newton's steps."""
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        share = 1 / (1 + np.exp(-x @ w))
        slope = x.T @ (share - y) + penalty * w
        curvature = x.T * (share * (1 - share)) @ x + penalty * np.eye(len(w))
        w = w - np.linalg.solve(curvature, slope)
    return w


def with_ones(x):
    return np.concatenate([x, np.ones((len(x), 1))], 1)


@x64
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_steps_are_those_of_newton_and_lead_to_the_optimum(shape):
    """More rows than columns, and fewer; a row of zeros is one that is masked."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    x[1] = 0
    y = np.eye(2)[np.arange(len(x)) % 2]
    keep = np.arange(len(x)) != 1
    run = jax.jit(lambda *arrays: {s: logistic(*arrays, s) for s in (3, 12)})
    found = run(jnp.asarray(x), jnp.asarray(y), jnp.asarray(0.3))
    for steps, weights in found.items():
        expected = [newton(x[keep], t, 0.3, steps) for t in y[keep].T]
        close(weights, np.stack(expected, 1))
    model = LogisticRegression(C=1 / 0.3, fit_intercept=False, tol=1e-10, max_iter=1000)
    close(found[12][:, 1], model.fit(x[keep], y[keep, 1]).coef_[0], rtol=1e-6)


@x64
def test_first_step_is_ridge_regression_on_larger_targets():
    """Targets 2 and -2, four times the regularisation, which no number multiplies."""
    task = one(wide_blobs())
    learner = lr_d2(raw(), num_ways=WAYS, num_steps=1, regularisation=0.3, scale=2.0)

    def run(key, task):
        adapted = learner.adapt(learner.init(key, task), task.support)
        return adapted.fitted, learner.predict(adapted, task.query.x)

    weights, logits = jax.jit(run)(jax.random.key(0), task)
    x, y = with_ones(np.asarray(task.support.x)), np.eye(WAYS)[np.asarray(task.support.y)]
    taller = np.concatenate([x, np.sqrt(4 * 0.3) * np.eye(x.shape[1])])
    rows = np.concatenate([4 * y - 2, np.zeros((x.shape[1], WAYS))])
    expected = np.linalg.lstsq(taller, rows, rcond=None)[0]
    close(weights, expected)
    close(logits, 2 * with_ones(np.asarray(task.query.x)) @ expected)


@x64
def test_encoder_and_numbers_learn_through_all_steps():
    """The whole meta-gradient by finite differences of the loss, in NumPy."""
    encoder = ml.from_apply_fn(
        lambda key, x: jnp.ones((4, 5)), lambda w, x: jnp.tanh(x @ w)
    )
    learner = lr_d2(encoder, num_ways=WAYS, num_steps=3, regularisation=0.2, learn="all")
    rng = np.random.default_rng(0)
    w, way = rng.normal(size=(2, 4, 5))

    def loss(w, penalty, scale):
        losses = []
        for xs, ys, xq, yq in numpy_tasks():
            support, query = with_ones(np.tanh(xs @ w)), with_ones(np.tanh(xq @ w))
            weights = [newton(support, ys == k, penalty, 3) for k in range(WAYS)]
            logits = scale * query @ np.stack(weights, 1)
            shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            losses.append(-np.log(shares[np.arange(len(yq)), yq]).mean())
        return np.mean(losses)

    head = {"log_regularisation": np.log(0.2), "scale": 1.5, "offset": 0.3}
    found = grads_of(learner, {"encoder": w, "head": head}, wide_blobs())
    h = 1e-6
    close(found.metrics["query/loss"].mean(), loss(w, 0.2, 1.5))
    difference = (loss(w + h * way, 0.2, 1.5) - loss(w - h * way, 0.2, 1.5)) / (2 * h)
    close(np.sum(found.grads["encoder"] * way), difference, rtol=1e-6)
    penalty = (loss(w, 0.2 * np.exp(h), 1.5) - loss(w, 0.2 * np.exp(-h), 1.5)) / (2 * h)
    close(found.grads["head"]["log_regularisation"], penalty, rtol=1e-6)
    scale = (loss(w, 0.2, 1.5 + h) - loss(w, 0.2, 1.5 - h)) / (2 * h)
    close(found.grads["head"]["scale"], scale, rtol=1e-6)


def test_confident_examples_do_not_divide_by_zero():
    """Shares of exactly 0 and 1 in float32, whose weights would be 0."""
    rng = np.random.default_rng(0)
    x = 1000 * np.eye(4, 6) + rng.normal(size=(4, 6))
    y = jnp.asarray(np.eye(2)[[0, 0, 1, 1]], jnp.float32)

    def spread(x):
        weights = logistic(x, y, jnp.float32(1e-6), 30)
        return jnp.sum(jnp.square(x @ weights)), x @ weights

    (_, scores), slope = jax.jit(jax.value_and_grad(spread, has_aux=True))(
        jnp.asarray(x, jnp.float32)
    )
    assert np.isfinite(slope).all() and np.isfinite(scores).all()
    assert ((scores > 5) == (y > 0)).all() and (np.abs(scores) > 5).all()


def test_wrong_options_are_refused():
    with pytest.raises(
        ValueError, match="num_steps is 0; expected an integer of 1 or more"
    ):
        lr_d2(linen(None), num_ways=WAYS, num_steps=0)
    with pytest.raises(ValueError, match="regularisation is 0"):
        lr_d2(linen(None), num_ways=WAYS, regularisation=0)
