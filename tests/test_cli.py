"""The command line, end to end, on a handful of small images."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from metalearn import cli, environment, runs

# Orbax leaves its event loop and threads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
SIZE, PER_CLASS = 28, 4
PARTS = {"train": 5, "val": 4, "test": 4}


def _png(rng, channels=1, size=SIZE):
    pixels = rng.integers(0, 2, (size, size, channels)) * 255
    stream = io.BytesIO()
    array = pixels[..., 0] if channels == 1 else pixels
    Image.fromarray(array.astype(np.uint8)).save(stream, "png")
    return stream.getvalue()


def _images(root, seed=0):
    """A folder of classes with a splits.json."""
    rng = np.random.default_rng(seed)
    splits = {part: [f"{part}_{i}" for i in range(n)] for part, n in PARTS.items()}
    for name in (name for names in splits.values() for name in names):
        (root / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            (root / name / f"{i}.png").write_bytes(_png(rng))
    (root / "splits.json").write_text(json.dumps(splits))
    return root


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A folder for all runs; records go to a cache inside it."""
    root = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALEARN_CACHE", str(root / "records"))
        yield root


@pytest.fixture(scope="session")
def tiny(base):
    """A recipe on images and options that make it a run of seconds.

    Compiling is most of it, and most of that is batch norm: left out.
    """
    folder = _images(base / "images")
    options = {
        "dataset": f"folder:{folder}",
        "channels": 1,
        "ways": 3,
        "queries": 2,
        "eval-queries": 2,
        "width": 4,
        "norm": "none",
        "steps": 20,
        "tasks-per-step": 2,
        "validate-every": 10,
        "validation-tasks": 4,
        "test-tasks": 5,
        "checkpoint-every": 5,
        "log-every": 5,
    }
    return ["glyphs-maml", *(f"--{name}={value}" for name, value in options.items())]


@pytest.fixture(scope="session")
def sine():
    """The same without images."""
    options = {
        "steps": 20,
        "tasks-per-step": 2,
        "eval-queries": 5,
        "validate-every": 10,
        "validation-tasks": 4,
        "test-tasks": 5,
        "checkpoint-every": 5,
        "log-every": 5,
    }
    return ["sinusoid-maml", *(f"--{name}={value}" for name, value in options.items())]


