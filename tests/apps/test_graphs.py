"""Few-shot nodes: networks by dense formulas, limits, settings, and a run."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from own_graph import own_graph, write_own_graph

import metalearn as ml
from metalearn import runs
from metalearn.apps import FewShotNodes, Recipe, learners, sgd
from metalearn.apps.graphs import RECIPES
from metalearn.cli import main as cli
from metalearn.data import graphs

TINY = FewShotNodes(dataset="own", widths=(3,), queries=2, eval_queries=2, shots=1)
CONVOLVED = dataclasses.replace(TINY, encoder="gcn", widths=(3, 3), most_nodes=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_own_graph(tmp_path_factory.mktemp("graph")))


def _first(app, data, part="train"):
    return app.tasks(data, part).first(jax.random.key(0))


def test_convolutions_of_subgraphs_are_those_of_the_whole_graph(folder):
    """`S relu(S X W_1 + b_1) W_2 + b_2` by dense matrices, of any nodes of the graph."""
    app = dataclasses.replace(CONVOLVED, degrees="graph")
    data = app.load(folder)
    record = app.describe(data)
    assert record["cut"] == 0
    model = app.offers(learners.ProtoNet(), record, evaluating=True)["encoder"]
    variables = model.init(jax.random.key(1), app.example(record).support.x)
    bias = lambda leaf: leaf + 0.3 if leaf.ndim == 1 else leaf
    params = jax.tree.map(bias, variables.params)
    nodes = np.asarray([0, 11, 30, len(data.graph) - 1])
    links = jnp.asarray(data.around.links[nodes])
    near = links @ data.features[data.around.nodes[nodes]]
    x = {"features": near, "links": links}
    found, _ = model.apply(ml.Variables(params=params, state={}), x)
    matrix = graphs.adjacency(data.graph.edges, len(data.graph))
    dense = graphs.propagated(matrix, np.eye(len(data.graph), dtype=np.float32), 1)
    one, two = (jax.tree.map(np.asarray, params[f"Dense_{n}"]) for n in (0, 1))
    hidden = dense @ data.graph.features @ one["kernel"] + one["bias"]
    hidden = dense @ np.maximum(hidden, 0) @ two["kernel"] + two["bias"]
    np.testing.assert_allclose(found, hidden[nodes], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("app", [TINY, CONVOLVED], ids=["sgc", "gcn"])
def test_other_numbers_of_the_nodes_change_no_prediction(app, folder, tmp_path):
    """Equivariance: a task of the same nodes under other numbers is the same task."""
    x, edges, labels = own_graph()
    order = np.random.default_rng(1).permutation(len(labels))
    place = np.argsort(order)
    np.savez(
        tmp_path / "graph.npz", features=x[order], edges=place[edges], labels=labels[order]
    )
    first, second = app.load(folder), app.load(str(tmp_path))
    record = app.describe(first)
    offers = app.offers(learners.MAML(inner_opt=sgd(0.5)), record, evaluating=True)
    learner = ml.maml(offers["model"], offers["loss_fn"], optax.sgd(0.5), num_steps=2)
    variables = learner.init(jax.random.key(2), app.example(record))

    def inputs(data, nodes):
        nodes = np.asarray(nodes)
        if data.around is None:
            return data.features[nodes]
        links = jnp.asarray(data.around.links[nodes])
        return {"features": links @ data.features[data.around.nodes[nodes]], "links": links}

    support, query = np.asarray([0, 50, 3, 53]), np.asarray([1, 2, 51, 49, 53])

    @jax.jit
    def predicted(x, queries):
        examples = ml.Examples.of(x, jnp.asarray([0, 1, 0, 1]))
        return learner.predict(learner.adapt(variables, examples), queries)

    told = [
        predicted(inputs(data, numbers[support]), inputs(data, numbers[query]))
        for data, numbers in ((first, np.arange(len(labels))), (second, place))
    ]
    np.testing.assert_allclose(*told, rtol=1e-4, atol=1e-5)


def test_without_links_it_is_maml_on_the_features_of_the_nodes(folder, tmp_path):
    x, _, labels = own_graph()
    np.savez(tmp_path / "graph.npz", features=x, edges=np.zeros((0, 2), int), labels=labels)
    empty, raw = TINY.load(str(tmp_path)), dataclasses.replace(TINY, hops=0).load(folder)
    one, other = _first(TINY, empty), _first(TINY, raw)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    spread = _first(TINY, TINY.load(folder))
    assert np.abs(spread.support.x - one.support.x).max() > 0.1
    lengths = np.linalg.norm(spread.support.x, axis=-1)
    np.testing.assert_allclose(lengths[lengths > 0], 1, rtol=1e-5)
    # A convolution without links is a network of the node's own features.
    alone = _first(CONVOLVED, CONVOLVED.load(str(tmp_path)))
    plain = dataclasses.replace(TINY, unit=False)
    one = _first(plain, plain.load(str(tmp_path)))
    np.testing.assert_array_equal(alone.support.x["features"][:, 0], one.support.x)
    assert (alone.support.x["links"].sum((1, 2)) == 1).all()


def test_records_and_examples_are_of_the_tasks(folder):
    for app in (TINY, CONVOLVED):
        data = app.load(folder)
        record = app.describe(data)
        assert json.loads(json.dumps(record)) == record
        like = jax.tree.map(lambda a: (a.shape, a.dtype), app.example(record))
        task = _first(app, data)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), task) == like
    with pytest.raises(ValueError, match="has 9 examples, but support and query take 10"):
        dataclasses.replace(TINY, queries=9).tasks(data, "train")


@pytest.mark.parametrize(
    ("settings", "learner", "said"),
    [
        ({"encoder": "gcn"}, learners.NoAdaptation(), "has 1 layers and app.hops is 2"),
        (
            {"degrees": "graph"},
            learners.NoAdaptation(),
            "app.degrees='graph' has no effect",
        ),
        (
            {"encoder": "gcn", "widths": (3, 3), "unit": False},
            learners.NoAdaptation(),
            "app.unit=False has no effect",
        ),
        ({"validation_share": 0.5}, learners.NoAdaptation(), "has no effect"),
        (
            {"validation": "nodes", "validation_share": 1.0},
            learners.NoAdaptation(),
            "app.validation_share is 1.0",
        ),
        ({"test_classes": 1}, learners.NoAdaptation(), "app.test_classes is 1, too few"),
        ({"validation_classes": 1}, learners.NoAdaptation(), "app.validation_classes is 1"),
        ({"hops": 0}, learners.NoAdaptation(), "app.hops is 0; expected 1 or more"),
        ({"widths": (0,)}, learners.NoAdaptation(), r"app.widths is \(0,\)"),
        ({"split_number": 0}, learners.NoAdaptation(), "app.split_number is 0"),
        ({"eval_ways": 3, "test_classes": 3}, learners.NoAdaptation(), "need 3 logits"),
        ({}, learners.TNet(inner_opt=sgd(0.1)), "needs a network that nodes"),
    ],
)
def test_settings_are_checked(settings, learner, said):
    app = dataclasses.replace(TINY, **settings)
    with pytest.raises(ValueError, match=said):
        Recipe(app=app, learner=learner).check()


def test_the_centroid_is_the_nearest_mean_of_features_of_norm_1(folder):
    recipe = RECIPES["graphs-centroid"].recipe
    app = dataclasses.replace(TINY, widths=(), shots=3)
    data = app.load(folder)
    record = app.describe(data)
    learner = dataclasses.replace(recipe, app=app).build_judged(record)
    variables = learner.init(jax.random.key(0), app.example(record))
    matrix = graphs.adjacency(data.graph.edges, len(data.graph))
    rows = graphs.propagated(matrix, data.graph.features, 2)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)
    np.testing.assert_allclose(data.features, rows, atol=1e-6)
    task = _first(app, data, "test")
    means = np.stack([task.support.x[task.support.y == c].mean(0) for c in range(2)])
    apart = np.square(task.query.x[:, None] - means[None]).sum(-1)
    found = learner.predict(learner.adapt(variables, task.support), task.query.x)
    np.testing.assert_array_equal(found.argmax(-1), apart.argmin(-1))


def test_recipes_are_of_graphs():
    assert all(name.startswith("graphs-") for name in RECIPES)


def test_a_run_from_the_command_line_is_judged_and_drawn(folder, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--app.dataset", "own", "--app.widths", "3"]
    options += ["--app.shots", "1", "--app.queries", "2", "--app.eval-queries", "2"]
    options += ["--steps", "2", "--tasks-per-step", "2", "--validate-every", "2"]
    options += ["--validation-tasks", "4", "--test-tasks", "6", "--log-every", "1"]
    options += ["--learner.num-steps", "1", "--devices", "1"]
    command = [
        "train",
        "graphs-meta-gnn",
        "--data-dir",
        folder,
        "--out",
        str(out),
        *options,
    ]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "54 nodes" in said and "split 1 of 15" in said
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    # Of 24 queries, two of each of two classes in six tasks, more than by chance.
    right = 24 * found["query/accuracy"]["mean"]
    assert right == pytest.approx(round(right), abs=1e-4) and right > 12
    assert (out / "episode.png").stat().st_size > 10_000
    run = runs.load(out)
    variables, _ = runs.best(run)
    result = runs.judge(run, variables, run.recipe.app.load(folder))
    assert not result.transductive
    again = result.summary()["query/accuracy"]
    assert again == pytest.approx(found["query/accuracy"], rel=1e-6)
