"""HSML's encoders, tree and gate in NumPy, and its whole outer loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE, INNER, close, differs, of, wide_blobs
from tiny import WAYS, blob_batch, one, plain, sine_batch, tanh_net

import metalearn as ml
from metalearn.algorithms.context.hsml import EMBEDDINGS, add_leaf

SIGMA, XI = 0.7, 3.0
SMALL = {"hidden": 3, "example_size": 2, "num_ways": WAYS, "gate_bias": 0.3}
TREE = {"tree": (3, 2, 1), "sigma": SIGMA}
# Constructor, its options, whether targets are real.
KINDS = {
    "gru": (ml.hsml, {"aggregator": "gru", **TREE}, False),
    "mean": (ml.hsml, {"aggregator": "mean", **TREE, "routing": "linear"}, False),
    "curves": (ml.hsml, {"aggregator": "mean", **TREE, "num_ways": None}, True),
    "features": (ml.hsml, {"aggregator": "mean", **TREE, "features": plain(5)}, False),
    "mumomaml": (ml.mumomaml, {"aggregator": "gru"}, False),
}


def made(kind, **more):
    """A learner, tasks in float64, and parameters none of which is zero."""
    make, options, curves = KINDS[kind]
    tasks = wide_blobs()
    if curves:
        tasks = jax.tree.map(
            lambda x: x.astype(float) if x.dtype == jnp.float32 else x, sine_batch()
        )
    model, loss = (plain(1), ml.losses.mse) if curves else (plain(), CE)
    options = SMALL | {"reconstruction": XI, "task_chunk": 9} | options | more
    learner = make(model, loss, optax.sgd(INNER), **options)
    shapes = jax.eval_shape(learner.init, jax.random.key(0), one(tasks)).params
    return learner, tasks, random_like(shapes, 0)


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(size=p.shape), tree)


# -- In NumPy ---------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def linear(layer, x):
    return x @ layer["w"] + layer["b"]


def gru(cell, h, x):
    """K. Cho et al. 2014, with the reset gate after the product, as flax has it."""

    def of_x(gate):
        return x @ cell[f"i{gate}"]["kernel"] + cell[f"i{gate}"]["bias"]

    r = sigmoid(of_x("r") + h @ cell["hr"]["kernel"])
    z = sigmoid(of_x("z") + h @ cell["hz"]["kernel"])
    n = np.tanh(of_x("n") + r * (h @ cell["hn"]["kernel"] + cell["hn"]["bias"]))
    return (1 - z) * n + z * h


def recurrent(params, rows, goals):
    """`(g, L_r)` of valid rows, rebuilt from the last to the first."""
    h, path = np.zeros(len(params["out"]["w"])), []
    for row in rows:
        h = gru(params["encoder"], h, row)
        path.append(h)
    last, errors = np.zeros(rows.shape[1]), []
    for goal in goals[::-1]:
        h = gru(params["decoder"], h, last)
        last = linear(params["out"], h)
        errors.append(np.mean((last - goal) ** 2))
    return np.mean(path, 0), np.mean(errors)


def pooled(params, rows, goals):
    """Every row by itself; the mean of the codes, and half of the mean square."""
    codes = np.maximum(linear(params["in"], rows), 0)
    errors = (linear(params["back"], codes) - goals) ** 2
    return linear(params["out"], codes.mean(0)), 0.5 * errors.mean()


def closeness(x, centres):
    return -np.sum((x - centres) ** 2, -1) / (2 * SIGMA)


def root(tree, g):
    """h of the root, and the shares of the leaves."""
    leaves, *upper = tree
    shares = softmax(closeness(g, leaves["centres"]))
    nodes = [p * np.tanh(g @ w + b) for p, w, b in zip(shares, leaves["w"], leaves["b"])]
    for layer in upper:
        above = 0
        for h in nodes:
            logits = np.zeros(len(layer["b"]))
            if "centres" in layer:
                logits = closeness(h, layer["centres"])
            elif "linear" in layer:
                logits = linear(layer["linear"], h)
            maps = np.stack([np.tanh(h @ w + b) for w, b in zip(layer["w"], layer["b"])])
            above = above + softmax(logits)[:, None] * maps
        nodes = above
    return nodes[0], shares


def rows_of(structure, support):
    x, y = np.asarray(support.x), np.asarray(support.y)
    if "features" in structure:
        x = np.asarray(tanh_net(structure["features"], x))
    y = y if y.ndim == 2 else np.eye(WAYS)[y]
    return linear(structure["example"], np.concatenate([x, y], -1))


def embedded(structure, support, goals=None):
    """`(g, L_r)`; the goals are the embedded examples themselves unless given."""
    rows = rows_of(structure, support)
    encode = recurrent if "encoder" in structure["embed"] else pooled
    return encode(structure["embed"], rows, rows if goals is None else goals)


def gated(params, context):
    gate = params["structure"]["gate"]
    return jax.tree.map(
        lambda p, w, b: p * sigmoid(np.tensordot(context, w, 1) + b),
        params["model"],
        gate["w"],
        gate["b"],
    )


# -- The tests --------------------------------------------------------------------------


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_encoders_are_those_of_numpy(x64, name):
    """Masked rows leave no trace, wherever they stand."""
    encoder = EMBEDDINGS[name]
    shapes = jax.eval_shape(lambda key: encoder.init(key, 2, 3), jax.random.key(0))
    params = random_like(shapes, 1)
    rows = np.random.default_rng(2).normal(size=(6, 2))
    mask = np.array([False, True, True, False, True, False])
    expected = {"gru": recurrent, "mean": pooled}[name](params, rows[mask], rows[mask])
    run = jax.jit(encoder.apply)
    close(run(jax.tree.map(jnp.asarray, params), rows, mask), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_gated_by_the_embedding_and_the_root(x64, kind):
    """`theta * sigmoid(W [g; h] + b)`, where nothing adapts."""
    learner, tasks, params = made(kind, num_steps=0)
    support = one(tasks).support
    adapted = jax.jit(learner.adapt)(of(**params), support)
    context, tree = embedded(params["structure"], support)[0], params["structure"]["tree"]
    close(adapted.info.embedding, context)
    if tree:
        h, shares = root(tree, context)
        close(adapted.info.leaves, shares)
        context = np.concatenate([context, h])
    close(adapted.params, gated(params, context))


@pytest.mark.parametrize("kind", ["gru", "curves", "mumomaml"])
def test_whole_outer_loss_by_finite_differences(x64, kind):
    """The query loss after a step, and xi times L_r with targets that stand still."""
    learner, tasks, params = made(kind, num_steps=1)
    way = random_like(params, 5)
    run = jax.jit(lambda p: learner.estimate(of(**p), tasks, key=jax.random.key(0)))
    supports = [one(tasks, i).support for i in range(3)]
    goals = [rows_of(params["structure"], support) for support in supports]

    def rebuilt(params):
        pairs = zip(supports, goals)
        return np.array([embedded(params["structure"], s, g)[1] for s, g in pairs])

    def objective(scale):
        moved = jax.tree.map(lambda p, d: p + scale * d, params, way)
        return run(moved).metrics["query/loss"].mean() + XI * rebuilt(moved).mean()

    found = run(params)
    close(found.metrics["structure/reconstruction"], rebuilt(params))
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), found.grads, way)))
    close(slope, (objective(1e-5) - objective(-1e-5)) / 2e-5, rtol=1e-6)


def test_a_new_leaf_joins_and_changes_no_other(x64):
    """Among leaves whose biases training has moved."""
    learner, tasks, params = made("gru", num_steps=0)
    variables, support = of(**params), one(tasks).support
    grown = add_leaf(variables, jax.random.key(1))
    before, after = (v.params["structure"]["tree"] for v in (variables, grown))
    close(jax.tree.map(lambda leaf: leaf[:-1], after[0]), before[0], rtol=0)
    fresh = jax.tree.map(lambda leaf: leaf[-1], after[0])
    assert not np.any(fresh["b"])
    assert np.any(fresh["w"]) and np.any(fresh["centres"])
    assert differs(fresh["centres"], before[0]["centres"][-1], least=1e-6)

    def rest(variables):
        tree = variables.params["structure"]["tree"][1:]
        structure = {**variables.params["structure"], "tree": tree}
        return {**variables.params, "structure": structure}, variables.state

    close(rest(grown), rest(variables), rtol=0)
    now = jax.tree.map(np.asarray, grown.params)
    g = embedded(now["structure"], support)[0]
    h, shares = root(now["structure"]["tree"], g)
    adapted = jax.jit(learner.adapt)(grown, support)
    close(adapted.info.leaves, shares)
    close(adapted.params, gated(now, np.concatenate([g, h])))


def test_mumomaml_is_hsml_without_a_tree():
    """In every option that it takes."""
    options = {
        "num_steps": 3,
        "hidden": 7,
        "aggregator": "mean",
        "reconstruction": 0.3,
        "gate_bias": -1.0,
        "example_size": 6,
        "features": plain(5),
        "num_ways": WAYS,
        "norm": "running",
    }
    pair = [
        make(plain(), CE, optax.sgd(INNER), **options, **more)
        for make, more in ((ml.mumomaml, {}), (ml.hsml, {"tree": (), "name": "mumomaml"}))
    ]
    assert ml.describe(pair[0]) == ml.describe(pair[1])
    task = one(blob_batch())
    shapes = [jax.eval_shape(made.init, jax.random.key(0), task) for made in pair]
    assert shapes[0] == shapes[1]
    made = jax.jit(pair[0].init)(jax.random.key(0), task)
    biases = made.params["structure"]["gate"]["b"]
    assert {float(b) for leaf in jax.tree.leaves(biases) for b in leaf.ravel()} == {-1.0}
