"""Feature map reconstruction against loops of least squares in NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, numpy_tasks, wide_blobs
from tiny import WAYS

import metalearn as ml

pytestmark = pytest.mark.usefixtures("x64")

SIDE, NUM = 2, 6
LABELS = np.array([2, 0, 0, 2, 3, 3])  # two, one and one of them seen, and none of class 1
MASK = np.array([True, True, False, True, True, False])
HEAD = {"alpha": -0.7, "beta": 0.2, "gamma": 1.3}


def learner_of(encode, ways, **options):
    encoder = ml.from_apply_fn(lambda key, x: jnp.ones(1), encode)
    return ml.frn(encoder, num_ways=ways, task_chunk=9, **options)


@functools.cache
def episode():
    """Logits of queries, for maps as they are."""
    learner = learner_of(lambda params, x: x, 4)

    def run(head, x, query):
        params = {"encoder": jnp.ones(1), "head": head}
        support = ml.Examples.of(x, jnp.asarray(LABELS), jnp.asarray(MASK))
        variables = ml.Variables(params=params, state={})
        return learner.predict(learner.adapt(variables, support), query)

    return jax.jit(run)


def maps(width, num=NUM):
    return np.random.default_rng(width).normal(size=(num, SIDE, SIDE, width))


def rest(places, query, head):
    """What the places `[k r, D]` of a class leave of a query `[r, D]`: mean square."""
    (size, width), query = places.shape, query.reshape(-1, places.shape[1])
    ridge = size / width * np.exp(head["alpha"]) + 1e-6
    # Ridge regression is least squares with further rows.
    left = np.concatenate([places.T, np.sqrt(ridge) * np.eye(size)])
    right = np.concatenate([query.T, np.zeros((size, len(query)))])
    weights = np.linalg.lstsq(left, right, rcond=None)[0]
    apart = query - np.exp(head["beta"]) * weights.T @ places
    return head["gamma"] * (apart**2).sum(-1).mean()


@pytest.mark.parametrize("width", [3, 40])
def test_logits_are_the_rests_of_ridge_regressions(width):
    """By a system of D channels, and by one of all places, which are fewer than 40."""
    x, query = maps(width), maps(width + 1, 2)[..., :width]
    expected = np.array(
        [
            [-rest(x[MASK & (k == LABELS)].reshape(-1, width), q, HEAD) for k in (0, 2, 3)]
            for q in query
        ]
    )
    head = jax.tree.map(jnp.asarray, HEAD)
    found = np.asarray(episode()(head, x, query))
    close(found[:, [0, 2, 3]], expected)
    assert (found[:, 1] < -1e8).all()
    turned = np.swapaxes(x, 1, 2)  # the order of places does not matter
    close(np.asarray(episode()(head, turned, query))[:, [0, 2, 3]], expected)


def test_a_class_rebuilds_its_own_maps_where_the_ridge_goes():
    x = maps(40)
    head = {
        "alpha": jnp.asarray(-60.0),
        "beta": jnp.asarray(0.0),
        "gamma": jnp.asarray(1.0),
    }
    found = np.asarray(episode()(head, x, x[[0, 1]]))
    own, other = found[[0, 1], [2, 0]], found[[0, 1], [0, 2]]
    assert (np.abs(own) < 1e-9).all() and (other < -1).all()


@pytest.mark.parametrize("places", [1, 3])
def test_loss_and_derivatives_are_those_of_the_definition(places):
    """Embeddings `[N, D]`, by the system of places; or maps of three places."""
    width, weight = 12 // places, 0.4
    shape = (-1, width) if places == 1 else (-1, 1, places, width)
    learner = learner_of(
        lambda w, x: jnp.tanh(x @ w).reshape(shape),
        WAYS,
        auxiliary=weight,
        by_root_width=True,
    )
    rng = np.random.default_rng(0)
    params = {"encoder": rng.normal(size=(4, 12)), "head": dict(HEAD)}
    way = {"encoder": rng.normal(size=(4, 12)), "head": {k: rng.normal() for k in HEAD}}

    def losses(step):
        at = jax.tree.map(lambda p, w: p + step * w, params, way)
        found = []
        for xs, ys, xq, yq in numpy_tasks():
            support, query = (
                np.tanh(x @ at["encoder"]).reshape(len(x), places, width) / width**0.5
                for x in (xs, xq)
            )
            of_class = [support[ys == k].reshape(-1, width) for k in range(WAYS)]
            logits = np.array([[-rest(s, q, at["head"]) for s in of_class] for q in query])
            shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            parts = [s / np.sqrt((support**2).sum()) for s in of_class]
            overlap = sum(
                ((parts[i] @ parts[j].T) ** 2).sum() for i in range(WAYS) for j in range(i)
            )
            found.append((-np.log(shares[np.arange(len(yq)), yq]).mean(), overlap))
        return np.mean(found, 0)

    found = grads_of(learner, params, wide_blobs())
    told = [found.metrics[k].mean() for k in ("query/loss", "auxiliary/loss")]
    close(told, list(losses(0.0)))
    slope = (losses(1e-5) - losses(-1e-5)) @ np.array([1, weight]) / 2e-5
    ours = sum(map(np.sum, jax.tree.leaves(jax.tree.map(np.multiply, found.grads, way))))
    close(ours, slope, rtol=1e-6)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="auxiliary is -1; expected a finite number of 0"):
        learner_of(lambda params, x: x, WAYS, auxiliary=-1)
