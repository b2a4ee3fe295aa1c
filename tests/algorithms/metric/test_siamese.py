"""Siamese networks against loops over pairs in NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, wide_blobs
from tiny import INPUTS, WAYS, one

import metalearn as ml

pytestmark = pytest.mark.usefixtures("x64")

BIAS = 0.3
ONE_SHOT = np.array([True, False] * WAYS)


def linear():
    encoder = ml.from_apply_fn(lambda key, x: jnp.eye(INPUTS), lambda w, x: x @ w)
    return ml.siamese_network(encoder, num_ways=WAYS, task_chunk=9)


@functools.cache
def episode():
    """`(weights, support, x) -> logits` of embeddings as they are, in one program."""
    learner = linear()

    def run(weights, support, x):
        head = {"weights": weights, "bias": jnp.asarray(BIAS)}
        variables = ml.Variables(
            params={"encoder": jnp.eye(INPUTS), "head": head}, state={}
        )
        return learner.predict(learner.adapt(variables, support), x)

    return lambda weights, *rest: np.asarray(jax.jit(run)(jnp.asarray(weights), *rest))


def masked(support, mask):
    return ml.Examples(x=support.x, y=support.y, mask=jnp.asarray(mask))


def test_probability_is_symmetric_and_that_of_an_example_with_itself_is_the_bias():
    task = one(wide_blobs())
    weights = np.random.default_rng(0).normal(size=INPUTS)
    x = np.asarray(task.support.x)
    # One shot of each class: the logits of the examples themselves are all pairs.
    pairs = episode()(weights, masked(task.support, ONE_SHOT), x)[ONE_SHOT]
    close(pairs, pairs.T)
    assert (np.diag(pairs) == BIAS).all()
    close(pairs[0, 1], weights @ np.abs(x[0] - x[2]) + BIAS)


def test_with_weights_of_minus_one_the_nearest_neighbour_in_l1_wins():
    task = one(wide_blobs())
    # The first query is nearer to the second class in L1, to the first in L2.
    rows = jnp.asarray([[1.0, 1, 1, 1], [3.0, 0, 0, 0], [0.0, 5, 5, 0]])
    support = ml.Examples.of(jnp.repeat(rows, 2, 0), task.support.y)
    query = task.query.x.at[0].set(0)
    found = episode()(-np.ones(INPUTS), masked(support, ONE_SHOT), query)
    nearest = np.abs(np.asarray(query)[:, None] - np.asarray(rows)).sum(-1).argmin(-1)
    assert (found.argmax(-1) == nearest).all() and nearest[0] == 1


def test_a_new_learner_is_that_nearest_neighbour():
    variables = jax.jit(linear().init)(jax.random.key(0), one(wide_blobs()))
    close(variables.params["head"]["weights"], np.full(INPUTS, -1 / INPUTS))
    assert variables.params["head"]["bias"] == 0


def test_the_logit_of_a_class_is_the_mean_over_its_shots():
    task = one(wide_blobs())
    mask = np.array([True, True, False, True, False, False])  # 2, 1 and 0 shots
    weights = np.random.default_rng(1).normal(size=INPUTS)
    found = episode()(weights, masked(task.support, mask), task.query.x)
    apart = np.abs(np.asarray(task.query.x)[:, None] - np.asarray(task.support.x))
    z = apart @ weights + BIAS
    close(found[:, 0], (z[:, 0] + z[:, 1]) / 2)
    close(found[:, 1], z[:, 3])
    assert (found[:, 2] < -1e8).all()


def test_the_loss_weighs_pairs_of_one_class_and_of_two_alike():
    """Over all pairs of a task, each once; the gradient by finite differences, in NumPy."""
    tasks = wide_blobs()
    support = np.array([True, True, False, True, False, True])
    query = np.array([True, False, True, True, True, False])
    hidden = ml.Task(
        support=masked(tasks.support, np.tile(support, (3, 1))),
        query=masked(tasks.query, np.tile(query, (3, 1))),
    )
    rng = np.random.default_rng(2)
    params = {
        "encoder": rng.normal(size=(INPUTS, INPUTS)),
        "head": {"weights": rng.normal(size=INPUTS), "bias": np.asarray(BIAS)},
    }
    way = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), params)

    def loss(step):
        now = jax.tree.map(lambda a, b: a + step * b, params, way)
        values = []
        for t in range(3):
            x = np.concatenate([tasks.support.x[t][support], tasks.query.x[t][query]])
            y = np.concatenate([tasks.support.y[t][support], tasks.query.y[t][query]])
            rows, found = x @ now["encoder"], {True: [], False: []}
            for i in range(len(y)):
                for j in range(i):
                    z = now["head"]["weights"] @ np.abs(rows[i] - rows[j])
                    z, alike = z + now["head"]["bias"], y[i] == y[j]
                    found[bool(alike)].append(np.log1p(np.exp(-z if alike else z)))
            values.append((np.mean(found[True]) + np.mean(found[False])) / 2)
        return np.mean(values)

    found = grads_of(linear(), params, hidden)
    close(found.metrics["pairs/loss"].mean(), loss(0))
    along = sum(map(np.vdot, jax.tree.leaves(found.grads), jax.tree.leaves(way)))
    close(along, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-7)
