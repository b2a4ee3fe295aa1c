"""The benchmark of wrong labels: a whole comparison of two steps, and its table."""

from __future__ import annotations

import json

import numpy as np
import pytest
from few_labels import write_own_labels

from benchmarks import _harness, labels


def test_recipes_are_compared_on_the_same_test_batches(tmp_path, capsys):
    folder = write_own_labels(tmp_path / "own")
    settings = ("app.dataset=own", "app.hidden=6", "steps=2")
    settings += ("app.batch=8", "app.clean_batch=4", "app.eval_batch=5", "log_every=2")
    settings += ("validate_every=2", "checkpoint_every=2")
    settings += ("labels-l2rw:outer.rate=0.5",)
    path = tmp_path / "found.json"
    labels.Labels(
        recipes=("labels-plain", "labels-l2rw"),
        seeds=2,
        set=settings,
        data_dir=str(folder),
        json=str(path),
    ).run_benchmark()
    found = json.loads(path.read_text(encoding="utf-8"))
    first, second = found["rows"].values()
    rates = [row["settings"]["outer"]["rate"] for row in (first, second)]
    assert rates == [0.02, 0.5]
    assert "difference" not in first and found["origin"]["code"]
    apart = second["difference"]
    means = [row["metrics"]["query/accuracy"]["mean"] for row in (first, second)]
    assert apart["mean"] == pytest.approx(means[1] - means[0], abs=1e-6)
    assert len(apart["seeds"]) == len(first["training_seconds"]) == 2
    lines = labels.table_rows(found)
    assert lines[-1].startswith("| labels-l2rw | ") and "σ" in lines[-1]
    assert "wrong labels is not known" in lines[0]


@pytest.mark.parametrize(("part", "stored"), [("validation", False), ("test", True)])
def test_what_choices_read_is_not_stored_as_a_result(tmp_path, monkeypatch, part, stored):
    row = {
        "values": {"query/accuracy": np.ones((1, 2))},
        "judged": ("made", "1", 2),
    }
    monkeypatch.setattr(labels.Labels, "_row", lambda self, *plan: dict(row))
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    labels.Labels(part=part, seeds=1).run_benchmark()
    assert (tmp_path / "labels-plain.json").is_file() == stored
    path = tmp_path / "mine.json"
    labels.Labels(part=part, seeds=1, json=str(path)).run_benchmark()
    assert json.loads(path.read_text(encoding="utf-8"))["part"] == part


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"set": ("labels-mixed:steps=2",)}, "names labels-mixed, not among --recipes"),
        ({"set": ("labels-plain:steps",)}, "expected FIELD=VALUE"),
        ({"recipes": ("text-maml",)}, "text-maml is no recipe of labels"),
    ],
)
def test_settings_that_no_recipe_has_are_refused_before_training(
    monkeypatch, asked, message
):
    monkeypatch.setattr(labels.Labels, "_row", lambda *args: pytest.fail("it trains"))
    with pytest.raises((SystemExit, ValueError), match=message):
        labels.Labels(**asked).run_benchmark()
