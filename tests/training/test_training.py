"""Training, resuming, validating and checkpointing, on tiny tasks."""

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
import numpy as np
import optax
import pytest
from tiny import one, sine_batch

import metalearn as ml

KEY = jax.random.key(0)
SINES = ml.tasks.sinusoid(num_support=5, num_query=5)


@functools.cache
def sine_learner():
    model = ml.from_linen(ml.models.MLP(widths=(16,)), lower=False)
    return ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=1)


@functools.cache
def sine_trainer():
    return ml.meta_trainer(sine_learner(), optax.adam(3e-3))


def fit(num_steps, trainer=None, tasks=SINES, **options):
    options = {"tasks_per_step": 4, "key": KEY, "progress": False, **options}
    return ml.fit(trainer or sine_trainer(), tasks, num_steps=num_steps, **options)


def same(first, second):
    first, second = jax.tree.leaves(first), jax.tree.leaves(second)
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# -- Learning and compiling -----------------------------------------------------------


def test_fit_improves_on_sinusoids():
    result = fit(400, tasks_per_step=16, log_every=100)
    losses = [row["query/loss"] for row in result.history]
    assert len(losses) == 4 and losses[-1] < 0.85 * losses[0]
    start = sine_trainer().init(KEY, SINES(KEY)).variables
    options = dict(num_tasks=64, key=jax.random.key(5))
    before = ml.evaluate(sine_learner(), start, SINES, **options)
    after = ml.evaluate(sine_learner(), result.variables, SINES, **options)
    mean, half = ml.paired_difference(before, after, "query/loss")
    assert mean - half > 0


def test_second_fit_and_evaluate_compile_nothing(count_compilations):
    first = fit(20)
    ml.evaluate(sine_learner(), first.variables, SINES, num_tasks=8, key=KEY)
    assert count_compilations() > 0 or first.history  # the cache may be warm
    second = fit(20)
    ml.evaluate(sine_learner(), second.variables, SINES, num_tasks=8, key=KEY)
    assert count_compilations() == 0
    assert same(first.variables, second.variables)


def test_other_numbers_of_steps_share_the_compiled_loop(count_compilations):
    fit(20)
    count_compilations()
    fit(27, log_every=9)
    assert count_compilations() == 0


def test_going_on_traces_nothing():
    """Tracing a meta-gradient takes seconds; continual training calls `fit` often."""
    calls = []
    plain = ml.from_linen(ml.models.MLP(widths=(16,)), lower=False)

    def apply(*args, **options):
        calls.append(1)
        return plain.apply(*args, **options)

    learner = ml.maml(
        ml.Model(plain.init, apply), ml.losses.mse, optax.sgd(0.01), num_steps=1
    )
    trainer = ml.meta_trainer(learner, optax.adam(3e-3))
    first = fit(4, trainer)
    traced = len(calls)
    assert traced > 0
    fit(7, trainer, state=first.state, log_every=7)
    assert len(calls) == traced


def test_an_optimiser_that_hides_a_name_can_be_described():
    """A decay without a bound leaves a cell of its closure empty."""
    rate = optax.exponential_decay(0.1, 10, 0.5, staircase=True)
    trainer = ml.meta_trainer(sine_learner(), optax.sgd(rate))
    assert "decay_rate=0.5" in str(dict(trainer.config)["outer_opt"])


# -- Resuming -----------------------------------------------------------------------


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
from test_training import fit
with jax.numpy_rank_promotion("raise"):
    fit({steps}, checkpoints=ml.Checkpoints({folder!r}), checkpoint_every=10, resume=True,
        sinks=[lambda row: print(row["step"], flush=True)], log_every=5)