def run(*words):
    """Exit code, standard output and standard error of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def ok(*words):
    code, out, err = run(*words)
    assert code == 0, err
    return out


def refused(*words):
    code, _, err = run(*words)
    assert code == 2
    assert "Traceback" not in err
    return err


@pytest.fixture(scope="session")
def trained(base, tiny):
    """A finished run; not to be changed."""
    folder = base / "trained"
    out = ok("train", *tiny, "--out", folder)
    (base / "trained.out").write_text(out)
    return folder


@pytest.fixture(scope="session")
def trained_sine(base, sine):
    """A finished run on sine waves; not to be changed."""
    folder = base / "trained_sine"
    ok("train", *sine, "--out", folder)
    return folder


def final_arrays(folder):
    """All arrays of the latest checkpoint."""
    opened = runs.load(folder)
    state = opened.recipe.state_like(opened.record)
    checkpoints = opened.checkpoints()
    step = checkpoints.latest()
    tree, _ = checkpoints.restore(step, like={"state": state, "best": state.variables})
    checkpoints.close()
    return step, [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same_run(one, other):
    (step, arrays), (other_step, other_arrays) = final_arrays(one), final_arrays(other)
    assert step == other_step
    for mine, theirs in zip(arrays, other_arrays, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_training_leaves_a_run_folder(base, trained):
    out = (base / "trained.out").read_text()
    files = ("config.json", "metrics.jsonl", "results.json")
    pictures = ("learning_curve.png", "episode.png")
    for name in (*files, *pictures):
        assert str(trained / name) in out
        assert (trained / name).stat().st_size > 0
    for name in pictures:
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    assert re.search(r"accuracy \d+\.\d+ ± \d+\.\d+ %.*5 tasks.*inductive", out)
    assert "classes: train 5, validation 4, test 4" in out
    config = json.loads((trained / "config.json").read_text())
    assert config["recipe"] == "glyphs-maml"
    assert config["settings"]["width"] == 4
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


def test_the_loss_of_a_line_is_that_of_the_query(base, trained):
    first = rows(trained)[0]
    assert first["query/loss"] != first["support/loss"]
    assert f"loss {first['query/loss']:.4f}" in (base / "trained.out").read_text()


def test_evaluate_repeats_the_number_of_training(trained):
    found = json.loads(ok("evaluate", trained, "--json"))
    stored = json.loads((trained / "results.json").read_text())
    for name in ("query/accuracy", "query/loss", "num_tasks", "best_step", "transductive"):
        assert found[name] == stored[name]


def test_evaluate_other_tasks(trained):
    found = json.loads(
        ok("evaluate", trained, "--json", "--ways=2", "--shots=2", "--tasks=4", "--seed=3")
    )
    assert (found["test_ways"], found["test_shots"], found["test_seed"]) == (2, 2, 3)
    assert found["num_tasks"] == 4
    assert found["query/accuracy"]["mean"] > 0
    assert re.search(
        r"2-way 2-shot: .* ± ", ok("evaluate", trained, "--ways=2", "--shots=2")
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


def test_other_test_images_are_pointed_out(base, trained, monkeypatch):
    changed = base / "changed"
    shutil.copytree(trained, changed)
    config = json.loads((changed / "config.json").read_text())
    config["data"]["parts"]["test"]["sha256"] = "other"
    (changed / "config.json").write_text(json.dumps(config))
    code, _, err = run("evaluate", changed)
    assert code == 0
    assert "not those" in err
    assert "not those" not in run("evaluate", trained)[2]


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
    ok("evaluate", trained, *dataset, "--image-size=28", "--channels=1")


def test_more_ways_than_logits_are_refused(trained):
    err = refused("evaluate", trained, "--ways", 4)
    assert "4 logits" in err
    assert "protonet" in err


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


def test_existing_folder_is_refused(base, trained, tiny):
    err = refused("train", *tiny, "--out", trained)
    assert "already holds a run" in err
    assert "--resume" in err
    full = base / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert "not a run" in refused("train", *tiny, "--out", full)
    assert "no run to resume" in refused("train", *tiny, "--out", full, "--resume")
    assert "is a file" in refused("train", *tiny, "--out", full / "notes.txt")


def test_other_settings_are_refused(trained, tiny):
    err = refused("train", *tiny, "--out", trained, "--resume", "--width=8")
    assert "width: the run has 4, asked for 8" in err
    err = refused("train", *tiny, "--out", trained, "--resume", "--steps=40")
    assert "cannot be made longer" in err
    other = ["glyphs-anil", *tiny[1:], "--seed=1"]
    err = refused("train", *other, "--out", trained, "--resume")
    assert "recipe: the run has glyphs-maml, asked for glyphs-anil" in err
    assert "seed: the run has 0, asked for 1" in err
    assert "algorithm: the run has maml, asked for anil" in err


def test_other_data_are_refused(base, trained, tiny):
    moved = base / "moved"
    shutil.copytree(trained, moved)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["parts"]["train"]["sha256"] = "other"
    (moved / "config.json").write_text(json.dumps(config))
    err = refused("train", *tiny, "--out", moved, "--resume")
    assert "train sha256: the run has other" in err


def test_finished_run_is_evaluated_again(base, trained_sine):
    """Without a recipe's name, --resume takes that of the folder."""
    again = base / "again"
    shutil.copytree(trained_sine, again)
    (again / "results.json").unlink()
    out = ok("train", "--resume", "--out", again)
    assert "Going on from step 20 of 20" in out
    stored = json.loads((trained_sine / "results.json").read_text())
    found = json.loads((again / "results.json").read_text())
    assert found["query/loss"] == stored["query/loss"]
    assert rows(again) == rows(trained_sine)
    assert_same_run(again, trained_sine)


