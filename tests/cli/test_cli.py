"""The command line, end to end, on a handful of small images."""

import contextlib
import dataclasses
import json
import re
import shutil
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import PER_CLASS, _png, ok, refused, rows, run
from image_folders import image_set

from metalearn import apps, runs
from metalearn.apps import learners, sgd
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.cli import evaluate
from metalearn.cli import options as cli_options
from metalearn.runs import environment

# Orbax leaves its event loop and threads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_training_leaves_a_run_folder(trained):
    out = trained.with_suffix(".out").read_text()
    files = ("config.json", "metrics.jsonl", "results.json")
    pictures = ("learning_curve.png", "episode.png")
    for name in (*files, *pictures):
        assert str(trained / name) in out
        assert (trained / name).stat().st_size > 0
    for name in pictures:
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    assert re.search(r"accuracy \d+\.\d+ ± \d+\.\d+ %.*5 tasks.*inductive", out)
    assert "classes: train 5, validation 4, test 4" in out
    assert "Compiling the first step ..." in out
    assert re.search(r"The first step was compiled and done in \d+\.\d s", out)
    config = json.loads((trained / "config.json").read_text())
    assert config["recipe"] == "glyphs-maml"
    assert config["settings"]["app"]["width"] == 4
    assert {"python", "jax", "jaxlib", "flax", "optax"} <= config["versions"].keys()
    assert config["device"]["platform"] == jax.default_backend()
    results = json.loads((trained / "results.json").read_text())
    assert results["num_tasks"] == 5
    assert results["transductive"] is False
    assert results["test_data"] == config["data"]


def test_rows_of_metrics(trained):
    steps = [row["step"] for row in rows(trained) if "validation/accuracy" not in row]
    assert steps == [5, 10, 15, 20]
    steps = [row["step"] for row in rows(trained) if "validation/accuracy" in row]
    assert steps == [10, 20]


def test_the_loss_of_a_line_is_that_of_the_query(trained):
    first = rows(trained)[0]
    assert first["query/loss"] != first["support/loss"]
    assert f"loss {first['query/loss']:.4f}" in trained.with_suffix(".out").read_text()


def test_evaluate_repeats_the_number_of_training(trained):
    found = json.loads(ok("evaluate", trained, "--json"))
    stored = json.loads((trained / "results.json").read_text())
    for name in ("query/accuracy", "num_tasks", "best_step", "transductive"):
        assert found[name] == stored[name]
    # To the last digits, which depend on how many devices share the tasks.
    assert found["query/loss"] == pytest.approx(stored["query/loss"], rel=1e-4)
    assert found["query/loss"]["mean"] == pytest.approx(
        stored["query/loss"]["mean"], rel=1e-6
    )


def test_evaluate_other_tasks(trained):
    options = ("--ways=2", "--shots=2", "--tasks=4", "--seed=3")
    parsed = cli_options.parse(
        cli_options.EvaluateOptions, [str(trained), *options], "evaluate"
    )
    found, words = evaluate.judged(parsed)
    assert (found["test_ways"], found["test_shots"], found["test_seed"]) == (2, 2, 3)
    assert found["num_tasks"] == 4
    assert found["query/accuracy"]["mean"] > 0
    assert not found["transductive"]
    assert re.search(r"2-way 2-shot: .* ± ", words)


def test_evaluate_with_other_statistics(trained):
    assert "expected one of" in refused("evaluate", trained, "--norm-policy=all")
    assert "has no effect" in refused("evaluate", trained, "--norm-policy=batch")  # no norm
    options = cli_options.EvaluateOptions(run="", norm_policy="batch")
    recipe = apps.find("glyphs-maml").recipe
    assert cli_options.for_evaluation(recipe, options).learner.norm == "batch"
    options = cli_options.EvaluateOptions(run="", norm_policy="running")
    with pytest.raises(ValueError, match="averages are not those"):
        cli_options.for_evaluation(recipe, options)