"""


def test_killed_training_resumes_bit_identically(tmp_path):
    """SIGKILL at a random moment, in the middle of a checkpoint perhaps."""
    steps, folder = 400, str(tmp_path / "run")
    here = str(Path(__file__).parents[1])
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
    words = r"checkpoint 20 .*cannot be read(.|\n)*go on from 10"
    with pytest.raises(ValueError, match=words):
        fit(30, checkpoints=ml.Checkpoints(tmp_path / "run"), resume=True)
    shutil.rmtree(tmp_path / "run" / "20")
    resumed = fit(30, checkpoints=ml.Checkpoints(tmp_path / "run"), resume=True)
    assert same(fit(30).variables, resumed.variables)


def test_new_run_refuses_a_folder_with_checkpoints(tmp_path):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    fit(10, checkpoints=checkpoints)
    with pytest.raises(ValueError, match="resume=True"):
        fit(10, checkpoints=checkpoints)


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


# -- Non-finite gradients -----------------------------------------------------------------


@functools.cache
def explosive():
    """Sinusoids whose targets are infinite in about one batch of five."""

    def sample(key):
        task = SINES(key)
        bad = jax.random.uniform(jax.random.fold_in(key, 9)) < 0.05
        y = jnp.where(bad, jnp.inf, task.query.y)
        return ml.Task(
            support=task.support, query=ml.Examples.of(task.query.x, y), info=task.info
        )

    return sample


def test_nonfinite_gradient_stops_with_its_step():
    with pytest.raises(ml.NonFiniteGradient, match=r"step \d+ is not finite"):
        fit(100, tasks=explosive())


def test_nonfinite_gradient_is_skipped_and_counted():
    result = fit(100, tasks=explosive(), nonfinite="skip")
    assert result.history[-1]["meta/skipped"] > 3
    assert np.isfinite(result.history[-1]["query/loss"])
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(result.variables.params))
    assert int(result.state.step) == 100


def test_skipped_step_leaves_everything_as_it_was():
    trainer, tasks = sine_trainer(), sine_batch()
    state = trainer.init(KEY, one(tasks))
    bad = ml.Examples(x=tasks.query.x, y=tasks.query.y * jnp.inf, mask=tasks.query.mask)
    step = jax.jit(trainer.step)
    after, report = step(state, ml.Task(support=tasks.support, query=bad), key=KEY)
    assert same((state.variables, state.opt_state), (after.variables, after.opt_state))
    assert int(after.step) == 1 and (np.asarray(report["meta/finite"]) == 0).all()


# -- Validation -----------------------------------------------------------------------


@functools.cache
def drift_trainer():
    """Params count outer steps: `estimate` returns the gradient -1."""

    def estimate(variables, tasks, *, key):
        del key
        num = tasks.support.mask.shape[0]
        return ml.Estimate(
            grads=jax.tree.map(lambda p: -jnp.ones_like(p), variables.params),
            state={},
            metrics={"query/loss": jnp.zeros((num,))},
        )

    learner = ml.MetaLearner(
        init=lambda key, task: ml.Variables(params={"n": jnp.zeros(1)}, state={}),
        adapt=lambda variables, support, *, key=None: variables.params["n"],
        predict=lambda adapted, x, *, key=None, mask=None: (
            jnp.zeros_like(x) + adapted[None]
        ),
        estimate=estimate,
    )
    return ml.meta_trainer(learner, optax.sgd(1.0))


def bowl(outputs, examples):
    """Lowest after 20 steps."""
    del examples
    return jnp.mean((outputs - 20.0) ** 2)


def test_best_variables_are_kept_and_patience_stops():
    trainer = drift_trainer()
    validation = ml.Validation(
        tasks=SINES, loss_fn=bowl, num_tasks=2, every=5, metric="query/loss", patience=3
    )
    result = fit(100, trainer, validation=validation)
    assert result.best_step == 20 and float(result.variables.params["n"][0]) == 20
    assert int(result.state.step) == 35  # three validations without improvement
    rows = [row for row in result.history if "validation/loss" in row]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30, 35]
    assert rows[3]["validation/loss"] == 0 and rows[-1]["best_step"] == 20


def test_patience_survives_a_resume(tmp_path):
    validation = ml.Validation(
        tasks=SINES, loss_fn=bowl, num_tasks=2, every=5, metric="query/loss", patience=3
    )
    trainer, checkpoints = drift_trainer(), ml.Checkpoints(tmp_path / "run")
    fit(27, trainer, validation=validation, checkpoints=checkpoints)
    options = dict(validation=validation, checkpoints=checkpoints, resume=True)
    result = fit(100, trainer, **options)
    assert result.best_step == 20 and float(result.variables.params["n"][0]) == 20


def test_unknown_validation_metric_is_named():
    validation = ml.Validation(tasks=SINES, num_tasks=2, every=5)
    with pytest.raises(ValueError, match=r"query/accuracy.*not reported.*query/loss"):
        fit(5, validation=validation)