def test_interrupted_run_goes_on_exactly(base, sine, trained_sine, monkeypatch):
    def stop_at_ten(recipe):
        def write(row):
            if row["step"] == 10:
                raise KeyboardInterrupt

        return write

    folder = base / "interrupted"
    words = ["train", *sine, "--out", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_console", stop_at_ten)
        code, _, err = run(*words)
    assert code == 130
    assert "saved up to step 5" in err
    assert " ".join(["metalearn", *words, "--resume"]) in err
    assert 10 in [row["step"] for row in rows(folder)]  # to be written again
    ok(*words, "--resume")
    assert_same_run(folder, trained_sine)
    steps = [row["step"] for row in rows(folder)]
    assert steps == [row["step"] for row in rows(trained_sine)]


@pytest.mark.parametrize("kind", ["sine", pytest.param("images", marks=pytest.mark.slow)])
def test_killed_run_goes_on_exactly(base, kind, request):
    """In processes of their own: training is killed, resumed, evaluated."""
    if kind == "sine":
        options, uninterrupted = "sine", "trained_sine"
    else:
        options, uninterrupted = "tiny", "trained"
    words = request.getfixturevalue(options)
    uninterrupted = request.getfixturevalue(uninterrupted)
    folder = base / f"killed_{kind}"
    # A checkpoint at every step gives time to kill it, and changes no number.
    words = ["train", *words, "--checkpoint-every=1", "--out", str(folder)]
    with start(*words) as process:
        saved = [folder / "checkpoints" / str(step) for step in range(3, 18)]
        while process.poll() is None and not any(path.is_dir() for path in saved):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "results.json").exists()
    with start(*words, "--resume") as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    step = re.search(r"Going on from step (\d+) of 20", out)
    assert 0 < int(step[1]) < 20
    assert_same_run(folder, uninterrupted)
    with start("evaluate", str(folder), "--json") as process:
        found = json.loads(process.communicate()[0])
    stored = json.loads((uninterrupted / "results.json").read_text())
    assert found["query/loss"] == stored["query/loss"]


def start(*words):
    """The command in a process of its own, with the compiled programs of this one."""
    environ = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "metalearn", *words],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
        (("train", "glyphs-protonet", "--inner-rate", 0.1), "has no effect"),
        (("train", "--dataset", "nothing-here", "--out", "o"), "Unknown data set"),
        (("train", "--seed", -1), "expected 0 or more"),
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


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="Did you mean"):
        cli.main(["train", "glyphs-mam", "--debug"])


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
    assert "metalearn train" in ok("--help")
    assert run()[0] == 2
    assert re.match(r"metalearn \d", ok("--version"))
    assert "--inner-rate" in ok("train", "glyphs-maml", "--help")
    assert "--widths" in ok("train", "sinusoid-maml", "--help")
    assert ok("data", "--help")


def test_data_commands(base, tiny):
    assert "omniglot" in ok("data", "list")
    found = json.loads(ok("data", "list", "--json"))
    assert {row["name"] for row in found} == {"glyphs", "omniglot"}
    assert "prepared" in ok("data", "prepare", str(base / "images"), "--channels=1")


def test_compilation_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METALEARN_CACHE", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    environment.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before  # the user's choice stays
    assert environment.cache_root() == tmp_path
    monkeypatch.delenv("METALEARN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert environment.cache_root() == tmp_path / "xdg" / "metalearn"


def test_picture_of_a_tie_and_of_many_ways(tmp_path):
    """Equal logits are no prediction; more columns than fit are left out."""
    import metalearn as ml
    from metalearn import plots

    y = np.repeat(np.arange(30, dtype=np.int32), 2)
    x = np.zeros((60, 8, 8, 3), np.float32)
    task = ml.Task(support=ml.Examples.of(x, y), query=ml.Examples.of(x, y))
    logits = np.zeros((60, 30), np.float32)
    path = Path(tmp_path / "p.png")
    plots.image_episode(path, task, logits, np.eye(30)[y], title="t", names=["$é_/x"] * 30)
    assert path.stat().st_size > 0
    assert plots._guess(logits[0], 0) == ("?", False)
    assert plots._accuracy(logits, y) == pytest.approx(1 / 30)
