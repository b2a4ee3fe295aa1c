"""The benchmark of places: a whole comparison of two steps, and its table."""

from __future__ import annotations

import json

import pytest
from own_visits import write_own_visits

from benchmarks import _measures, places

SETTINGS = (
    *("app.dataset=own", "app.least_visits=1", "app.least_users=4", "app.users=3"),
    *("app.negatives=2", "app.validation_areas=0.34", "app.new_areas=0.33"),
    *("app.place_dim=3", "app.dim=2", "app.attention=2", "app.widths=4"),
    *("steps=2", "tasks_per_step=2", "log_every=2"),
)


@pytest.mark.slow  # four programs
def test_recipes_are_compared_on_the_same_areas(tmp_path, capsys):
    folder = write_own_visits(tmp_path)
    path = tmp_path / "found.json"
    places.Places(
        recipes=("places-fine-tune", "places-joint"),
        seeds=2,
        set=SETTINGS,
        data_dir=str(folder),
        json=str(path),
    ).run_benchmark()
    found = json.loads(path.read_text(encoding="utf-8"))
    assert list(found["rows"]) == ["places-fine-tune", "places-joint", *places.COUNTS]
    first, second = list(found["rows"].values())[:2]
    assert "difference" not in first and len(second["training_seconds"]) == 2
    for key in places.METRICS:
        means = [row["metrics"][key]["mean"] for row in (first, second)]
        apart = second["difference"][key]
        assert apart["mean"] == pytest.approx(means[0] - means[1], abs=1e-6)
        assert len(apart["seeds"]) == 2 and len(first["metrics"][key]["by_area"]) == 2
    lines = places.table_rows(found)
    assert lines[-1].startswith("| own visits, then popularity | ")
    assert "NDCG@10 0." in capsys.readouterr().out.replace("'NDCG@10': 0.", "NDCG@10 0.")


def test_the_table_of_learners_names_both_baselines():
    told = {"mean": 0.5, "ci95": 0.02}
    metrics = {key: told for key in places.METRICS}
    apart = {key: {"mean": 0.01, "ci95": 0.002} for key in places.METRICS}
    row = {
        "seeds": [0, 1, 2],
        "rows": {
            "places-chaml": {
                "settings": {"learner": {"name": "chaml"}},
                "metrics": metrics,
            },
            "places-maml": {"metrics": metrics, "difference": apart},
            "places-fine-tune": {"metrics": metrics, "difference": apart},
        },
    }
    said = _measures.of_places("chaml", row)
    assert said.startswith("`places-chaml` HR@10 50.0 ± 2.0 %, against `places-maml` +1.00")
    assert "`places-fine-tune` +1.00 ± 0.20 points; NDCG@10" in said
