"""The linear probe against scikit-learn, and how near the minimum it comes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, wide_blobs
from frozen_tasks import SIZES, arrays, as_they_are, lengths, ragged, variables
from sklearn.linear_model import LogisticRegression
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms import frozen
from metalearn.algorithms.frozen.linear_probe import logistic_head


def make(**options):
    return frozen.linear_probe(as_they_are(), **SIZES, **options)


def run(learner, task):
    """Probabilities of the queries, and the fitted probe."""

    def episode(support, x):
        adapted = learner.adapt(variables(), support)
        return jax.nn.softmax(learner.predict(adapted, x)), adapted.fitted

    return jax.jit(episode)(task.support, task.query.x)


@pytest.mark.parametrize("double", [True, False])
def test_probabilities_are_those_of_scikit_learn(double):
    with jax.enable_x64(True):
        task = jax.tree.map(np.asarray, one(ragged()))
    x, y, queries = arrays(task)
    solver = LogisticRegression(C=20.0, tol=1e-10, max_iter=10_000)
    solver.fit(x / lengths(x), y)
    expected = solver.predict_proba(queries / lengths(queries))
    if not double:
        task = jax.tree.map(lambda a: a.astype(np.float32) if a.dtype == float else a, task)
    with jax.enable_x64(double):
        found, probe = jax.tree.map(np.asarray, run(make(penalty=0.05), task))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 if double else 1e-5)
    close(probe.weights[:-1], solver.coef_.T, rtol=1e-5 if double else 1e-4)
    assert probe.residual < (1e-10 if double else 1e-5)


def test_absent_classes_are_left_out(x64):
    task = one(wide_blobs())
    mask = jnp.array([True, True, False, False, True, True])
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=mask)
    cut = ml.Task(support=support, query=task.query)
    x, y, queries = arrays(cut)
    found, probe = run(make(), cut)
    # Two classes have two weights here, and one there: the penalty is then half as large.
    solver = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000)
    solver.fit(x / lengths(x), y == 2)
    expected = solver.predict_proba(queries / lengths(queries))
    np.testing.assert_allclose(found[:, [0, 2]], expected, rtol=0, atol=1e-7)
    assert not np.any(found[:, 1]) and not np.any(probe.weights[:, 1])


def test_residual_is_the_length_of_the_gradient(x64):
    task = one(ragged())
    x, y, _ = arrays(task)
    x = np.concatenate([x / lengths(x), np.ones((len(x), 1))], axis=1)
    probe = run(make(num_steps=0, penalty=0.5), task)[1]
    close(probe.residual, np.linalg.norm(x.T @ (1 / WAYS - np.eye(WAYS)[y])))
    probe = run(make(num_steps=2, penalty=0.5), task)[1]
    weights = np.asarray(probe.weights)
    shares = np.exp(x @ weights)
    shares /= shares.sum(-1, keepdims=True)
    decay = 0.5 * weights
    decay[-1] = 0
    gradient = x.T @ (shares - np.eye(WAYS)[y]) + decay
    close(probe.residual, np.linalg.norm(gradient), rtol=1e-6)


def test_many_classes_and_a_small_penalty_converge():
    """Whole Newton steps go astray here, as the chances are soon 0 and 1."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(20), 5)
    x = 2 * rng.normal(size=(20, 64))[y] + rng.normal(size=(100, 64))
    support = ml.Examples.of(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))
    head = logistic_head(20, penalty=0.01, num_steps=12)
    assert jax.jit(lambda s: head.fit({}, s))(support).residual < 1e-4


def test_options_are_checked():
    with pytest.raises(ValueError, match="penalty is 0; expected a finite number above 0"):
        make(penalty=0)
    with pytest.raises(ValueError, match="num_steps is -1; expected an integer of 0"):
        make(num_steps=-1)
