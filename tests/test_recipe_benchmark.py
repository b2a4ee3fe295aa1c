"""Results of recipes: stored under their own names, with the machine that trained them."""

import json
import types

import pytest

from benchmarks import _harness, recipe, table
from metalearn import apps
from metalearn.apps.records import changed
from metalearn.runs import folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: the run has 1, asked for 0"),
        (
            {"name": "sinusoid-anil"},
            "recipe: the run has sinusoid-anil, asked for sinusoid-maml",
        ),
        ({"steps": 7}, "steps: the run has 7"),
        ({"learner.num_steps": 3}, "learner.num_steps: the run has 3"),
        ({"log_every": 1}, None),
    ],
)
def test_a_finished_run_is_stored_under_its_own_name(
    change, message, monkeypatch, tmp_path
):
    name = "sinusoid-maml"
    found = {"name": name, "seed": 0, "recipe": apps.find(name).recipe}
    for field, value in change.items():
        if field not in found:
            field, value = "recipe", changed(found["recipe"], field, value)
        found[field] = value
    run = types.SimpleNamespace(**found)
    monkeypatch.setattr(recipe._runs, "train_in", lambda *_: None)
    monkeypatch.setattr(recipe._runs, "recorded_origin", lambda _: {})
    monkeypatch.setattr(recipe.run_folder, "load", lambda _: run)
    monkeypatch.setattr(recipe, "summary", lambda _: {})
    stored = []
    monkeypatch.setattr(recipe._harness, "store", lambda *given: stored.append(given))
    command = recipe.RunRecipe(name, run=str(tmp_path))
    if message is None:
        command.run_benchmark()
        assert len(stored) == 1
    else:
        with pytest.raises(SystemExit, match=message):
            command.run_benchmark()
        assert not stored


@pytest.mark.parametrize(
    ("origin", "where"),
    [
        ({"platform": "gpu", "kind": "a card", "jax": "2"}, "2, a card"),
        ({"platform": "gpu"}, "1, gpu"),
        ({"platform": "cpu", "cores": 4}, "1, 4 cores"),
        (None, "1, 2 cores"),
    ],
)
def test_the_table_says_where_a_run_was_trained(origin, where):
    here = {"versions": {"jax": "1"}, "device": {"cores": 2}}
    row = {"environment": here, "origin": {"machine": origin}}
    assert table._where_trained(row) == where
    if origin is None:
        assert table._where_trained({"environment": here}) == where


def test_stored_runs_of_recipes_have_the_settings_of_today():
    """A number under the name of a recipe is of that recipe, where both name a setting."""
    apart = {}
    for path in _harness.RESULTS.glob("*.json"):
        stored = json.loads(path.read_text())
        if stored.get("kind") == "recipe":
            today = apps.find(stored["recipe"]).recipe.settings()
            # Stored tuples are lists.
            wanted = folder.flat(json.loads(json.dumps(today)))
            given = folder.flat(stored["settings"])
            names = (wanted.keys() & given.keys()) - recipe.UNTOLD
            apart[path.name] = {n for n in names if wanted[n] != given[n]}
    assert apart and not any(apart.values()), apart
