"""Training on tiny tasks: learning, compiling once, steps that are not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sines import (
    KEY,
    SINES,
    counting_learner,
    fit,
    same,
    sine_learner,
    sine_trainer,
)
from tiny import one, sine_batch

import metalearn as ml

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
    result = fit(100, tasks=explosive(), nonfinite="skip", log_every=100)
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


@pytest.mark.parametrize("name", ["query/loss", "query/nll", "temperature"])
def test_a_metric_that_is_not_finite_stops_whatever_its_name(name):
    """The gradient is finite; from step 3 on one metric is not."""
    report = lambda n: {"query/loss": n, name: jnp.where(n < 3, 0.0, jnp.inf)}
    trainer = ml.meta_trainer(counting_learner(report), optax.sgd(1.0))
    with pytest.raises(ml.NonFiniteGradient, match="step 3 is not finite"):
        fit(5, trainer)
    result = fit(5, trainer, nonfinite="skip", log_every=5)
    assert result.history[-1]["meta/skipped"] == 2
    assert np.isfinite(result.history[-1][name])


def test_the_state_to_start_from_stays_as_it_is():
    """Outer steps overwrite the arrays they are called with, but no arrays of others."""
    first = fit(4)
    before = jax.device_get(first.state)
    fit(8, state=first.state)
    assert same(before, first.state)


def test_rows_validations_and_checkpoints_come_at_their_steps(tmp_path):
    """Whatever the length of compiled calls: each at its multiples and at the end."""
    seen, kept = [], ml.Checkpoints(tmp_path / "run", keep=9)
    judged = ml.Validation(tasks=SINES, num_tasks=2, every=5, metric="query/loss")
    fit(
        11,
        log_every=4,
        validation=judged,
        checkpoints=kept,
        checkpoint_every=6,
        sinks=[lambda row: seen.append((row["step"], "tasks_per_s" in row))],
    )
    rows = [step for step, is_row in seen if is_row]
    validations = [step for step, is_row in seen if not is_row]
    assert (rows, validations) == ([4, 8, 11], [5, 10, 11])
    saved = [int(p.name) for p in (tmp_path / "run").iterdir() if p.name.isdigit()]
    assert sorted(saved) == [6, 11]
