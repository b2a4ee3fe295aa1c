"""The benchmark of nodes: one small split, what it stores, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from own_graph import write_own_graph

from benchmarks import graphs

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
