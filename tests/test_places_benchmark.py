"""The benchmark of places: a whole comparison of two steps, and its table."""

from __future__ import annotations

import json

import numpy as np
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
    # Among two others every hit rate would be 1.
    assert list(first["metrics"]) == ["query/choice_ndcg@5", "query/choice_ndcg@10"]
    for key in first["metrics"]:
        means = [row["metrics"][key]["mean"] for row in (first, second)]
        apart = second["difference"][key]
        assert apart["mean"] == pytest.approx(means[0] - means[1], abs=1e-6)
        assert len(apart["seeds"]) == 2 and len(first["metrics"][key]["by_area"]) == 2
    lines = places.table_rows(found)
    assert "ranked among 2 that" in lines[0] and "Student's" in lines[0]
    assert lines[-1].startswith("| own visits, then popularity | ")
    assert "NDCG@10 0." in capsys.readouterr().out.replace("'NDCG@10': 0.", "NDCG@10 0.")


def test_intervals_of_few_areas_are_by_student():
    """Half of the interval of three numbers: 4.303 standard errors, not 1.96."""
    values = np.asarray([[0.2, 0.5, 0.8], [0.3, 0.6, 0.9]])
    rows = {"a": {"values": dict.fromkeys(places.METRICS, values)}}
    rows["b"] = {"values": dict.fromkeys(places.METRICS, values[:1] * [[1, 0.5, 0]])}
    found = places.compared(rows, "a")
    told = found["a"]["metrics"]["query/hit_rate@10"]
    assert told["mean"] == pytest.approx(0.55)
    assert told["ci95"] == pytest.approx(4.303 * 0.3 / 3**0.5, rel=1e-3)
    apart = found["b"]["difference"]["query/hit_rate@10"]
    assert apart["by_area"] == pytest.approx([0.05, 0.3, 0.85])
    spread = np.std([0.05, 0.3, 0.85], ddof=1)
    assert apart["ci95"] == pytest.approx(4.303 * spread / 3**0.5, rel=1e-3)


def test_one_area_and_one_seed_are_refused():
    one = {"a": {"values": dict.fromkeys(places.METRICS, np.ones((3, 1)))}}
    with pytest.raises(ValueError, match="a was judged on 1 area; expected two or more"):
        places.compared(one, "a")
    with pytest.raises(SystemExit, match="--seeds is 1; expected 2 or more"):
        places.Places(seeds=1).run_benchmark()
    with pytest.raises(SystemExit, match="--seeds is 0; expected 1 or more"):
        places.Places(seeds=0, part="validation").run_benchmark()


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
