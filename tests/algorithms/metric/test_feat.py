"""FEAT against its equations in NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, numpy_tasks, wide_blobs
from tiny import WAYS

import metalearn as ml
from metalearn.algorithms.metric.feat import _dropping

pytestmark = pytest.mark.usefixtures("x64")

SIZE = 3
LABELS = np.array([2, 0, 0, 2, 3, 3])  # two, one and one of them seen, and none of class 1
MASK = np.array([True, True, False, True, True, False])


def learner_of(encode, ways=WAYS, **options):
    encoder = ml.from_apply_fn(lambda key, x: jnp.ones(1), encode)
    return ml.feat(encoder, num_ways=ways, task_chunk=9, **options)


def head_of(seed=0):
    draw = np.random.default_rng(seed).normal
    parts = {k: draw(size=(SIZE, SIZE)) for k in ("query", "key", "value", "output")}
    return {**parts, "norm": {"scale": draw(size=SIZE), "bias": draw(size=SIZE)}}


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def block(p, rows, drop=1):
    scores = (rows @ p["query"]) @ (rows @ p["key"]).T / np.sqrt(rows.shape[-1])
    x = rows + softmax(scores) @ (rows @ p["value"]) @ p["output"] * drop
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * p["norm"]["scale"] + p["norm"]["bias"]


def distances(x, centres):
    return ((x[:, None] - centres) ** 2).sum(-1)


@functools.cache
def episode(metric):
    """Prototypes and logits, for embeddings as they are."""
    learner = learner_of(lambda params, x: x, 4, metric=metric, temperature=2.5)

    def run(head, x, mask, query):
        params = {"encoder": jnp.ones(1), "head": head}
        support = ml.Examples.of(x, jnp.asarray(LABELS), mask)
        adapted = learner.adapt(ml.Variables(params=params, state={}), support)
        return adapted.fitted, learner.predict(adapted, query)

    return jax.jit(run)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_prototypes_of_a_task_attend_to_one_another(metric):
    rng = np.random.default_rng(1)
    x, query, head = rng.normal(size=(6, SIZE)), rng.normal(size=(2, SIZE)), head_of()
    seen = [0, 2, 3]
    means = np.stack([x[MASK & (k == LABELS)].mean(0) for k in seen])
    prototypes, logits = map(np.asarray, episode(metric)(head, x, jnp.asarray(MASK), query))
    expected = block(head, means)
    close(prototypes[seen], expected)
    assert (logits[:, 1] < -1e8).all()
    if metric == "cosine":
        lengths = np.sqrt((expected**2).sum(-1))
        close(logits[:, seen], query @ expected.T / lengths / 2.5)
    else:
        centre = lambda rows: rows - rows.mean(-1, keepdims=True)
        close(centre(logits[:, seen]), centre(-distances(query, expected) / 2.5))


def test_what_attention_adds_has_its_limits():
    """Without it the means are normalised; a class alone attends to itself."""
    x, query = np.random.default_rng(1).normal(size=(6, SIZE)), np.zeros((2, SIZE))
    head, mask = head_of(), jnp.asarray(MASK)
    none = {**head, "output": np.zeros((SIZE, SIZE))}
    mean = x[[0, 3]].mean(0)
    spread = np.sqrt(mean.var() + 1e-5)
    expected = (mean - mean.mean()) / spread * head["norm"]["scale"] + head["norm"]["bias"]
    close(episode("euclidean")(none, x, mask, query)[0][2], expected)
    alone = jnp.asarray(MASK & (LABELS == 3))
    added = {**none, "output": np.eye(SIZE), "value": head["value"] @ head["output"]}
    found = [episode("euclidean")(h, x, alone, query)[0][3] for h in (head, added)]
    close(found, [block(head, x[4:5])[0]] * 2)


WEIGHT, TEMPERATURES = 0.7, (2.0, 3.0)


@functools.cache
def trained(**options):
    """What an estimate says at parameters of any values, and a direction of theirs."""
    learner = learner_of(
        lambda w, x: jnp.tanh(x @ w),
        temperature=TEMPERATURES[0],
        auxiliary_temperature=TEMPERATURES[1],
        **options,
    )
    draw = np.random.default_rng(0).normal
    params = {"encoder": draw(size=(4, SIZE)), "head": head_of(1)}
    way = {"encoder": draw(size=(4, SIZE)), "head": head_of(2)}
    found = grads_of(learner, params, wide_blobs())
    slope = jax.tree.map(lambda g, w: np.sum(g * w), found.grads, way)
    return found.metrics, sum(jax.tree.leaves(slope)), params, way


def cross_entropy(logits, y):
    return -np.log(softmax(logits)[np.arange(len(y)), y]).mean()


def losses(params, drops=np.ones((3, WAYS + 12, SIZE))):  # noqa: B008
    """The loss of the queries and the auxiliary one.

    With factors `[T, W + N + Q, SIZE]` of what attention adds to classes and examples.
    """
    found = []
    for (xs, ys, xq, yq), drop in zip(numpy_tasks(), drops, strict=True):
        support, query = (np.tanh(x @ params["encoder"]) for x in (xs, xq))
        both, y = np.concatenate([support, query]), np.concatenate([ys, yq])
        means = [support[ys == k].mean(0) for k in range(WAYS)]
        prototypes = block(params["head"], np.stack(means), drop[:WAYS])
        centres = [
            block(params["head"], both[y == k], drop[WAYS:][y == k]).mean(0)
            for k in range(WAYS)
        ]
        first = cross_entropy(-distances(query, prototypes) / TEMPERATURES[0], yq)
        second = cross_entropy(-distances(both, np.stack(centres)) / TEMPERATURES[1], y)
        found.append((first, second))
    return np.mean(found, 0)


def slopes(params, way, *drops):
    at = lambda step: losses(jax.tree.map(lambda p, w: p + step * w, params, way), *drops)
    return (at(1e-5) - at(-1e-5)) / 2e-5


def test_loss_and_derivatives_are_those_of_the_definition():
    told, slope, params, way = trained(auxiliary=WEIGHT, dropout=0.0)
    names = ("query/loss", "auxiliary/loss")
    close([told[name].mean() for name in names], list(losses(params)))
    close(slope, slopes(params, way) @ np.array([1, WEIGHT]), rtol=1e-6)


def test_dropout_is_of_training_and_moves_no_report():
    """The report is that without noise; the loss of training is not."""
    told, slope, params, way = trained(auxiliary=WEIGHT, dropout=0.5)
    close(told["query/loss"].mean(), losses(params)[0])
    keys = [jax.random.split(k, 3)[2] for k in jax.random.split(jax.random.key(0), 3)]
    drops = np.stack([_dropping(k, (WAYS, 6, 6), np.ones((1, SIZE)), 0.5) for k in keys])
    assert (drops == 0).any() and (drops == 2).any()
    close(told["auxiliary/loss"].mean(), losses(params, drops)[1])
    close(slope, slopes(params, way, drops) @ np.array([1, WEIGHT]), rtol=1e-6)


def test_without_its_weight_the_auxiliary_loss_is_not_computed():
    learner = learner_of(lambda w, x: jnp.tanh(x @ w), auxiliary=0.0)
    params = {"encoder": jnp.ones((4, SIZE)), "head": head_of(1)}
    variables = ml.Variables(params=params, state={})
    run = lambda v, t: learner.estimate(v, t, key=jax.random.key(0))
    found = jax.eval_shape(run, variables, wide_blobs())
    assert set(found.metrics) == {"query/loss", "query/accuracy"}


def test_rows_are_dropped_by_their_own_numbers():
    drop = functools.partial(_dropping, jax.random.key(0), rate=0.25)
    few, more = drop((2, 500), like=np.zeros((1, 8))), drop((3, 500), like=np.zeros((1, 8)))
    np.testing.assert_array_equal(few[:2], more[:2])
    np.testing.assert_array_equal(few[2:], more[3:])  # another set's rows move nothing
    kept = np.asarray(few) > 0
    close(np.asarray(few)[kept], np.full(kept.sum(), 1 / 0.75))
    assert abs(kept.mean() - 0.75) < 0.03
    assert not (kept[:2] == kept[2:4]).all()
