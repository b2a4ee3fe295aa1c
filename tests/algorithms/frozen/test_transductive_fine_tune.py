"""Transductive fine-tuning: its start, its steps and its queries, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close
from frozen_tasks import SIZES, arrays, lengths, ragged, tanh_features, trained, variables
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms import frozen

pytestmark = pytest.mark.usefixtures("x64")
RATE, WEIGHT, EPS = 0.05, 0.7, 1e-3


def make(**options):
    options = {"rate": RATE, "entropy_weight": WEIGHT, "eps": EPS, **options}
    return frozen.transductive_fine_tune(tanh_features(), **SIZES, **options)


def parts():
    """The network and its classifier, with a logit above zero for every example."""
    body, head = trained()
    return body, {**head, "bias": head["bias"] + 2}


def start():
    body, head = parts()
    return variables(body, classifier=head)


def run(learner, task):
    """Logits of the queries, and of the first of them alone."""

    def episode(support, query):
        adapted = learner.adapt(start(), support)
        alone = learner.predict(adapted, query.x[:1])
        return learner.predict(adapted, query.x, mask=query.mask), alone

    return jax.jit(episode)(task.support, task.query)


def plain(body, head):
    """The features of the classifier, in NumPy or JAX."""
    z = jnp.tanh(body[0] @ head["w"] + head["b"][None]) @ head["kernel"]
    return jnp.maximum(z + head["bias"][None], 0)


def weights():
    body, head = parts()
    return {**body, **head}


def means_of(task):
    x, y, _ = arrays(task)
    found = np.asarray(plain((x,), weights()))
    means = np.stack([found[y == k].mean(0) for k in range(WAYS)])
    return (means / lengths(means)).T


def scores(params, x):
    found = plain((x,), params)
    return (
        found / jnp.linalg.norm(found, axis=-1, keepdims=True) @ params["V"] + params["c"]
    )


def test_without_steps_the_support_means_classify():
    """Means of rectified logits, and normalised after the mean."""
    task = one(ragged())
    expected = scores(
        {**weights(), "V": means_of(task), "c": np.zeros((1, WAYS))}, task.query.x
    )
    found, alone = run(make(num_steps=0), task)
    close(found, expected)
    close(alone, expected[:1])


def test_steps_are_adam_on_support_loss_and_query_entropy():
    """Two steps of all weights, by Adam in NumPy; masked queries do not count."""
    task = one(ragged())
    x, y, queries = arrays(task)
    shown = np.asarray(task.query.mask)

    def loss(params):
        shares = jax.nn.softmax(scores(params, x))
        lost = -jnp.log(shares[np.arange(len(y)), y]).mean()
        shares = jax.nn.softmax(scores(params, queries[shown]))
        return lost - WEIGHT * (shares * jnp.log(shares)).sum(-1).mean()

    params = {**weights(), "V": jnp.asarray(means_of(task)), "c": jnp.zeros((1, WAYS))}
    slope = jax.jit(jax.grad(loss))
    params = jax.tree.map(np.asarray, params)
    first, second = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    for step in (1, 2):
        grads = jax.tree.map(np.asarray, slope(params))
        for name, g in grads.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            way = first[name] / (1 - 0.9**step)
            size = np.sqrt(second[name] / (1 - 0.999**step)) + EPS
            params[name] = params[name] - RATE * way / size
    found, alone = run(make(num_steps=2), task)
    close(found, scores(params, queries))
    assert np.abs(found[0] - alone[0]).max() > 1e-3  # the other queries tell of it


def test_without_the_entropy_no_query_tells_of_another():
    """And the steps are those on the support set, which move what it is about."""
    task = one(ragged())
    found, alone = run(make(num_steps=2, entropy_weight=0.0), task)
    close(found[:1], alone)
    before = {**weights(), "V": means_of(task), "c": np.zeros((1, WAYS))}
    assert np.abs(found - scores(before, task.query.x)).max() > 1e-3


def test_absent_classes_never_win_and_leave_numbers_finite():
    task = one(ragged())
    mask = task.support.mask & (task.support.y != 1)
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=mask)
    found, _ = run(make(num_steps=2), ml.Task(support=support, query=task.query))
    assert np.isfinite(found).all() and (found[:, 1] < -1e8).all()


def test_options_are_checked():
    with pytest.raises(ValueError, match="entropy_weight is -1; expected a finite number"):
        make(entropy_weight=-1)
    with pytest.raises(TypeError, match="decides norm itself"):
        make(norm="batch")
