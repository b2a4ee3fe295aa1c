"""SNAIL against the whole stream in NumPy, causality, reach and the order of the stream."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, wide_blobs
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms.memory.snail import snail

pytestmark = pytest.mark.usefixtures("x64")
SIZES = {"key_sizes": (3, 4), "value_sizes": (2, 3), "filters": 2}


def learner_encoder():
    scaled = lambda p, x: x * p["scale"][None]
    return ml.from_apply_fn(lambda key, x: {"scale": jnp.ones(4)}, scaled)


@functools.cache
def learner_of(**options):
    return snail(learner_encoder(), num_ways=WAYS, **{**SIZES, "task_chunk": 9, **options})


@functools.cache
def params_of(**options):
    """Params for a stream of six steps and a query, with biases that are not zero."""
    task = one(wide_blobs())
    init = lambda key: learner_of(**options).init(key, task)
    with jax.enable_x64(True):
        shapes = jax.eval_shape(init, jax.random.key(0)).params
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: 0.6 * rng.normal(size=p.shape), shapes)


@jax.jit
def episode(params, support, x, key=None):
    """The stream and the logits."""
    adapted = learner_of().adapt(ml.Variables(params=params, state={}), support, key=key)
    return adapted.fitted, learner_of().predict(adapted, x)


def support_with(rows, mask=None):
    support = jax.tree.map(lambda leaf: leaf[np.array(rows)], one(wide_blobs()).support)
    mask = support.mask if mask is None else jnp.asarray(mask)
    return ml.Examples(x=support.x, y=support.y, mask=mask)


def changed(params, part, names, factor):
    """Head params with every leaf of some layers of each block multiplied."""
    scale = lambda layers: {
        n: jax.tree.map(lambda p: p * factor, p) if n in names else p
        for n, p in layers.items()
    }
    head = {**params["head"], part: [scale(layers) for layers in params["head"][part]]}
    return {**params, "head": head}


def numpy_logits(params, x, y, query):
    """The logits of one query, from the whole stream with loops over its steps."""
    head = jax.tree.map(np.asarray, params["head"])
    scale = np.asarray(params["encoder"]["scale"])
    u = np.concatenate(
        [np.vstack([x, query]) * scale, np.vstack([np.eye(WAYS)[y], np.zeros(WAYS)])], 1
    )
    steps = len(u)
    for i, attention in enumerate(head["attention"]):
        for power, block in enumerate(head["convolutions"][i - 1] if i else ()):
            new = []
            for t in range(steps):
                back = t - 2**power
                pair = np.concatenate([u[back] if back >= 0 else 0 * u[t], u[t]])
                value, gate = np.split(pair @ block["w"] + block["b"], 2)
                new.append(np.tanh(value) / (1 + np.exp(-gate)))
            u = np.concatenate([u, new], 1)
        q, k, v = (
            u @ attention[n]["w"] + attention[n]["b"] for n in ("query", "key", "value")
        )
        read = []
        for t in range(steps):
            shares = np.exp(k[: t + 1] @ q[t] / np.sqrt(k.shape[1]))
            read.append(shares / shares.sum() @ v[: t + 1])
        u = np.concatenate([u, read], 1)
    return u[-1] @ head["logits"]["w"] + head["logits"]["b"]


def test_each_query_equals_the_last_step_of_a_whole_stream():
    task, params = one(wide_blobs()), params_of()
    x, y = np.asarray(task.support.x), np.asarray(task.support.y)
    _, found = episode(params, task.support, task.query.x)
    close(
        found, np.stack([numpy_logits(params, x, y, q) for q in np.asarray(task.query.x)])
    )


def test_a_step_changes_nothing_before_it():
    """By the keys of the last block, which show all that each step has read."""
    support, x = one(wide_blobs()).support, one(wide_blobs()).query.x
    before, _ = episode(params_of(), support, x)
    for t in range(len(support.mask)):
        moved = ml.Examples(x=support.x.at[t].add(1.0), y=support.y, mask=support.mask)
        after, _ = episode(params_of(), moved, x)
        gaps = np.abs(after.past[-1][0] - before.past[-1][0]).max(-1)
        assert (gaps[:t] < 1e-14).all() and (gaps[t:] > 1e-9).all(), (t, gaps)


def test_weights_of_attention_sum_to_one():
    """Values of one for everything are read as one, by support steps and by queries."""
    params = changed(params_of(), "attention", ("value",), 0.0)
    for block in params["head"]["attention"]:
        block["value"]["b"] += 1
    # The keys of the last block and the logits show what was read before them.
    others = changed(params, "attention", ("query", "key"), 7.0)
    others["head"]["attention"][1] = params["head"]["attention"][1]
    task = one(wide_blobs())
    found = [episode(p, task.support, task.query.x) for p in (params, others)]
    keys, logits = zip(*((stream.past[-1][0], logits) for stream, logits in found))
    assert np.isfinite(keys).all() and np.isfinite(logits).all()
    close(*keys, rtol=1e-12)
    close(*logits, rtol=1e-12)


def test_convolutions_reach_every_step():
    """With attention that reads zeros, each support example still moves the logits."""
    params = changed(params_of(), "attention", ("value",), 0.0)
    support, x = one(wide_blobs()).support, one(wide_blobs()).query.x
    _, before = episode(params, support, x)
    for t in range(len(support.mask)):
        moved = ml.Examples(x=support.x.at[t].add(1.0), y=support.y, mask=support.mask)
        assert np.abs(episode(params, moved, x)[1] - before).max() > 1e-6, t


def test_masked_rows_stand_for_nothing_wherever_they_are():
    support, query = one(wide_blobs()).support, np.asarray(one(wide_blobs()).query.x)
    mask = np.array([True, False, True, True, False, True])
    _, found = episode(params_of(), support_with(range(6), mask), query)
    x, y = np.asarray(support.x)[mask], np.asarray(support.y)[mask]
    close(found, np.stack([numpy_logits(params_of(), x, y, q) for q in query]))


def test_a_key_draws_the_order_of_the_valid_rows():
    """Each order that is drawn is one of the valid rows; all six occur."""
    x, mask = one(wide_blobs()).query.x, [True, False, True, True, False, False]
    orders = [(*r, 1, 4, 5) for r in itertools.permutations((0, 2, 3))]
    told = [True, True, True, False, False, False]
    expected = [episode(params_of(), support_with(o, told), x)[1] for o in orders]
    support, drawn = support_with(range(6), mask), set()
    for key in jax.random.split(jax.random.key(0), 40):
        _, found = episode(params_of(), support, x, key)
        gaps = np.abs(np.stack([found - e for e in expected])[..., :2]).max((1, 2))
        assert np.sum(gaps < 1e-9) == 1, gaps
        drawn.add(gaps.argmin())
    assert drawn == set(range(6))


def test_the_whole_loss_is_differentiated():
    """By finite differences, the encoder and what was kept of the support set included."""
    learner, params = learner_of(length=2), params_of(length=2)
    key, tasks, rng = jax.random.key(0), wide_blobs(), np.random.default_rng(3)
    variables = lambda p: ml.Variables(params=p, state={})
    run = jax.jit(lambda p: learner.estimate(variables(p), tasks, key=key))
    way = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    moved = [
        run(jax.tree.map(lambda p, w, s=s: p + s * w, params, way)) for s in (1e-5, -1e-5)
    ]
    losses = [m.metrics["query/loss"].mean() for m in moved]
    slope = jax.tree.map(lambda g, w: np.sum(g * w), run(params).grads, way)
    close(sum(jax.tree.leaves(slope)), (losses[0] - losses[1]) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize(("length", "depth"), [(None, 3), (2, 1), (8, 3), (9, 4)])
def test_convolutions_cover_the_length(length, depth):
    task = one(wide_blobs())
    init = lambda key: learner_of(length=length).init(key, task)
    made = jax.eval_shape(init, jax.random.key(0)).params["head"]
    assert [len(blocks) for blocks in made["convolutions"]] == [depth]
    assert made["logits"]["w"].shape == (4 + WAYS + 2 + 2 * depth + 3, WAYS)


def test_the_paper_has_three_blocks_of_attention():
    task = one(wide_blobs())
    learner = snail(learner_encoder(), num_ways=WAYS, length=26)
    made = jax.eval_shape(lambda k: learner.init(k, task), jax.random.key(0))
    head = made.params["head"]
    assert [len(blocks) for blocks in head["convolutions"]] == [5, 5]
    assert head["logits"]["w"].shape[0] == 4 + WAYS + 32 + 640 + 128 + 640 + 256


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"key_sizes": (3,)}, "expected a size in each for every attention block"),
        ({"key_sizes": (), "value_sizes": ()}, "at least one block"),
        ({"value_sizes": (2, 0)}, r"value_sizes\[1\] is 0"),
        ({"filters": 0}, "filters is 0"),
        ({"length": 1}, "length is 1; expected an integer of 2"),
    ],
)
def test_wrong_settings_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        learner_of(**wrong)


@pytest.mark.parametrize("name", ["key_sizes", "value_sizes"])
def test_sizes_are_of_every_block(name):
    """One number is none, and a list is as good as a tuple."""
    with pytest.raises(TypeError, match=rf"{name} is 64; expected a size for every"):
        learner_of(**{name: 64})
    make = lambda sizes: snail(learner_encoder(), num_ways=WAYS, **{**SIZES, name: sizes})
    assert ml.describe(make([3, 4])) == ml.describe(make((3, 4)))
