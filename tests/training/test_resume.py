"""Going on with a run: bit for bit, and only with the same run."""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from sines import KEY, SINES, counting_learner, fit, same

import metalearn as ml


def test_resumed_training_is_bit_identical(tmp_path):
    whole = fit(60)
    checkpoints = ml.Checkpoints(tmp_path / "run")
    fit(25, checkpoints=checkpoints)
    resumed = fit(60, checkpoints=checkpoints, resume=True)
    assert same(whole.state, resumed.state) and same(whole.variables, resumed.variables)
    assert int(resumed.state.step) == resumed.best_step == 60
    again = fit(60, checkpoints=checkpoints, resume=True)
    assert same(whole.variables, again.variables)


def test_a_logging_window_goes_on_after_a_resume(tmp_path):
    """Stopped at step 8, after the checkpoint of step 6 in the middle of a window."""

    def losses(result):
        return {row["step"]: row["query/loss"] for row in result.history}

    def stop(row):
        if row["step"] == 8:
            raise KeyboardInterrupt

    options = {"log_every": 4, "checkpoints": ml.Checkpoints(tmp_path / "run")}
    with pytest.raises(KeyboardInterrupt):
        fit(12, checkpoint_every=6, sinks=[stop], **options)
    assert options["checkpoints"].latest() == 6
    resumed = fit(12, checkpoint_every=6, resume=True, **options)
    assert losses(resumed) == losses(fit(12, log_every=4))


KILLED = """
import sys
sys.path[:0] = [{here!r}, {here!r} + "/training"]
import conftest, jax
import metalearn as ml
from sines import fit
with jax.numpy_rank_promotion("raise"):
    fit({steps}, checkpoints=ml.Checkpoints({folder!r}), checkpoint_every=10, resume=True,
        sinks=[lambda row: print(row["step"], flush=True)], log_every=5)
"""


@pytest.mark.slow  # a command that is killed is quick: `tests/cli/test_cli_runs.py`
def test_killed_training_resumes_bit_identically(tmp_path):
    """SIGKILL at a random moment, in the middle of a checkpoint perhaps."""
    folder, here = str(tmp_path / "run"), str(Path(__file__).parents[1])
    code = KILLED.format(here=here, steps=100_000, folder=folder)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path, text=True
    )
    for line in process.stdout:
        if int(line) >= 20:
            break
    time.sleep(random.uniform(0, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    checkpoints = ml.Checkpoints(folder)
    reached = checkpoints.latest()
    assert reached >= 10
    steps = reached + 15
    resumed = fit(steps, checkpoints=checkpoints, resume=True)
    assert same(fit(steps).variables, resumed.variables)


def test_corrupted_latest_checkpoint_is_named(tmp_path):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    fit(20, checkpoints=checkpoints, checkpoint_every=10)
    checkpoints.close()
    files = [p for p in (tmp_path / "run" / "20" / "arrays").rglob("*") if p.is_file()]
    for file in files:
        file.write_bytes(b"")
    words = r"run/20/arrays/\S+ is not as it was written: .*go on from 10"
    with pytest.raises(ValueError, match=words):
        fit(30, checkpoints=ml.Checkpoints(tmp_path / "run"), resume=True)
    shutil.rmtree(tmp_path / "run" / "20")
    resumed = fit(30, checkpoints=ml.Checkpoints(tmp_path / "run"), resume=True)
    assert same(fit(30).variables, resumed.variables)


def test_new_run_refuses_a_folder_with_checkpoints(tmp_path):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    fit(10, checkpoints=checkpoints)
    with pytest.raises(ValueError, match=r"already holds checkpoint 10.*resume=True"):
        fit(10, checkpoints=checkpoints)


# -- The same run -------------------------------------------------------------------------


@functools.cache
def counting(opt="sgd", **config):
    opts = {"sgd": optax.sgd(1.0), "slow": optax.sgd(0.5), "adam": optax.adam(1.0)}
    return ml.meta_trainer(counting_learner(**config), opts[opt])


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Two steps of a run."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    checkpoints = ml.Checkpoints(folder)
    fit(2, counting(name="counting", rate=0.5), checkpoints=checkpoints)
    checkpoints.close()
    return folder


def go_on(folder, tmp_path, trainer=None, steps=4, **options):
    """From a copy of the checkpoint, for the next test has the same one."""
    shutil.copytree(folder, tmp_path / "run")
    trainer = trainer or counting(name="counting", rate=0.5)
    checkpoints = ml.Checkpoints(tmp_path / "run")
    return fit(steps, trainer, checkpoints=checkpoints, resume=True, **options)


@pytest.mark.parametrize(
    ("trainer", "options", "message"),
    [
        (counting(name="other", rate=0.5), {}, r"learner: .*'counting'.* there, .*'other'"),
        (counting(name="counting", rate=0.25), {}, r"learner: .*0\.5.* there, .*0\.25"),
        (None, {"tasks": lambda key: SINES(key)}, "tasks: sinusoid.* there, <lambda> here"),
        (None, {"tasks_per_step": 5}, "tasks_per_step: 4 there, 5 here"),
        (None, {"key": jax.random.key(1)}, r"key: \[0, 0\] there, \[0, 1\] here"),
        (counting("adam", name="counting", rate=0.5), {}, "opt_state/0/mu/n: expected"),
    ],
    ids=["name", "number", "tasks", "size", "key", "structure"],
)
def test_another_run_is_refused(begun, tmp_path, trainer, options, message):
    with pytest.raises(ml.CheckpointMismatch, match=message):
        go_on(begun, tmp_path, trainer, **options)


def test_every_difference_is_listed(begun, tmp_path):
    with pytest.raises(ml.CheckpointMismatch) as error:
        go_on(begun, tmp_path, tasks_per_step=5, key=jax.random.key(1))
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:3]] == ["  tasks_per_step", "  key"]
    assert lines[3] == "Give the same to go on with it exactly."


