"""Run folders: refused, repeated, interrupted, killed and resumed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest
from commands import assert_same_run, ok, refused, rows, run

from metalearn.cli import train

# Orbax leaves its event loop and threads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


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


def test_resuming_needs_a_run_or_a_recipe(tmp_path):
    err = refused("train", "--resume", "--out", tmp_path / "mistyped")
    assert "holds no run" in err and not (tmp_path / "mistyped").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("settings"),
        lambda config: config.pop("seed"),
        lambda config: config.update(settings=None, data=None),
        lambda config: config["settings"].pop("app"),
        lambda config: config["settings"].update(outer=[]),
        lambda config: config["settings"].update(learner="maml"),
        lambda config: config["settings"]["learner"].pop("name"),
        lambda config: config["settings"]["app"].update(kind=["x"]),
        lambda config: config["settings"]["app"].update(shots={"a": 1}),
    ],
)
def test_damaged_configurations_are_named(trained_sine, sine, tmp_path, change):
    shutil.copytree(trained_sine, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    for words in (("train", *sine, "--resume", "--out"), ("evaluate",)):
        assert str(path) in refused(*words, tmp_path / "run")


def test_weights_of_another_learner_are_not_evaluated(trained_sine, tmp_path):
    shutil.copytree(trained_sine, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["settings"]["learner"]["num_steps"] = 2
    path.write_text(json.dumps(config))
    err = refused("evaluate", tmp_path / "run")
    assert "num_steps: trained with 5, config.json says 2" in err


def test_other_settings_are_refused(trained, tiny):
    err = refused("train", *tiny, "--out", trained, "--resume", "--app.width=8")
    assert "width: the run has 4, asked for 8" in err
    err = refused("train", *tiny, "--out", trained, "--resume", "--steps=40")
    assert "cannot be made longer" in err
    other = ["glyphs-anil", *tiny[1:], "--seed=1"]
    err = refused("train", *other, "--out", trained, "--resume")
    assert "recipe: the run has glyphs-maml, asked for glyphs-anil" in err
    assert "seed: the run has 0, asked for 1" in err
    assert "learner.name: the run has maml, asked for anil" in err


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
        patch.setattr(train, "console", stop_at_ten)
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
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(jax.config.jax_compilation_cache_max_size),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "metalearn", *words],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
