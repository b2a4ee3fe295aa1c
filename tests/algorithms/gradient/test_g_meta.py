"""G-Meta by finite differences of the paper's formulas in NumPy, and in its limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import compiled

import metalearn as ml

RATE, STEPS, WAYS = 0.3, 2, 2
x64 = pytest.mark.usefixtures("x64")


def _encoder():
    """`tanh(x A) B`."""

    def init(key, x):
        k_first, k_second = jax.random.split(key)
        return {
            "a": jax.random.normal(k_first, (3, 2)),
            "b": jax.random.normal(k_second, (2, 2)),
        }

    return ml.from_apply_fn(init, lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"])


def _task(mask=None):
    rng = np.random.default_rng(0)

    def part(labels, mask=None):
        y = jnp.asarray(labels)
        x = jnp.asarray(rng.normal(size=(len(labels), 3))) + y[:, None]
        return ml.Examples.of(x, y, mask)

    return ml.Task(support=part([0, 1, 1, 0], mask), query=part([1, 0, 1]))


def _learner(**options):
    options = {"num_steps": STEPS, "inner_opt": optax.sgd(RATE), **options}
    return compiled(ml.g_meta(_encoder(), num_ways=WAYS, **options))


def _loss(params, means_of, x, y):
    """Prototypical loss of rows by the class means of others, all embedded, in NumPy."""
    embed = lambda rows: np.tanh(rows @ params["a"]) @ params["b"]
    rows, labels = means_of
    means = np.stack([embed(rows)[labels == c].mean(0) for c in range(WAYS)])
    logits = -np.square(embed(x)[:, None] - means[None]).sum(-1)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return -logits[np.arange(len(y)), y].mean()


def _slope(fn, params):
    found = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    for name, leaf in params.items():
        for place in np.ndindex(leaf.shape):
            moved = []
            for sign in (1, -1):
                copy = {**params, name: leaf.copy()}
                copy[name][place] += sign * 1e-4
                moved.append(fn(copy))
            found[name][place] = (moved[0] - moved[1]) / 2e-4
    return found


def _by_hand(params, task, rate=RATE, steps=STEPS):
    """Query loss after the inner steps."""
    support = tuple(map(np.asarray, (task.support.x, task.support.y)))
    for _ in range(steps):
        slope = _slope(lambda p: _loss(p, support, *support), params)
        params = {name: leaf - rate * slope[name] for name, leaf in params.items()}
    return _loss(params, support, np.asarray(task.query.x), np.asarray(task.query.y))


@x64
def test_the_outer_gradient_is_of_second_order():
    task, learner = _task(), _learner()
    variables = learner.init(jax.random.key(1), task)
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    found = learner.estimate(variables, batch, key=jax.random.key(0))
    params = jax.tree.map(np.asarray, variables.params["model"])
    expected = _by_hand(params, task)
    np.testing.assert_allclose(found.metrics["query/loss"][0], expected, rtol=1e-5)
    slope = _slope(lambda p: _by_hand(p, task), params)
    grads = found.grads["model"]
    for name in params:
        np.testing.assert_allclose(grads[name], slope[name], rtol=1e-4, atol=1e-5)
    first = _learner(differentiation="first_order")
    cut = first.estimate(variables, batch, key=jax.random.key(0)).grads["model"]
    assert np.abs(cut["a"] - grads["a"]).max() > 1e-2


@x64
def test_what_it_predicts_is_what_it_is_trained_on():
    """Means are of the weights after the last step, in `predict` as in the objective."""
    task, learner = _task(), _learner()
    variables = learner.init(jax.random.key(1), task)
    adapted = learner.adapt(variables, task.support)
    loss = ml.losses.cross_entropy(learner.predict(adapted, task.query.x), task.query)
    params = jax.tree.map(np.asarray, variables.params["model"])
    np.testing.assert_allclose(loss, _by_hand(params, task), rtol=1e-5)
    moved = jax.tree.map(np.asarray, adapted.params)
    embedded = np.tanh(np.asarray(task.support.x) @ moved["a"]) @ moved["b"]
    labels = np.asarray(task.support.y)
    means = [embedded[labels == c].mean(0) for c in range(WAYS)]
    np.testing.assert_allclose(adapted.info, np.stack(means), rtol=1e-9)


@x64
def test_without_a_step_it_is_a_prototypical_network():
    task, still = _task(), _learner(num_steps=0, scale=0.7)
    proto = compiled(ml.protonet(_encoder(), num_ways=WAYS, scale=0.7))
    variables = still.init(jax.random.key(1), task)
    bare = ml.Variables(params=variables.params["model"], state={})
    outputs = still.predict(still.adapt(variables, task.support), task.query.x)
    expected = proto.predict(proto.adapt(bare, task.support), task.query.x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    key = jax.random.key(0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        still.estimate(variables, batch, key=key).grads["model"],
        proto.estimate(bare, batch, key=key).grads,
    )


@x64
def test_masked_rows_and_absent_classes_do_not_count():
    task, learner = _task(jnp.asarray([True, True, False, True])), _learner()
    variables = learner.init(jax.random.key(1), task)
    spoilt = task.support.x.at[2].set(30.0)
    y = task.support.y.at[2].set(0)
    support = ml.Examples.of(spoilt, y, task.support.mask)
    kept = ml.Examples.of(task.support.x[jnp.asarray([0, 1, 3])], jnp.asarray([0, 1, 0]))
    told = [
        learner.predict(learner.adapt(variables, part), task.query.x)
        for part in (support, kept)
    ]
    np.testing.assert_allclose(*told, rtol=1e-9)
    grads = learner.estimate(
        variables,
        jax.tree.map(
            lambda leaf: leaf[None],
            ml.Task(support=support, query=task.query, info=task.info),
        ),
        key=jax.random.key(0),
    ).grads
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    alone = ml.Examples.of(task.support.x[:1], task.support.y[:1])
    outputs = learner.predict(learner.adapt(variables, alone), task.query.x)
    assert (outputs.argmax(1) == 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"scale": 0.0}, "scale is 0.0"), ({"num_steps": -1}, "num_steps is -1")],
)
def test_options_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        _learner(**options)
    with pytest.raises(ValueError, match="num_ways is 1"):
        ml.g_meta(_encoder(), optax.sgd(0.1), num_ways=1)
