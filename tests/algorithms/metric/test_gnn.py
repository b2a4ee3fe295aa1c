"""The graph network against loops over pairs of nodes in NumPy, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, numpy_tasks, wide_blobs
from tiny import WAYS, one

import metalearn as ml
from metalearn.algorithms.metric.gnn import _shares

pytestmark = pytest.mark.usefixtures("x64")

SIZE, LAYERS = 2, 2
LABELS = np.array([2, 0, 0, 2, 0, 2])
MASK = np.array([True, True, False, True, True, False])  # and class 1 is absent


def learner_of(encode, layer_norm, **options):
    encoder = ml.from_apply_fn(lambda key, x: jnp.ones(1), encode)
    sizes = {"num_layers": LAYERS, "node_features": 2, "edge_widths": (3,)}
    options = {**sizes, "layer_norm": layer_norm, "task_chunk": 9, **options}
    return ml.few_shot_gnn(encoder, num_ways=WAYS, **options)


@functools.cache
def head_of(layer_norm, seed=0):
    """Parameters of any values, of the shapes of a new learner."""
    learner = learner_of(lambda w, x: x[:, :SIZE], layer_norm)
    made = jax.eval_shape(learner.init, jax.random.key(0), one(wide_blobs()))
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(lambda leaf: draw(size=leaf.shape), made.params["head"])


def dense(p, x):
    x = x @ p["w"] + p["b"]
    if "norm" in p:
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * p["norm"]["scale"] + p["norm"][
            "bias"
        ]
    return x


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


def edge(p, one, other):
    hidden = leaky(dense(p["edge"]["dense_0"], np.abs(one - other)))
    return dense(p["edge"]["dense_1"], hidden)[0]


def logits_of(head, support, labels, query):
    """Logits of one query, over all nodes and pairs in each layer."""
    rows = np.concatenate([support, query[None]])
    marks = np.concatenate([np.eye(WAYS)[labels], np.zeros((1, WAYS))])
    nodes, num = np.concatenate([rows, marks], -1), len(rows)
    for layer in range(LAYERS + 1):
        p, new = head[f"layer_{layer}"], []
        for i in range(num):
            others = [j for j in range(num) if j != i]
            weights = np.exp([edge(p, nodes[i], nodes[j]) for j in others])
            brought = weights / weights.sum() @ nodes[others]
            own = {**p["node"], **({"norm": p["norm"]} if "norm" in p else {})}
            new.append(dense(own, np.concatenate([nodes[i], brought])))
        if layer == LAYERS:
            return new[-1]
        nodes = np.concatenate([nodes, leaky(np.array(new))], -1)


@functools.cache
def episode():
    learner = learner_of(lambda w, x: x, layer_norm=True)

    def run(head, x, y, mask, query):
        support = ml.Examples.of(x, y, mask)
        variables = ml.Variables(params={"encoder": jnp.ones(1), "head": head}, state={})
        return learner.predict(learner.adapt(variables, support), query)

    return jax.jit(run)


def test_logits_are_those_of_a_graph_for_each_query():
    rng = np.random.default_rng(0)
    x, query, head = rng.normal(size=(6, SIZE)), rng.normal(size=(3, SIZE)), head_of(True)
    expected = np.stack([logits_of(head, x[MASK], LABELS[MASK], q) for q in query])
    for order in (np.arange(6), np.array([5, 3, 1, 0, 4, 2])):
        given = (jnp.asarray(part[order]) for part in (x, LABELS, MASK))
        found = np.asarray(episode()(head, *given, query))
        close(found[:, [0, 2]], expected[:, [0, 2]])
        assert (found[:, 1] < -1e8).all()


def test_even_edges_average_the_labels():
    """The last layer has no edges of its own and hands on what it is told of the labels."""
    head, mask = head_of(True), jnp.asarray([True, True, True, True, False, True])
    last = dict(head[f"layer_{LAYERS}"])
    size = last["node"]["w"].shape[0] // 2
    reader = np.zeros_like(last["node"]["w"])
    reader[size + SIZE : size + SIZE + WAYS] = np.eye(WAYS)
    last["node"] = {"w": reader, "b": np.zeros(WAYS)}
    last["edge"] = {**last["edge"], "dense_1": {"w": np.zeros((3, 1)), "b": np.ones(1)}}
    x, labels = np.random.default_rng(0).normal(size=(6, SIZE)), jnp.asarray(LABELS)
    head = {**head, f"layer_{LAYERS}": last}
    found = np.asarray(episode()(head, x, labels, mask, x[:3]))
    close(found[:, [0, 2]], np.tile([0.4, 0.6], (3, 1)))


def test_shares_sum_to_one_over_the_others():
    others = np.array([True, False, True, True]) & ~np.eye(4, dtype=bool)
    edges = 5 * np.random.default_rng(0).normal(size=(4, 4))
    shares = jax.jit(_shares)
    found = np.asarray(shares(edges, others))
    close(found.sum(-1), np.ones(4))
    assert (np.diag(found) == 0).all() and (found[:, 1] == 0).all()
    assert not np.asarray(shares(edges, 0 * others > 0)).any()  # no one is there


def test_loss_and_derivatives_are_those_of_the_definition():
    """With queries in chunks, of which the last is not full."""
    encode = lambda w, x: jnp.tanh(x @ w)
    learner = learner_of(encode, layer_norm=False, query_chunk=4)
    rng = np.random.default_rng(0)
    params = {"encoder": rng.normal(size=(4, SIZE)), "head": head_of(False)}
    way = {"encoder": rng.normal(size=(4, SIZE)), "head": head_of(False, 1)}

    def loss(step):
        at, losses = jax.tree.map(lambda p, w: p + step * w, params, way), []
        for xs, ys, xq, yq in numpy_tasks():
            support, query = (np.tanh(x @ at["encoder"]) for x in (xs, xq))
            logits = np.stack([logits_of(at["head"], support, ys, q) for q in query])
            shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            losses.append(-np.log(shares[np.arange(len(yq)), yq]).mean())
        return np.mean(losses)

    found = grads_of(learner, params, wide_blobs())
    close(found.metrics["query/loss"].mean(), loss(0.0))
    ours = sum(map(np.sum, jax.tree.leaves(jax.tree.map(np.multiply, found.grads, way))))
    close(ours, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-6)


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"edge_widths is 3; expected sizes"):
        learner_of(lambda w, x: x, True, edge_widths=3)
    with pytest.raises(ValueError, match=r"node_features is 1; expected .* 2"):
        learner_of(lambda w, x: x, True, node_features=1)