def test_the_rate_of_an_optimiser_is_not_seen(begun, tmp_path):
    """As the docstring says: two steps of 1.0, then two of 0.5."""
    slow = counting("slow", name="counting", rate=0.5)
    result = go_on(begun, tmp_path, slow)
    assert float(result.variables.params["n"][0]) == 3


def test_functions_of_a_learner_are_not_seen(tmp_path):
    """Its description holds its own numbers alone; an equal one goes on."""
    first, other = (
        ml.maml(model, ml.losses.mse, optax.sgd(rate), num_steps=1)
        for model, rate in ((MODEL, 0.01), (MODEL, 0.02))
    )
    assert ml.describe(first) == ml.describe(other)
    deeper = ml.maml(MODEL, ml.losses.mse, optax.sgd(0.01), num_steps=2)
    assert ml.describe(first) != ml.describe(deeper)


def sines_of(loss=ml.losses.mse, inner=0.01, width=16):
    model = ml.from_linen(ml.models.MLP(widths=(width,)), lower=False)
    learner = ml.maml(model, loss, optax.sgd(inner), num_steps=1)
    return ml.meta_trainer(learner, optax.adam(3e-3))


def scaled(outputs, examples):
    return 1.01 * ml.losses.mse(outputs, examples)


def wider(key):
    task = SINES(key)
    y = 1.01 * task.query.y
    return ml.Task(support=task.support, query=ml.Examples.of(task.query.x, y))


wider.__name__ = SINES.name


