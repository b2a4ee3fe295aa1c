"""Prototypical networks in closed form, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, wide_blobs
from tiny import WAYS, one

import metalearn as ml

pytestmark = pytest.mark.usefixtures("x64")


def identity_protonet(ways=WAYS, offset=0.0):
    encoder = ml.from_apply_fn(
        lambda key, x: {"unused": jnp.zeros(1)}, lambda params, x: x + offset
    )
    return ml.protonet(encoder, num_ways=ways)


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