def test_evaluate_with_other_inner_steps():
    options = cli_options.EvaluateOptions(run="", steps=0)
    recipe = apps.find("glyphs-maml").recipe
    assert cli_options.for_evaluation(recipe, options).eval_steps == 0
    # A learner with such a setting of its own has it said once.
    reptile = learners.Reptile(inner_opt=sgd(0.1), num_steps=1, eval_steps=5)
    own = dataclasses.replace(recipe, learner=reptile)
    found = cli_options.for_evaluation(own, options)
    assert found.eval_steps == 0 and found.learner.eval_steps is None
    with pytest.raises(ValueError, match="takes no number of inner steps"):
        cli_options.for_evaluation(
            apps.find("glyphs-protonet").recipe,
            cli_options.EvaluateOptions(run="", steps=1),
        )


def test_evaluate_another_alphabet(base, trained):
    """A folder with evaluation alphabets alone is enough."""
    rng = np.random.default_rng(1)
    folder = base / "alphabets"
    folder.mkdir()
    with zipfile.ZipFile(folder / "images_evaluation_other.zip", "w") as archive:
        for character in range(4):
            for drawer in range(PER_CLASS):
                name = f"Elvish/character{character:02}/{character:04}_{drawer:02}.png"
                archive.writestr(f"images_evaluation/{name}", _png(rng))
    out = ok("evaluate", trained, "--dataset", "omniglot", "--data-dir", folder, "--json")
    found = json.loads(out)
    assert found["test_data"]["name"] == "omniglot"
    assert found["test_data"]["parts"]["test"]["classes"] == 4
    assert found["training_data"]["name"] != "omniglot"


@pytest.mark.parametrize("name", ["train_1", "new_1"])
def test_classes_that_training_saw_are_pointed_out(base, trained, capsys, name):
    """Also in another set, where "train-1" and "train_1" are one class."""
    folder = base / f"other_{name}"
    for tested in (name.replace("_", "-"), "new_2", "new_3"):
        (folder / "test" / tested).mkdir(parents=True)
        for i in range(PER_CLASS):
            png = _png(np.random.default_rng(i))
            (folder / "test" / tested / f"{i}.png").write_bytes(png)
    options = cli_options.EvaluateOptions(
        str(trained), dataset=f"folder:{folder}", channels=1
    )
    loaded = cli_options.load_run(trained)
    recipe = cli_options.for_evaluation(loaded.recipe, options)
    evaluate.load_data(loaded, recipe, options)
    said = capsys.readouterr().err
    assert ("trained on classes that are tested here" in said) == (name == "train_1")
    assert ("'train-1' in test" in said) == (name == "train_1")


def test_classes_that_a_mixture_saw_are_found_too(tmp_path):
    mixed = {
        "a": image_set({"train": ["lion", "cup"]}),
        "b": image_set({"train": ["bee"], "test": ["owl"]}),
    }
    app = types.SimpleNamespace(load=lambda data_dir, parts: mixed)
    made = types.SimpleNamespace(
        recipe=types.SimpleNamespace(app=app), folder=tmp_path / "run"
    )
    (found,) = runs.trained_on(made, image_set({"test": ["Bee", "owl", "yak"]}))
    assert found.classes == ("bee",) and found.other_classes == ("Bee",)


def test_training_data_that_is_gone_is_said(base, trained, capsys, monkeypatch):
    def gone(run, data):
        raise FileNotFoundError("no such folder")

    monkeypatch.setattr(evaluate.runs, "trained_on", gone)
    evaluate._note_seen_classes(cli_options.load_run(trained), None)
    assert "is not known, for its training data could not be read (no such" in (
        capsys.readouterr().err
    )


def loaded_for_test(trained, *options):
    """What `metalearn evaluate` would test on."""
    words = [str(trained), *options]
    options = cli_options.parse(cli_options.EvaluateOptions, words, "evaluate")
    loaded = runs.load(trained)
    recipe = cli_options.for_evaluation(loaded.recipe, options)
    return evaluate.load_data(loaded, recipe, options)


