"""Matching networks against loops in NumPy, in float64, and their LSTM cell."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, differs, grads_of, numpy_tasks, wide_blobs
from tiny import INPUTS, WAYS, one

import metalearn as ml
from metalearn.models.cells import lstm_init

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 2
MASK = np.array([True, False, True, True, False, True])  # classes 0, 1, 1, 2


def scaled(**options):
    """A learner whose encoder multiplies by one parameter."""
    encoder = ml.from_apply_fn(lambda key, x: jnp.ones(()), lambda w, x: w * x)
    return ml.matching_networks(encoder, num_ways=WAYS, **options)


@functools.cache
def episode(context):
    """`(params, support, x, key) -> (logits, adapted)` in one program."""
    learner = scaled(learn_scale=True, context=context, read_steps=STEPS)

    def run(params, support, x, key):
        adapted = learner.adapt(ml.Variables(params=params, state={}), support, key=key)
        return learner.predict(adapted, x), adapted.fitted

    return jax.jit(run)


def params_of(scale, cells=None):
    head = {"log_scale": np.log(scale), **(cells or {})}
    return jax.tree.map(jnp.asarray, {"encoder": np.ones(()), "head": head})


def masked(support, mask=MASK):
    return ml.Examples(x=support.x, y=support.y, mask=jnp.asarray(mask))


def cosines(query, support):
    lengths = np.linalg.norm(query, axis=-1)[:, None] * np.linalg.norm(support, axis=-1)
    return np.divide(query @ support.T, lengths, np.zeros_like(lengths), where=lengths > 0)


def shares(scores, y, ways=WAYS):
    """Probabilities: attention over examples, summed over those of a class."""
    attention = np.exp(scores - scores.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    return np.stack([attention[:, y == k].sum(-1) for k in range(ways)], -1)


def test_probabilities_are_attention_that_is_summed_over_a_class():
    """Also beside rows of zeros, masked rows and a class without an example."""
    task = one(wide_blobs())
    x = task.support.x.at[2].set(0)
    query = task.query.x.at[0].set(0)
    mask = np.array([True, False, True, True, False, False])  # 1, 2 and 0 shots
    support = ml.Examples(x=x, y=task.support.y, mask=jnp.asarray(mask))
    logits, _ = episode("none")(params_of(3.0), support, query, None)
    y = np.asarray(task.support.y)[mask]
    expected = shares(3 * cosines(np.asarray(query), np.asarray(x)[mask]), y)
    close(jax.nn.softmax(logits), expected)
    assert (np.asarray(logits)[:, 2] < -1e8).all()
    close(expected.sum(-1), np.ones(len(expected)))


def test_a_large_scale_is_the_nearest_neighbour_by_cosine():
    task = one(wide_blobs())
    logits, _ = episode("none")(params_of(1e4), task.support, task.query.x, None)
    y = np.asarray(task.support.y)
    found = cosines(np.asarray(task.query.x), np.asarray(task.support.x))
    best = np.stack([found[:, y == k].max(-1) for k in range(WAYS)], -1)
    # Of far classes too, whose probability is 0 in every dtype.
    np.testing.assert_allclose(logits, 1e4 * best, atol=np.log(2))
    assert (np.argmax(logits, -1) == y[found.argmax(-1)]).all()


def test_doubling_every_support_example_changes_no_probability():
    task = one(wide_blobs())
    twice = jax.tree.map(
        lambda leaf: jnp.tile(leaf[::2], (2, 1)[: leaf.ndim]), task.support
    )
    once = masked(twice, np.arange(6) < 3)
    found = [
        episode("none")(params_of(2.0), s, task.query.x, None)[0] for s in (once, twice)
    ]
    close(jax.nn.softmax(found[1]), jax.nn.softmax(found[0]))
    assert differs(*found)  # the logits themselves grow by log 2


def test_the_loss_is_that_of_the_mixture_and_teaches_encoder_and_scale():
    """The gradient by finite differences of `-log p`, in NumPy."""
    encoder = ml.from_apply_fn(
        lambda key, x: jnp.ones((INPUTS, 5)), lambda w, x: jnp.tanh(x @ w)
    )
    learner = ml.matching_networks(encoder, num_ways=WAYS, learn_scale=True, task_chunk=9)
    rng = np.random.default_rng(0)
    w, way = rng.normal(size=(2, INPUTS, 5))

    def loss(step):
        losses = []
        for xs, ys, xq, yq in numpy_tasks():
            rows = [np.tanh(x @ (w + step * way)) for x in (xq, xs)]
            found = shares(4 * np.exp(step) * cosines(*rows), ys)
            losses.append(-np.log(found[np.arange(len(yq)), yq]).mean())
        return np.mean(losses)

    params = {"encoder": w, "head": {"log_scale": np.log(4.0)}}
    found = grads_of(learner, params, wide_blobs())
    close(found.metrics["query/loss"].mean(), loss(0))
    along = np.sum(found.grads["encoder"] * way) + found.grads["head"]["log_scale"]
    close(along, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-7)


@functools.cache
def cells():
    rng = np.random.default_rng(1)

    def cell(inputs):
        sizes = {"input": (inputs, 4 * INPUTS), "recurrent": (INPUTS, 4 * INPUTS)}
        sizes["bias"] = (4 * INPUTS,)
        return {name: 0.5 * rng.normal(size=size) for name, size in sizes.items()}

    names = {"forward": INPUTS, "backward": INPUTS, "query": 2 * INPUTS}
    return {name: cell(inputs) for name, inputs in names.items()}


def lstm(cell, h, c, x):
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    gates = x @ cell["input"] + h @ cell["recurrent"] + cell["bias"]
    i, f, g, o = np.split(gates, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def in_context(cells, support, query):
    """Embeddings of valid support examples in their order, and those of queries."""
    read = support.copy()
    for name, places in (("forward", range(len(support))), ("backward", None)):
        h, c = np.zeros((2, INPUTS))
        for i in reversed(range(len(support))) if places is None else places:
            h, c = lstm(cells[name], h, c, support[i])
            read[i] += h
    h, c = np.zeros((2, *query.shape))
    for _ in range(STEPS):
        scores = np.exp(h @ read.T)
        attention = scores / scores.sum(-1, keepdims=True)
        h, c = lstm(cells["query"], h, c, np.concatenate([query, attention @ read], -1))
        h = h + query
    return read, h


def test_full_context_reads_the_valid_examples_in_order():
    task = one(wide_blobs())
    key = jax.random.key(2)
    run = episode("full")
    logits, read = run(params_of(2.0, cells()), masked(task.support), task.query.x, key)
    valid = np.flatnonzero(MASK)
    draws = [int(jax.random.bits(jax.random.fold_in(key, i))) for i in range(len(valid))]
    order = valid[np.argsort(draws)]
    assert (order != np.sort(order)).any()
    x, y = np.asarray(task.support.x)[order], np.asarray(task.support.y)[order]
    rows, queries = in_context(cells(), x, np.asarray(task.query.x))
    close(np.asarray(read.rows)[order], rows)
    close(jax.nn.softmax(logits), shares(2 * cosines(queries, rows), y))


def test_without_a_key_full_context_keeps_the_order_and_learns_all_its_cells():
    """The gradient by finite differences of the loop in NumPy."""
    learner = scaled(context="full", read_steps=STEPS)
    task = one(wide_blobs())
    support = masked(task.support)
    rng = np.random.default_rng(2)
    params = {"encoder": np.ones(()), "head": cells()}
    way = jax.tree.map(lambda leaf: rng.normal(size=np.shape(leaf)), params)

    def loss(step):
        now = jax.tree.map(lambda a, b: a + step * b, params, way)
        x = now["encoder"] * np.asarray(task.support.x)[MASK]
        rows, queries = in_context(
            now["head"], x, now["encoder"] * np.asarray(task.query.x)
        )
        found = shares(10 * cosines(queries, rows), np.asarray(task.support.y)[MASK])
        return -np.log(found[np.arange(6), np.asarray(task.query.y)]).mean()

    @jax.jit
    def grads(params):
        def of(params):
            adapted = learner.adapt(ml.Variables(params=params, state={}), support)
            return ml.losses.cross_entropy(
                learner.predict(adapted, task.query.x), task.query
            )

        return jax.value_and_grad(of)(params)

    value, found = grads(jax.tree.map(jnp.asarray, params))
    close(value, loss(0))
    along = sum(map(np.vdot, jax.tree.leaves(found), jax.tree.leaves(way)))
    close(along, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-7)


def test_cells_without_weights_add_no_context():
    task = one(wide_blobs())
    nothing = jax.tree.map(np.zeros_like, cells())
    given = (masked(task.support), task.query.x, jax.random.key(2))
    plain, _ = episode("none")(params_of(2.0), *given[:2], None)
    close(episode("full")(params_of(2.0, nothing), *given)[0], plain)


def test_an_empty_support_set_gives_finite_numbers():
    task = one(wide_blobs())
    empty = masked(task.support, np.zeros(6, bool))
    args = (empty, task.query.x, jax.random.key(2))
    assert np.isfinite(episode("full")(params_of(2.0, cells()), *args)[0]).all()


def test_a_new_cell_remembers_and_each_gate_turns_the_state():
    cell = jax.jit(lambda key: lstm_init(key, 3, 4, jnp.float64))(jax.random.key(0))
    for gate in np.split(np.asarray(cell["recurrent"]), 4, -1):
        close(gate @ gate.T, np.eye(4))
    close(cell["bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 4))
    kernel = np.asarray(cell["input"])
    assert kernel.shape == (3, 16)
    bound = np.sqrt(6 / (3 + 4))  # of a gate, not of all four
    assert 0.9 * bound < np.abs(kernel).max() <= bound


def test_the_scale_is_learned_from_the_given_one_on():
    task = one(wide_blobs())
    learner = scaled(scale=7.0, learn_scale=True)
    variables = learner.init(jax.random.key(0), task)
    close(np.exp(variables.params["head"]["log_scale"]), 7.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": 0}, "scale is 0; expected a finite number above 0"),
        ({"context": "half"}, "context is 'half'; expected one of none, full"),
        ({"read_steps": 0}, "read_steps is 0; expected an integer of 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        scaled(**options)
