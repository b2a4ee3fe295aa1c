"""Run folders: refused, repeated, interrupted, killed and resumed."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import orbax.checkpoint as ocp
import pytest
from commands import assert_same_run, ok, programs, refused, rows, run
from flips import flipped

from metalearn import runs
from metalearn.apps import plots
from metalearn.cli import train
from metalearn.core import digest
from metalearn.runs import folder as run_folder

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


def edited(folder, change, *, seal=False):
    """Changes the `config.json` of a run, with a right digest if `seal`."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    if seal:
        config = digest.sealed(config, free=("data_dir",))
    path.write_text(json.dumps(config))
    return path


DAMAGED = {
    "no settings": lambda config: config.pop("settings"),
    "no seed": lambda config: config.pop("seed"),
    "nothing": lambda config: config.update(settings=None, data=None),
    "no app": lambda config: config["settings"].pop("app"),
    "a list": lambda config: config["settings"].update(outer=[]),
    "a word": lambda config: config["settings"].update(learner="maml"),
    "no name": lambda config: config["settings"]["learner"].pop("name"),
    "a kind": lambda config: config["settings"]["app"].update(kind=["x"]),
    "a number": lambda config: config["settings"]["app"].update(shots={"a": 1}),
}


@pytest.mark.parametrize("seal", [False, True], ids=["edited", "sealed"])
@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED)
def test_damaged_configurations_are_named(trained_sine, sine, tmp_path, change, seal):
    shutil.copytree(trained_sine, tmp_path / "run")
    path = edited(tmp_path / "run", change, seal=seal)
    for words in (("train", *sine, "--resume", "--out"), ("evaluate",)):
        assert str(path) in refused(*words, tmp_path / "run")


# Each fits the weights in shape, and would be evaluated as if it had been trained.
EDITS = {
    "learner": lambda config: config["settings"]["learner"].update(num_steps=2),
    "rate": lambda config: config["settings"]["learner"].update(inner_rate=0.5),
    "tasks": lambda config: config["settings"]["app"].update(eval_queries=3),
    "number": lambda config: config["settings"].update(test_tasks=4),
    "seed": lambda config: config.update(seed=1),
    "name": lambda config: config.update(recipe="another"),
    "data": lambda config: config["data"].update(name="another"),
    "version": lambda config: config["versions"].update(jax="0"),
    "digest": lambda config: config.update(digest="0" * 64),
    "no digest": lambda config: config.pop("digest"),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_an_edited_configuration_is_not_taken_for_that_of_the_run(
    trained_sine, tmp_path, change
):
    shutil.copytree(trained_sine, tmp_path / "run")
    path = edited(tmp_path / "run", change)
    for words in (("evaluate",), ("train", "--resume", "--out")):
        err = refused(*words, tmp_path / "run")
        assert f"{path} is not as it was written" in err and "Restore the file" in err


def test_the_configuration_of_another_run_is_refused(trained_sine, tmp_path):
    """As it was written, but not for these checkpoints."""
    shutil.copytree(trained_sine, tmp_path / "run")
    edited(tmp_path / "run", EDITS["tasks"], seal=True)
    err = refused("evaluate", tmp_path / "run")
    assert "/checkpoints/20 is a checkpoint of run" in err and "Put them back" in err


def test_only_the_place_of_the_data_may_be_edited(trained_sine, tmp_path):
    shutil.copytree(trained_sine, tmp_path / "run")
    edited(tmp_path / "run", lambda config: config.update(data_dir="/moved"))
    assert runs.load(tmp_path / "run").seed == 0


def test_flipped_bits_of_a_run_are_noticed_or_harmless(trained_sine, tmp_path):
    shutil.copytree(trained_sine, tmp_path / "run")
    paths = [tmp_path / "run" / name for name in ("config.json", "results.json")]
    config, results = (json.loads(path.read_text()) for path in paths)
    config.pop("data_dir")
    results.pop("digest")
    for file in flipped(paths, seed=0):
        try:
            if file == paths[0]:
                found = run_folder.stored_config(tmp_path / "run")
                found.pop("data_dir")
                assert found == config
            else:
                assert runs.read_results(tmp_path / "run") == results
        except ValueError as error:
            assert str(file) in str(error)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match="Finish the run with"):
        runs.read_results(tmp_path / "run")


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
    edited(
        moved,
        lambda config: config["data"]["parts"]["train"].update(sha256="other"),
        seal=True,
    )
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
    """In processes of their own: training is killed and resumed."""
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
        process.send_signal(signal.SIGSTOP)  # it lives, and comes no further
        for again in (words, [*words, "--resume"]):
            err = refused(*again)
            assert f"in use by process {process.pid} on" in err and "Delete" not in err
        if kind == "images":  # whoever reads needs no lock and harms nothing
            assert "query/loss" in ok("evaluate", folder, "--json")
        process.send_signal(signal.SIGCONT)
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
    found, stored = (
        json.loads((f / "results.json").read_text()) for f in (folder, uninterrupted)
    )
    assert found["query/loss"] == stored["query/loss"]


def start(*words):
    """The command in a process of its own, with the compiled programs of this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "metalearn", *words],
        env={**os.environ, **programs()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_path_that_is_no_text_is_refused_before_anything_is_made(tmp_path, sine):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")
    assert "expected the path of a folder in UTF-8" in refused("train", *sine, "--out", out)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_is_finished(base, sine, trained_sine, monkeypatch):
    """A checkpoint fails in the middle; the run goes on from the one before, exactly."""
    folder = base / "full_disk"
    words = ["train", *sine, "--out", str(folder)]
    save = ocp.Checkpointer.save

    def full(self, directory, *args, **options):
        if Path(directory).parent.name == "15.part":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(self, directory, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", full)
        err = refused(*words)
    assert f"{folder / 'checkpoints' / '15'} cannot be written: the disk is full" in err
    assert "Checkpoints up to 10 are whole; go on from there." in err
    ok(*words, "--resume")
    assert_same_run(folder, trained_sine)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "results.json"])
def test_every_file_of_a_run_says_when_the_disk_is_full(
    base, sine, trained_sine, monkeypatch, tmp_path, name
):
    move = Path.replace

    def full(path, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return move(path, target)

    where = tmp_path / "run"
    if name != "config.json":
        shutil.copytree(trained_sine, where)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        err = refused("train", *sine, "--out", where, "--resume")
    assert f"{where / name} cannot be written: the disk is full" in err
    if name != "config.json":
        assert_same_run(where, trained_sine)


@pytest.mark.slow
def test_a_full_disk_under_a_picture_leaves_results(
    sine, trained_sine, monkeypatch, tmp_path
):
    def full(path, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.copytree(trained_sine, tmp_path / "run")
    monkeypatch.setattr(plots, "learning_curve", full)
    err = refused("train", "--resume", "--out", tmp_path / "run")
    assert "learning_curve.png cannot be written: the disk is full" in err
    assert "checkpoints and results of the run are whole" in err