@pytest.fixture(scope="module")
def begun_sines(tmp_path_factory):
    """Checkpoints of four steps, and their result."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    return folder, fit(4, sines_of(), checkpoints=ml.Checkpoints(folder))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: sines_of(loss=scaled), {}),
        (lambda: sines_of(loss=ml.losses.huber), {}),
        (lambda: sines_of(inner=0.0101), {}),
        (sines_of, {"tasks": wider}),
        (sines_of, {"state": "later"}),
    ],
    ids=["loss", "kind of loss", "inner rate", "tasks", "state"],
)
# A run that goes on, and one that was finished.
@pytest.mark.parametrize("steps", [6, pytest.param(4, marks=pytest.mark.slow)])
def test_another_start_is_refused(tmp_path, begun_sines, make, options, steps):
    """What descriptions cannot tell, the first step does; also where none is left."""
    folder, first = begun_sines
    checkpoints = ml.Checkpoints(shutil.copytree(folder, tmp_path / "run"))
    if "state" in options:
        options = {"state": first.state}
    with pytest.raises((ml.CheckpointMismatch), match="began with other numbers"):
        fit(steps, make(), checkpoints=checkpoints, resume=True, **options)


def test_a_run_from_a_state_resumes_with_that_state(tmp_path):
    start = fit(3, counting()).state
    options = {"checkpoints": ml.Checkpoints(tmp_path / "run"), "state": start}
    fit(5, counting(), resume=True, **options)
    resumed = fit(8, counting(), resume=True, **options)
    assert float(resumed.variables.params["n"][0]) == 8


def test_checkpoints_of_earlier_versions_go_on(tmp_path):
    """Without what they did not hold: no first step, no labels in the open window."""
    checkpoints = ml.Checkpoints(tmp_path / "run")
    fit(5, log_every=4, checkpoints=checkpoints)
    state = fit(5, log_every=4).state
    _, notes = checkpoints.restore(5, like={"state": state, "best": state.variables})
    for name in ("begun", "skipped", "first", "place"):
        notes.pop(name)
    for name in ("outside", "absent", "fault", "not_finite"):
        notes["totals"].pop(name)
    older = ml.Checkpoints(tmp_path / "older")
    older.save(5, {"state": state, "best": state.variables}, notes)
    resumed = fit(9, log_every=4, checkpoints=older, resume=True)
    assert same(resumed.state, fit(9, log_every=4).state)


MODEL = ml.from_apply_fn(lambda key, x: {"w": jnp.zeros(1)}, lambda p, x: x * p["w"][None])


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    """The arrays fit; what lies beside them was not written by `fit`."""
    checkpoints = ml.Checkpoints(tmp_path / "run")
    state = jax.jit(counting().init)(KEY, SINES(KEY))
    checkpoints.save(1, {"state": state, "best": state.variables}, {"note": 1})
    with pytest.raises(ml.CheckpointMismatch, match="that fit did not write"):
        fit(2, counting(), checkpoints=checkpoints, resume=True)


def test_a_checkpoint_beyond_the_asked_steps_is_refused(begun, tmp_path):
    with pytest.raises(ValueError, match="step 2, beyond num_steps=1"):
        go_on(begun, tmp_path, steps=1)


# -- Checkpoints --------------------------------------------------------------------------


def test_checkpoint_mismatch_lists_every_difference(tmp_path):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    tree = {"a": jnp.zeros(2), "b": jnp.zeros(3), "c": jnp.zeros(1)}
    checkpoints.save(1, tree, {"note": "x"})
    like = {"a": jnp.zeros(2, jnp.int32), "b": jnp.zeros((3, 1)), "d": jnp.zeros(1)}
    with pytest.raises(ml.CheckpointMismatch) as error:
        checkpoints.restore(1, like=like)
    for words in (
        "a: the checkpoint holds float32[2], expected int32[2]",
        "b: the checkpoint holds float32[3], expected float32[3,1]",
        "c: the checkpoint holds float32[1], not expected",
        "d: expected float32[1], not in the checkpoint",
    ):
        assert words in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 7 .*\[1\]"):
        checkpoints.restore(7, like=tree)


def test_typed_keys_survive_a_checkpoint(tmp_path):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    tree = {"key": jax.random.key(3), "keys": jax.random.split(jax.random.key(1), 2)}
    checkpoints.save(1, tree, {"seed": 4})
    found, extra = checkpoints.restore(1, like=jax.tree.map(lambda k: k, tree))
    assert extra == {"seed": 4}
    assert jax.random.normal(found["key"]) == jax.random.normal(tree["key"])
    assert found["keys"].dtype == tree["keys"].dtype and found["keys"].shape == (2,)


def test_a_place_for_checkpoints_is_checked_when_it_is_named(tmp_path):
    with pytest.raises(ValueError, match="keep is 0"):
        ml.Checkpoints(tmp_path / "run", keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        ml.Checkpoints(tmp_path / "file")
