"""Prototypical networks in closed form, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, numpy_tasks, wide_blobs
from tiny import WAYS, one

import metalearn as ml

pytestmark = pytest.mark.usefixtures("x64")


def identity_protonet(ways=WAYS, offset=0.0, **options):
    encoder = ml.from_apply_fn(
        lambda key, x: {"unused": jnp.zeros(1)}, lambda params, x: x + offset
    )
    return ml.protonet(encoder, num_ways=ways, **options)


def logits_of(learner, task):
    variables = ml.Variables(params={"unused": jnp.zeros(1)}, state={})
    episode = lambda s, x: learner.predict(learner.adapt(variables, s), x)
    return np.asarray(jax.jit(episode)(task.support, task.query.x))


def test_protonet_is_a_linear_classifier_and_a_distance():
    """`w_k = 2 c_k`, `b_k = -|c_k|^2`; both equal `-|f - c|^2` up to a row constant."""
    task = one(wide_blobs())
    x, y = np.asarray(task.support.x), np.asarray(task.support.y)
    query = np.asarray(task.query.x)
    means = np.stack([x[y == k].mean(0) for k in range(WAYS)])
    centre = lambda rows: rows - rows.mean(-1, keepdims=True)
    found = centre(logits_of(identity_protonet(), task))
    close(found, centre(2 * query @ means.T - (means**2).sum(-1)))
    close(found, centre(-((query[:, None] - means) ** 2).sum(-1)))


def test_protonet_with_one_shot_is_the_nearest_neighbour():
    task = one(wide_blobs())
    rows = np.array([0, 2, 4])
    support = jax.tree.map(lambda leaf: leaf[rows], task.support)
    found = logits_of(identity_protonet(), ml.Task(support=support, query=task.query))
    apart = np.asarray(task.query.x)[:, None] - np.asarray(support.x)
    nearest = np.asarray(support.y)[(apart**2).sum(-1).argmin(-1)]
    assert (found.argmax(-1) == nearest).all()


def test_protonet_ignores_a_shift_of_all_embeddings():
    task = one(wide_blobs())
    found = [
        np.asarray(jax.nn.log_softmax(logits_of(identity_protonet(offset=o), task)))
        for o in (0.0, 3.0)
    ]
    close(*found)


def test_protonet_with_ragged_classes_equals_a_loop():
    task = one(wide_blobs())
    mask = jnp.array([True, False, True, True, False, False])  # 1, 2 and 0 shots
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=mask)
    found = logits_of(identity_protonet(), ml.Task(support=support, query=task.query))
    x, y, keep = (np.asarray(a) for a in (support.x, support.y, mask))
    for k in (0, 1):
        mean = np.mean([x[i] for i in range(6) if keep[i] and y[i] == k], axis=0)
        close(found[:, k], 2 * np.asarray(task.query.x) @ mean - mean @ mean)
    assert (found[:, 2] < -1e8).all()


def test_scale_multiplies_the_distances_and_never_revives_an_absent_class():
    task = one(wide_blobs())
    rows = np.array([0, 1, 2])  # two classes of three
    support = jax.tree.map(lambda leaf: leaf[rows], task.support)
    cut = ml.Task(support=support, query=task.query)
    plain, wide = (logits_of(identity_protonet(scale=s), cut) for s in (1.0, 0.25))
    close(wide[:, :2], 0.25 * plain[:, :2])
    assert (wide[:, 2] < -1e8).all() and (plain[:, 2] < -1e8).all()


def test_prototypes_learn_as_centres_and_as_queries():
    """The gradient of the encoder by finite differences of the loss, in NumPy."""
    encoder = ml.from_apply_fn(
        lambda key, x: jnp.ones((4, 5)), lambda w, x: jnp.tanh(x @ w)
    )
    learner = ml.protonet(encoder, num_ways=WAYS, scale=0.3, task_chunk=9)
    rng = np.random.default_rng(0)
    w, way = rng.normal(size=(2, 4, 5))

    def loss(w):
        losses = []
        for xs, ys, xq, yq in numpy_tasks():
            support, query = np.tanh(xs @ w), np.tanh(xq @ w)
            means = np.stack([support[ys == k].mean(0) for k in range(WAYS)])
            logits = -0.3 * ((query[:, None] - means) ** 2).sum(-1)
            shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            losses.append(-np.log(shares[np.arange(len(yq)), yq]).mean())
        return np.mean(losses)

    found = grads_of(learner, w, wide_blobs())
    close(found.metrics["query/loss"].mean(), loss(w))
    difference = (loss(w + 1e-6 * way) - loss(w - 1e-6 * way)) / 2e-6
    close(np.sum(found.grads * way), difference, rtol=1e-7)
