"""`metalearn compare`, `train --seeds`, what `--resume` compares and `--steps` changes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from commands import ok, refused, run

from metalearn import apps, runs
from metalearn.apps.records import changed
from metalearn.cli import compare, seeds
from metalearn.cli.train_options import following, parse_train, seeds_of

# Orbax leaves its event loop and threads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def two_seeds(base, sine, trained_sine):
    """Runs of two seeds; the first existed before, and is not trained again."""
    shutil.copytree(trained_sine, base / "sines-seed0")
    out = ok("train", *sine, "--seeds", "0,1", "--out", base / "sines")
    return base / "sines-seed0", base / "sines-seed1", out


# -- Seeds -------------------------------------------------------------------------------


def test_seeds_are_trained_in_their_folders(base, two_seeds):
    first, second, out = two_seeds
    assert f"Seed 0 is finished in {first}" in out
    assert f"Seed 1 is trained in {second}" in out
    assert out.count("Compiling the first step") == 1
    assert json.loads((second / "config.json").read_text())["seed"] == 1
    found = [
        json.loads((f / "results.json").read_text())["query/loss"] for f in two_seeds[:2]
    ]
    means = [values["mean"] for values in found]
    table = json.loads((base / "sines-seeds.json").read_text())
    assert table["mean"] == pytest.approx(np.mean(means))
    # By hand: the standard deviation of two numbers is their distance over root two.
    spread = abs(means[0] - means[1]) / np.sqrt(2)
    assert table["sd_over_seeds"] == pytest.approx(spread)
    assert table["ci95_over_tasks"] == pytest.approx(np.mean([v["ci95"] for v in found]))
    words = " ".join(out.split())
    assert "Mean over 2 seeds" in words and "over 5 tasks of one seed" in words
    assert f"{means[1]:.4g} ± {found[1]['ci95']:.4g}" in words


def test_seeds_that_are_finished_are_not_trained_again(base, sine, two_seeds):
    again = ok("train", *sine, "--seeds", "0-1", "--out", base / "sines")
    assert "Compiling" not in again
    assert again.split("Mean over")[1] == two_seeds[2].split("Mean over")[1]


def test_seeds_of_other_settings_are_refused(base, sine, two_seeds):
    words = ("train", *sine, "--seeds", "0-1", "--out", base / "sines", "--steps=30")
    assert "steps: the run has 20, asked for 30" in refused(*words)


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.update(finished=False),
        lambda r: r.update(training_seed=1),
        lambda r: r.update(test_seed=3),
        lambda r: r.update(num_tasks=4),
        lambda r: r.pop("query/loss"),
        lambda r: r.update({"query/loss": [1.0, 2.0]}),
        lambda r: r["query/loss"].update(mean=None),
        lambda r: r["query/loss"].update(mean=float("nan")),
    ],
)
def test_results_of_something_else_are_not_taken(trained_sine, tmp_path, damage):
    shutil.copytree(trained_sine, tmp_path / "run")
    opened = runs.load(tmp_path / "run")
    assert seeds.finished(opened) is not None
    found = json.loads(opened.results_path.read_text())
    damage(found)
    opened.results_path.write_text(json.dumps(found))
    assert seeds.finished(opened) is None


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "null", "\x00"])
def test_damaged_results_count_as_none(trained_sine, tmp_path, text):
    shutil.copytree(trained_sine, tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text(text)
    assert seeds.finished(runs.load(tmp_path / "run")) is None


def test_one_seed_has_no_spread():
    found = seeds.summary("query/loss", {3: {"query/loss": {"mean": 2.0, "ci95": 0.5}}})
    assert found["sd_over_seeds"] is None
    assert (found["mean"], found["ci95_over_tasks"], found["num_seeds"]) == (2.0, 0.5, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-4", [0, 1, 2, 3, 4]),
        ("0,2,5", [0, 2, 5]),
        ("7", [7]),
        ("3-3", [3]),
        (" 0-1, 9 ", [0, 1, 9]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_words_for_seeds(text, expected):
    assert seeds_of(text) == expected


@pytest.mark.parametrize(
    "text", ["4294967296", "-1", "1-", "1--2", "1.5", "0x1", "²", "1 - 2-3"]
)
def test_no_words_for_seeds(text):
    with pytest.raises(ValueError, match="expected"):
        seeds_of(text)


# -- Comparisons -------------------------------------------------------------------------


def test_a_comparison_is_paired(two_seeds):
    first, second, _ = two_seeds
    found = json.loads(ok("compare", first, second, first, "--tasks", 7, "--json"))
    values = []
    for folder in (first, second):
        opened = runs.load(folder)
        recipe = dataclasses.replace(opened.recipe, test_tasks=7)
        judged = runs.judge(opened, runs.best(opened)[0], None, recipe=recipe)
        values.append(judged.values["query/loss"].astype(np.float64))
    gaps = values[1] - values[0]
    gap = found["runs"][1]["difference"]["query/loss"]
    assert gap["mean"] == pytest.approx(gaps.mean(), rel=1e-4, abs=1e-6)
    half = 1.96 * np.sqrt(((gaps - gaps.mean()) ** 2).sum() / 6 / 7)
    assert gap["ci95"] == pytest.approx(half, rel=1e-4)
    assert found["runs"][2]["difference"]["query/loss"] == {"mean": 0.0, "ci95": 0.0}
    assert "difference" not in found["runs"][0]
    assert found["num_tasks"] == 7
    assert [row["training_seed"] for row in found["runs"]] == [0, 1, 0]


def test_a_comparison_in_words(two_seeds):
    out = ok("compare", *two_seeds[:2])
    assert "5 tasks, query/loss, 95 % intervals" in out
    assert out.count("against the first") == 1
    assert str(two_seeds[1]) in out


def test_no_tasks_are_not_those_of_the_recipe(trained_sine):
    for number in (0, 1):
        err = refused("compare", trained_sine, trained_sine, "--tasks", number)
        assert f"test_tasks is {number}; expected 2 or more" in err


def test_runs_of_other_kinds_are_not_compared(trained, trained_sine):
    assert "different metrics" in refused("compare", trained, trained_sine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"app.eval_queries": 7}, "eval_queries: 5 and 7"),
        ({"app.eval_shots": 3}, "test_shots: 10 and 3"),
        ({"app.functions": "families"}, "sinusoid"),
    ],
)
def test_runs_on_other_tasks_are_not_compared(trained_sine, settings, message):
    opened = runs.load(trained_sine)
    recipe = opened.recipe
    for path, value in settings.items():
        recipe = changed(recipe, path, value)

    def contestant(recipe):
        record = recipe.app.describe(None)
        return compare.Contestant(opened, recipe, None, {}, None, record)

    one, other = contestant(opened.recipe), contestant(recipe)
    compare._check_same_tasks([one, one], 0)
    with pytest.raises(ValueError, match="different tasks") as caught:
        compare._check_same_tasks([one, one, other], 0)
    assert message in str(caught.value)
    assert "Make them the same by --ways" in str(caught.value)


# -- What `--resume` compares ------------------------------------------------------------


def test_resuming_needs_no_option_again(base, trained_sine, tmp_path):
    shutil.copytree(trained_sine, tmp_path / "run")
    words = ("train", "sinusoid-maml", "--resume", "--out", tmp_path / "run")
    name, options, recipe = parse_train([str(word) for word in words[1:]])
    assert recipe == runs.load(trained_sine).recipe
    assert (name, options.seed) == ("sinusoid-maml", 0)
    facts = {"name": name, "recipe": recipe, "seed": options.seed, "resume": True}
    runs.check_folder(tmp_path / "run", **facts)


@pytest.mark.parametrize(
    ("given", "differences"),
    [
        (("--steps=20", "--app.eval-queries=5"), []),
        (("--steps=40",), ["steps"]),
        (("--log-every", "7"), ["log_every"]),
        (("--seed=3",), ["seed"]),
        (("--learner=maml",), []),
        (
            ("--learner.num-steps", "2", "--outer.rate", "0.1"),
            ["learner.num_steps", "outer.rate"],
        ),
    ],
)
def test_resuming_compares_what_is_given(trained_sine, given, differences):
    words = ("train", "sinusoid-maml", "--resume", "--out", trained_sine, *given)
    if not differences:
        parse_train([str(word) for word in words[1:]])
        return
    lines = [line for line in refused(*words).splitlines() if "the run has" in line]
    assert [line.strip().partition(":")[0] for line in lines] == differences


def test_the_default_folder_is_found(trained_sine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_sine, tmp_path / "runs" / "sinusoid-maml-seed0")
    stored = runs.load(trained_sine).recipe
    assert parse_train(["sinusoid-maml", "--resume"])[2] == stored
    assert parse_train(["sinusoid-maml", "--seeds=0-1", "--resume"])[2] == stored
    assert parse_train(["sinusoid-maml"])[2] == apps.find("sinusoid-maml").recipe


# -- What follows the number of steps ----------------------------------------------------


@pytest.mark.parametrize(
    ("words", "log_every", "validate_every"),
    [
        ((), 100, 500),
        (("--steps=1500",), 100, 500),
        (("--steps=150",), 10, 50),
        (("--steps", "15"), 1, 5),
        (("--steps=3",), 1, 1),
        (("--steps=15000",), 1000, 5000),
        (("--steps=150", "--log-every=70"), 70, 50),
        (("--steps=150", "--validate_every", "30"), 10, 30),
        (("--steps=750",), 50, 200),
    ],
)
def test_rows_and_validations_follow_the_steps(words, log_every, validate_every):
    recipe = parse_train(["glyphs-maml", *words])[2]
    assert (recipe.log_every, recipe.validate_every) == (log_every, validate_every)
    assert recipe.checkpoint_every == 500


def test_what_follows_is_no_more_than_a_recipe_has_rows():
    """By a table of all recipes: a tenth of the steps has as many rows and validations."""
    for entry in apps.RECIPES.values():
        recipe = entry.recipe
        fewer = dataclasses.replace(recipe, steps=max(recipe.steps // 10, 1))
        short = following(fewer, recipe, ())
        for name in ("log_every", "validate_every"):
            before = recipe.steps / getattr(recipe, name)
            after = short.steps / getattr(short, name)
            assert before <= after <= 2.5 * before


def test_help_of_train_says_the_defaults_of_the_recipe():
    shown = " ".join(ok("train", "sinusoid-maml", "--help").split())
    assert "--seeds" in shown and "10000" in shown.replace(",", "")


def test_an_interrupted_seed_says_how_to_go_on(base, sine, tmp_path, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", stop)
    words = ("train", *sine, "--seeds", "4-5", "--out", tmp_path / "s")
    code, _, err = run(*words)
    assert code == 130
    assert "nothing saved yet" in err
    assert err.rstrip().endswith(" ".join(["metalearn", *map(str, words)]))
