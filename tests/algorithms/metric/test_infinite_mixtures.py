"""Infinite mixture prototypes against a loop in NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, differs, grads_of, wide_blobs
from tiny import INPUTS, WAYS, one

import metalearn as ml

pytestmark = pytest.mark.usefixtures("x64")


def linear(**options):
    encoder = ml.from_apply_fn(lambda key, x: jnp.eye(INPUTS), lambda w, x: x @ w)
    return ml.infinite_mixture_prototypes(encoder, num_ways=WAYS, task_chunk=9, **options)


ALPHA, ROWS = 0.1, 10


@functools.cache
def episode():
    learner = linear()

    def run(log_sigma, support, x):
        params = {"encoder": jnp.eye(INPUTS), "head": {"log_sigma": log_sigma}}
        adapted = learner.adapt(ml.Variables(params=params, state={}), support)
        return learner.predict(adapted, x), adapted.fitted.members

    return jax.jit(run)


def predicted(sigma, x, y, query):
    """Logits of embeddings as they are, and the members of all clusters `[W + N, W]`.

    Masked rows fill the sets up, so that one program serves all tests.
    """
    more = ROWS - len(x)
    x = np.concatenate([x, np.full((more, INPUTS), 50.0)])
    support = examples(x, np.append(y, [1] * more), np.arange(ROWS) < len(y))
    full = np.concatenate([query, np.zeros((ROWS - len(query), INPUTS))])
    logits, members = episode()(jnp.asarray(np.log(sigma)), support, jnp.asarray(full))
    return np.asarray(logits)[: len(query)], np.asarray(members)


def arrays_of_blobs():
    task = one(wide_blobs())
    return task.support.x, task.support.y, task.query.x


def threshold(means, alpha, sigma):
    spread = np.var(means, axis=0, ddof=1).mean()
    return -2 * sigma * np.log(alpha / (1 + spread / sigma) ** (means.shape[1] / 2))


def mixture(x, y, alpha, sigma):
    """Shares `[N, C]` of the clusters, and the class of each."""
    classes = list(np.unique(y))
    centres = [x[y == k].mean(0) for k in classes]
    limit = threshold(np.stack(centres), alpha, sigma)
    for row, k in zip(x, y, strict=True):
        if min(((row - c) ** 2).sum() for c, j in zip(centres, classes) if j == k) > limit:
            centres.append(row)
            classes.append(k)
    apart = ((x[:, None] - np.stack(centres)) ** 2).sum(-1)
    likely = np.exp(-apart / (2 * sigma)) * (y[:, None] == np.array(classes))
    return likely / likely.sum(-1, keepdims=True), np.array(classes)


def logits_of(shares, classes, x, query, sigma):
    centres = shares.T @ x / shares.sum(0)[:, None]
    near = -((query[:, None] - centres) ** 2).sum(-1) / (2 * sigma)
    return np.stack([near[:, classes == k].max(-1) for k in np.unique(classes)], -1)


def centred(logits):
    return logits - logits.mean(-1, keepdims=True)


def split_support():
    """Six examples of class 0, in three pairs far from one another, and two of class 2."""
    rng = np.random.default_rng(0)
    far = np.repeat([[0.0] * 4, [12.0, 0, 0, 0], [0, 12.0, 0, 0]], 2, 0)
    x = np.concatenate([far, [[0, 0, 5.0, 0], [0, 0, 5.5, 0]]])
    return x + 0.3 * rng.normal(size=x.shape), np.array([0] * 6 + [2] * 2)


def examples(x, y, mask=None):
    mask = np.ones(len(y), bool) if mask is None else mask
    y = jnp.asarray(y, jnp.int32)
    return ml.Examples(x=jnp.asarray(x), y=y, mask=jnp.asarray(mask))


def test_examples_far_from_all_clusters_of_their_class_open_one():
    x, y = split_support()
    query = 4 * np.random.default_rng(1).normal(size=(5, INPUTS))
    logits, members = predicted(1.5, x, y, query)
    shares, classes = mixture(x, y, ALPHA, 1.5)
    # One for each pair, and the mean of the class, which keeps a share of none.
    assert (np.bincount(classes) == [4, 0, 1]).all()
    keep = shares.sum(0) > 1e-3
    assert keep.sum() == 4 and (members.sum(0) == [3, 0, 1]).all()
    expected = logits_of(shares[:, keep], classes[keep], x, query, 1.5)
    close(centred(logits[:, [0, 2]]), centred(expected))
    assert (logits[:, 1] < -1e8).all()


def test_which_clusters_are_opened_depends_on_the_order():
    """Of three examples in a row the middle one, if first, stands for all."""
    x = np.zeros((8, INPUTS))
    x[:3, 0] = [20.0, 25.0, 15.0]
    x[3:6, 0] = -20  # so that the mean is far away
    x[6:, 1] = 20
    y = np.array([0] * 6 + [1, 2])
    opened = []
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 2, 3, 4, 5, 6, 7]):
        _, members = predicted(1.5, x[order], y[order], x)
        opened.append(members[WAYS:, 0].sum())
    assert 5**2 < threshold(np.array([[0.0] * 4, x[6], x[7]]), ALPHA, 1.5) < 10**2
    assert opened == [2, 3]


def test_without_new_clusters_it_is_protonet_with_half_the_precision_as_scale():
    x, y, query = (np.asarray(a) for a in arrays_of_blobs())
    found, members = predicted(1e4, x, y, query)
    means = np.stack([x[y == k].mean(0) for k in range(WAYS)])
    close(found, (2 * query @ means.T - (means**2).sum(-1)) / 2e4)
    assert members.sum() == WAYS


def test_with_small_clusters_it_is_the_nearest_neighbour():
    x, y, query = (np.asarray(a) for a in arrays_of_blobs())
    found, members = predicted(1e-5, x, y, query)
    apart = ((query[:, None] - x) ** 2).sum(-1).reshape(-1, WAYS, 2).min(-1)
    close(centred(2e-5 * found), centred(-apart))
    assert members.sum() == 2 * WAYS


def test_one_class_alone_has_no_spread():
    x, y, query = arrays_of_blobs()
    found, members = predicted(1e-5, x[:2], y[:2], query)
    assert np.isfinite(found).all() and (found.argmax(-1) == 0).all()
    assert members.sum() == 2  # a threshold that is not a number opens none


def test_shares_and_threshold_are_held_in_training():
    """The gradient by finite differences of the loss with held shares, in NumPy."""
    alpha, sigma = 0.3, 0.4
    x, y = split_support()
    x = x / 5
    rng = np.random.default_rng(5)
    query, answers = rng.normal(size=(6, INPUTS)), np.array([0, 2, 0, 2, 0, 0])
    task = ml.Task(support=examples(x, y), query=examples(query, answers))
    w, way = np.eye(INPUTS) + 0.1 * rng.normal(size=(2, INPUTS, INPUTS))
    shares, classes = mixture(x @ w, y, alpha, sigma)
    assert len(classes) > 2 and (shares.sum(0) > 1e-3).all()
    assert ((shares > 0.01) & (shares < 0.99)).any()

    def loss(step, rate):
        now, s = w + step * way, np.exp(np.log(sigma) + step * rate)
        logits = logits_of(shares, classes, x @ now, query @ now, s)
        found = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return -np.log(found[np.arange(6), answers // 2]).mean()

    params = {"encoder": w, "head": {"log_sigma": np.log(sigma)}}
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    found = grads_of(linear(alpha=alpha), params, batch)
    close(found.metrics["query/loss"][0], loss(0, 0))
    for rate in (0.0, 1.0):
        along = np.sum(found.grads["encoder"] * way)
        along += rate * found.grads["head"]["log_sigma"]
        close(along, (loss(1e-6, rate) - loss(-1e-6, rate)) / 2e-6, rtol=1e-6)
    assert differs(found.grads["head"]["log_sigma"], 0.0)


def test_the_variance_is_learned_from_the_given_one_on():
    variables = jax.jit(linear(sigma=7.0).init)(jax.random.key(0), one(wide_blobs()))
    close(np.exp(variables.params["head"]["log_sigma"]), 7.0)


@pytest.mark.parametrize("name", ["alpha", "sigma"])
def test_options_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; expected a finite number above 0"):
        linear(**{name: 0})
