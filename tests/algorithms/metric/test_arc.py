"""Attentive comparators against loops over pairs and glimpses in NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, numpy_tasks, wide_blobs
from tiny import WAYS

import metalearn as ml
from metalearn.algorithms.metric.arc import _filters

pytestmark = pytest.mark.usefixtures("x64")

ROUNDS, GLIMPSE, HIDDEN, MAP = 2, 2, 3, (3, 4, 2)
LABELS = np.array([2, 0, 0, 2, 3, 3])  # two, one and one of them seen, and none of class 1
MASK = np.array([True, True, False, True, True, False])


def learner_of(encode, ways=WAYS, **options):
    encoder = ml.from_apply_fn(lambda key, x: jnp.ones(1), encode)
    options = {"num_glimpses": ROUNDS, "glimpse": GLIMPSE, "hidden": HIDDEN, **options}
    return ml.attentive_recurrent_comparator(
        encoder, num_ways=ways, task_chunk=9, **options
    )


def head_of(shape, context=False, seed=0):
    """Parameters of any values, of the shapes of a new learner."""
    x = jnp.zeros((1, *shape))
    like = ml.Examples.of(x, jnp.zeros(1, jnp.int32))
    learner = learner_of(lambda w, x: x, context=context)
    task = ml.Task(support=like, query=like)
    made = jax.eval_shape(learner.init, jax.random.key(0), task)
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda leaf: draw(size=leaf.shape), made.params["head"])


def filters(centre, zoom, size, num):
    stride, width = size / num * (1 - abs(zoom)), np.exp(1 - 2 * abs(zoom))
    found = np.zeros((num, size))
    for i in range(num):
        at = (size - 1) * (centre + 1) / 2 + stride * (i - (num - 1) / 2)
        for a in range(size):
            found[i, a] = 1 / (np.pi * width * (1 + ((a - at) / width) ** 2))
    return found / found.sum(-1, keepdims=True)


def lstm(p, h, c, x):
    i, f, g, o = np.split(x @ p["input"] + h @ p["recurrent"] + p["bias"], 4)
    gate = lambda z: 1 / (1 + np.exp(-z))
    c = gate(f) * c + gate(i) * np.tanh(g)
    return gate(o) * np.tanh(c), c


def state_of(head, query, example):
    """The last state of a pair of maps, the query first."""
    h = c = np.zeros(HIDDEN)
    for image in [query, example] * ROUNDS:
        a, b, z = np.tanh(h @ head["attention"]["w"] + head["attention"]["b"])
        rows = filters(a, z, image.shape[0], min(GLIMPSE, image.shape[0]))
        columns = filters(b, z, image.shape[1], min(GLIMPSE, image.shape[1]))
        channels = [rows @ image[..., k] @ columns.T for k in range(image.shape[-1])]
        h, c = lstm(head["cell"], h, c, np.stack(channels, -1).ravel())
    return h


def similarity(head, state):
    return (state @ head["similarity"]["w"] + head["similarity"]["b"])[0]


def logits_of(head, support, labels, query):
    """Logits of the classes that are there, each pair by itself."""
    found = []
    for k in np.unique(labels):
        each = [similarity(head, state_of(head, query, x)) for x in support[labels == k]]
        found.append(np.mean(each))
    return found


def joint_logits(head, support, labels, query):
    """The same in full context."""
    states = [
        np.mean([state_of(head, query, x) for x in support[labels == k]], 0)
        for k in np.unique(labels)
    ]

    def read(cell, states):
        h = c = np.zeros(HIDDEN)
        path = []
        for state in states:
            h, c = lstm(cell, h, c, state)
            path.append(h)
        return path

    forward, backward = read(head["forward"], states), read(head["backward"], states[::-1])
    pairs = zip(forward, backward[::-1], strict=True)
    return [similarity(head, np.concatenate(pair)) for pair in pairs]


@functools.cache
def episode(context):
    learner = learner_of(lambda params, x: x, 4, context=context)

    def run(head, x, query):
        support = ml.Examples.of(x, jnp.asarray(LABELS), jnp.asarray(MASK))
        variables = ml.Variables(params={"encoder": jnp.ones(1), "head": head}, state={})
        return learner.predict(learner.adapt(variables, support), query)

    return jax.jit(run)


@pytest.mark.parametrize("context", [False, True])
def test_logits_are_those_of_a_loop_over_pairs(context):
    rng, head = np.random.default_rng(0), head_of(MAP, context)
    x, query = rng.normal(size=(6, *MAP)), rng.normal(size=(2, *MAP))
    reference = joint_logits if context else logits_of
    expected = [reference(head, x[MASK], LABELS[MASK], q) for q in query]
    found = np.asarray(episode(context)(head, x, query))
    close(found[:, [0, 2, 3]], np.array(expected))
    assert (found[:, 1] < -1e8).all()


def test_filters_are_cauchy_kernels_that_sum_to_one():
    rng = np.random.default_rng(0)
    centre, zoom = rng.uniform(-1, 1, size=(2, 3, 2))
    found = np.asarray(jax.jit(lambda c, z: _filters(c, z, 7, 3))(centre, zoom))
    assert found.shape == (3, 2, 3, 7)
    close(found.sum(-1), np.ones((3, 2, 3)))
    for place in np.ndindex(3, 2):
        close(found[place], filters(centre[place], zoom[place], 7, 3))


def test_a_glimpse_as_large_as_the_image_samples_all_of_it():
    """Point i sees pixel i best; where points meet, all see the middle."""
    zooms = np.array([0.0, -1.0])
    whole, near = np.asarray(jax.jit(lambda z: _filters(0 * z, z, 5, 5))(zooms))
    assert (whole.argmax(-1) == np.arange(5)).all()
    close(whole, whole[::-1, ::-1])
    close(near, np.tile(near[2], (5, 1)))
    assert near[0, 2] > 2 * near[0, 1]


def test_loss_and_derivatives_are_those_of_the_definition():
    """Embeddings `[N, D]`, which are images of one row."""
    learner = learner_of(lambda w, x: jnp.tanh(x @ w))
    rng, size = np.random.default_rng(0), (5,)
    params = {"encoder": rng.normal(size=(4, 5)), "head": head_of(size)}
    way = {"encoder": rng.normal(size=(4, 5)), "head": head_of(size, seed=1)}

    def loss(step):
        at, losses = jax.tree.map(lambda p, w: p + step * w, params, way), []
        for xs, ys, xq, yq in numpy_tasks():
            support, query = (
                np.tanh(x @ at["encoder"])[:, None, :, None] for x in (xs, xq)
            )
            logits = np.array([logits_of(at["head"], support, ys, q) for q in query])
            shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            losses.append(-np.log(shares[np.arange(len(yq)), yq]).mean())
        return np.mean(losses)

    found = grads_of(learner, params, wide_blobs())
    close(found.metrics["query/loss"].mean(), loss(0.0))
    ours = sum(map(np.sum, jax.tree.leaves(jax.tree.map(np.multiply, found.grads, way))))
    close(ours, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-6)


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="glimpse is 0; expected an integer of 1 or more"):
        learner_of(lambda w, x: x, glimpse=0)