def test_other_test_images_are_pointed_out(trained, monkeypatch, capsys):
    describe = FewShotImages.describe

    def other(self, data):
        record = describe(self, data)
        record["parts"]["test"]["sha256"] = "other"
        return record

    with monkeypatch.context() as patch:
        patch.setattr(FewShotImages, "describe", other)
        loaded_for_test(trained)
    assert "not those" in capsys.readouterr().err
    loaded_for_test(trained)
    assert "not those" not in capsys.readouterr().err


def test_images_that_do_not_fit_are_refused(base, trained):
    rng = np.random.default_rng(2)
    for name in ("a", "b", "c", "d"):
        (base / "photos" / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            (base / "photos" / name / f"{i}.png").write_bytes(_png(rng, 3, 12))
    dataset = ("--dataset", f"folder:{base / 'photos'}", "--split", "test")
    err = refused("evaluate", trained, *dataset)
    assert "trained on 28x28 grey images" in err
    assert "12x12 colour" in err
    assert "--image-size 28 --channels 1" in err
    data, _ = loaded_for_test(trained, *dataset, "--image-size=28", "--channels=1")
    assert data.test.image_shape == (28, 28, 1)


def test_more_ways_than_logits_are_refused(trained):
    err = refused("evaluate", trained, "--ways", 4)
    assert "4 logits" in err
    assert "--app.ways 4" in err


@pytest.mark.parametrize(
    "options, message",
    [
        (("--ways", 1), "expected 2 or more"),
        (("--ways", 3, "--shots", 3), "fewer shots"),
        (("--tasks", 1), "expected 2 or more"),
        (("--seed", -1), "expected 0 or more"),
        (("--dataset", "omniglott"), "Did you mean 'omniglot'"),
        (("--nonsense",), "nonsense"),
    ],
)
def test_evaluate_refuses(trained, options, message):
    assert message in refused("evaluate", trained, *options)


def test_evaluate_without_a_run(tmp_path):
    assert "holds no run" in refused("evaluate", tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in refused("evaluate", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "not the configuration" in refused("evaluate", tmp_path)


def test_a_run_without_checkpoint(trained, tmp_path):
    shutil.copy(trained / "config.json", tmp_path)
    assert "no checkpoint yet" in refused("evaluate", tmp_path)


def test_sinusoid(base, trained_sine):
    assert (trained_sine / "episode.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(ok("evaluate", trained_sine, "--json", "--shots=5"))
    assert found["query/loss"]["mean"] > 0
    assert "eval_ways" in refused("evaluate", trained_sine, "--ways=3")
    assert "dataset" in refused("evaluate", trained_sine, "--dataset=glyphs")
    err = refused("train", "sinusoid-maml", "--data-dir=x", "--out", base / "never")
    assert "on the fly" in err
    assert not (base / "never").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (("train", "glyphs-mam"), "Did you mean glyphs-maml"),
        (("train", "glyphs-maml", "--stepss", 3), "--steps"),
        (("train", "glyphs-maml", "--steps", "many"), "many"),
        (("train", "glyphs-maml", "--steps", 0), "expected 1 or more"),
        (("train", "glyphs-maml", "--outer.halve-every", 5), "has no effect"),
        (("train", "glyphs-maml", "--ways", 5), "--app.ways"),
        (("train", "glyphs-maml", "--learner", "mamal"), "Did you mean maml"),
        (("train", "glyphs-maml", "--learner", "no_package:f"), "cannot be imported"),
        (("train", "glyphs-maml", "--learner.tree", "4"), "--learner.tree"),
        (("train", "glyphs-protonet", "--learner", "reptile"), "--learner.num-steps"),
        (("train", "--app.dataset", "nothing-here", "--out", "o"), "Unknown data set"),
        (("train", "--seed", -1), "expected 0 or more"),
        (("train", "families-hsml", "--learner.tree", 4, 2), "one node as the root"),
        (("trian",), "Did you mean train"),
        (("data", "prepair"), "Did you mean prepare"),
        (("data", "prepare", "glyph"), "Did you mean 'glyphs'"),
        (("data", "prepare"), "required"),
    ],
)
def test_mistakes_are_explained(base, words, message, monkeypatch):
    monkeypatch.chdir(base)
    before = sorted(base.iterdir())
    assert message in " ".join(refused(*words).split())
    assert sorted(base.iterdir()) == before


def test_recipe_may_stand_anywhere(base, trained):
    words = ("train", "--resume", "glyphs-anil", "--out", trained)
    assert "asked for glyphs-anil" in refused(*words)
    words = ("train", "--out", trained, "--resume", "glyphs-anil")
    assert "asked for glyphs-anil" in refused(*words)


def test_list():
    out = ok("list")
    assert "glyphs-maml *" in out
    assert "meta_sgd" in out
    found = json.loads(ok("list", "--json"))
    assert "omniglot-reptile-paper" in [row["name"] for row in found["recipes"]]
    assert all(row["description"] for row in found["recipes"])
    assert found["learners"]["protonet"]


def test_help_and_version():
    shown = ok("--help")
    for command in ("list", "train", "evaluate", "compare", "predict", "data prepare"):
        assert f"metalearn {command}" in shown
    assert run()[0] == 2
    assert re.match(r"metalearn \d", ok("--version"))
    assert "--learner.inner-opt.rate" in ok("train", "glyphs-maml", "--help")
    shown = ok("train", "families-hsml", "--learner.tree", 3, 1, "--help")
    assert "--app.widths" in shown
    words = " ".join(shown.replace("│", " ").split())
    assert re.search(r"--learner.tree \[?INT.* Clusters of each layer, leaves first", words)
    assert re.search(r"--learner.aggregator \{gru,mean\}", words)
    assert ok("data", "--help")


def test_data_commands(base, image_folder):
    assert "omniglot" in ok("data", "list")
    found = json.loads(ok("data", "list", "--json"))
    texts = {"banking77", "hwu64", "liu54", "huffpost41", "fewrel", "own"}
    kinds = {"glyphs": "images", "omniglot": "images"} | dict.fromkeys(texts, "texts")
    ratings = {"ml-100k", "ml-1m", "ml-1m-coldstart", "own"}
    visits = {"foursquare_cities", "foursquare_nyc_geo", "flickr_tours", "own"}
    assert {(row["name"], row["kind"]) for row in found} == {
        *kinds.items(),
        *((name, "ratings") for name in ratings),
        *((name, "places") for name in visits),
        *((name, "graphs") for name in ("cora", "citeseer", "amazon_clothing20", "own")),
        *((name, "domains") for name in ("rotated-mnist", "pacs", "own")),
    }
    assert "prepared" in ok("data", "prepare", image_folder, "--channels=1")


def test_compilation_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    environment.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before  # the user's choice stays
    assert environment.cache_root() == tmp_path
    monkeypatch.delenv("METALEARN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert environment.cache_root() == tmp_path / "xdg" / "metalearn"


@contextlib.contextmanager
def kept_cache():
    names = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_without_a_place_for_the_cache_there_is_none(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path / "file"))
    with kept_cache():
        jax.config.update("jax_compilation_cache_dir", None)
        with pytest.warns(UserWarning, match="METALEARN_CACHE"):
            environment.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None


def test_a_shared_cache_loses_what_a_killed_process_left(tmp_path):
    for name in ("whole-cache", "whole-atime", "torn-cache"):
        (tmp_path / name).write_bytes(b"program")
    with kept_cache():
        environment.share_compilations(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*-*")) == ["whole-atime", "whole-cache"]


def test_picture_of_a_tie_and_of_many_ways(tmp_path):
    """Equal logits are no prediction; more columns than fit are left out."""
    import metalearn as ml
    from metalearn.apps import plots

    y = np.repeat(np.arange(30, dtype=np.int32), 2)
    x = np.zeros((60, 8, 8, 3), np.float32)
    task = ml.Task(support=ml.Examples.of(x, y), query=ml.Examples.of(x, y))
    logits = np.zeros((60, 30), np.float32)
    path = Path(tmp_path / "p.png")
    plots.image_episode(path, task, logits, np.eye(30)[y], title="t", names=["$é_/x"] * 30)
    assert path.stat().st_size > 0
    assert plots._guess(logits[0], 0) == ("?", False)
    assert plots._accuracy(logits, y) == pytest.approx(1 / 30)
