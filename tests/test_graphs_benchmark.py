"""The benchmark of nodes: one small split, what it stores, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_graph import write_own_graph

import metalearn as ml
from benchmarks import graphs
from metalearn.apps import FewShotNodes, find
from metalearn.training.evaluation import keys_of_task

TINY = (
    *("app.shots=1", "app.queries=2", "app.eval_queries=2", "app.widths=3"),
    *("tasks_per_step=2", "validation_tasks=4", "test_tasks=6"),
)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"seeds": 0}, "--seeds is 0"),
        ({"part": "train"}, "--part is 'train'"),
        ({"json": "/"}, "a folder"),
        ({"recipes": ("small-protonet",)}, "no recipe of nodes"),
        ({"recipes": ("graphs-joint", "graphs-joint")}, "each once"),
    ],
)
def test_what_is_not_there_is_refused_before_training(monkeypatch, asked, said):
    monkeypatch.setattr(graphs, "_Runner", lambda *args: pytest.fail("it trains"))
    with pytest.raises(SystemExit, match=said):
        graphs.Graphs("cora", **asked).run_benchmark()


def test_splits_are_trained_compared_and_stored(tmp_path, capsys):
    folder, path = write_own_graph(tmp_path / "own"), tmp_path / "found.json"
    settings = (*TINY, "steps=1", "validate_every=1", "outer.rate=1.0")
    graphs.Graphs(
        "own",
        recipes=("graphs-protonet",),
        splits=(1, 4),
        shots=1,
        set=settings,
        data_dir=str(folder),
        json=str(path),
    ).run_benchmark()
    found = json.loads(path.read_text(encoding="utf-8"))
    base, row = (found["rows"][n] for n in (graphs.BASELINE, "graphs-protonet"))
    each = np.asarray(row["accuracy"]["by_split"])
    assert row["accuracy"]["mean"] == pytest.approx(each.mean())
    assert row["accuracy"]["spread"] == pytest.approx(each.std(ddof=1))
    apart = each - np.asarray(base["accuracy"]["by_split"])
    told = row["difference"]
    assert told["mean"] == pytest.approx(apart.mean())
    assert told["spread"] == pytest.approx(apart.std(ddof=1))
    assert told["positive"] == (apart > 0).sum()
    # Nothing of the centroid is trained.
    assert base["untrained"] == base["accuracy"]
    assert row["untrained"]["by_split"] != row["accuracy"]["by_split"]
    assert [run["split"] for run in row["runs"]] == [1, 4]
    lines = graphs.table_rows(found)
    assert f"{100 * each.mean():.1f}" in lines[-1] and "centroid" in lines[-2]
    assert "`--set steps=1`" in lines[0] and f"{told['positive']} of 2" in lines[-1]
    capsys.readouterr()


def test_networks_of_features_and_of_subgraphs_are_paired_by_their_nodes(tmp_path):
    """And a task is what `evaluate` draws, or the pairing would say nothing."""
    folder, key = write_own_graph(tmp_path / "own"), jax.random.key(3)
    shared = {"dataset": "own", "shots": 1, "queries": 2, "eval_queries": 2}
    digests = {}
    for encoder, number in (("sgc", 1), ("gcn", 1), ("sgc", 2)):
        app = FewShotNodes(
            encoder=encoder, split_number=number, widths=(3, 3), hops=2, **shared
        )
        data = app.load(str(folder))
        tasks = app.tasks(data, "test")
        digests[encoder, number] = graphs.nodes_of(tasks, 5, key)
        assert graphs.nodes_of(tasks, 5, jax.random.key(4)) != digests[encoder, number]
    assert digests["sgc", 1] == digests["gcn", 1] != digests["sgc", 2]


def test_the_nodes_are_those_that_evaluate_draws(tmp_path):
    folder, key = write_own_graph(tmp_path / "own"), jax.random.key(3)
    recipe = find(graphs.BASELINE).recipe
    app = dataclasses.replace(recipe.app, dataset="own", shots=1, queries=2, eval_queries=2)
    recipe = dataclasses.replace(recipe, app=app)
    data = app.load(str(folder))
    record, tasks = app.describe(data), app.tasks(data, "test")
    learner = recipe.build_judged(record)
    variables = recipe.trainer(record).init(key, app.example(record)).variables
    total = lambda outputs, examples: jnp.sum(examples.x)
    found = ml.evaluate(
        learner, variables, tasks, num_tasks=4, key=key, metrics={"query/total": total}
    )
    keys = [keys_of_task(key, i)[0] for i in range(4)]
    expected = [float(jnp.sum(tasks.sample(tasks.data, k).query.x)) for k in keys]
    np.testing.assert_allclose(found.values["query/total"], expected, rtol=1e-5)
