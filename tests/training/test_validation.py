"""Judgement while training runs: the best is kept, by the direction of the metric."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sines import SINES, counting_learner, counting_trainer, fit

import metalearn as ml
from metalearn.core import metrics


def bowl(outputs, examples):
    """Lowest after 20 steps."""
    del examples
    return jnp.mean((outputs - 20.0) ** 2)


def validation(**options):
    options = {"loss_fn": bowl, "num_tasks": 2, "every": 5, "patience": 3, **options}
    return ml.Validation(tasks=SINES, **{"metric": "query/loss", **options})


def test_best_variables_are_kept_and_patience_stops():
    result = fit(100, counting_trainer(), validation=validation())
    assert result.best_step == 20 and float(result.variables.params["n"][0]) == 20
    assert int(result.state.step) == 35  # three validations without improvement
    rows = [row for row in result.history if "validation/loss" in row]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30, 35]
    assert rows[3]["validation/loss"] == 0 and rows[-1]["best_step"] == 20


@pytest.mark.parametrize("averaged", [False, True])
def test_the_start_is_a_choice_only_where_that_is_asked_for(averaged):
    """Training makes this learner worse from the first step on."""
    worse = lambda outputs, examples: jnp.mean(outputs**2)
    outer = ml.averaging(optax.sgd(1.0), 0.9) if averaged else optax.sgd(1.0)
    trainer = ml.meta_trainer(counting_learner(), outer)
    rows, best = {}, {}
    for start in (False, True):
        judged = validation(loss_fn=worse, start=start, patience=None)
        result = fit(10, trainer, validation=judged)
        best[start] = result.best_step, float(result.variables.params["n"][0])
        rows[start] = [r["step"] for r in result.history if "validation/loss" in r]
    assert best[True] == (0, 0.0) and best[False][0] == 5
    assert rows == {False: [5, 10], True: [0, 5, 10]}


def test_the_start_is_judged_once_and_survives_a_resume(tmp_path):
    worse = lambda outputs, examples: jnp.mean(outputs**2)
    options = {
        "validation": validation(loss_fn=worse, start=True, patience=4),
        "checkpoints": ml.Checkpoints(tmp_path / "run"),
    }
    fit(7, counting_trainer(), **options)
    result = fit(100, counting_trainer(), resume=True, **options)
    assert result.best_step == 0 and float(result.variables.params["n"][0]) == 0
    judged = [r["step"] for r in result.history if "validation/loss" in r]
    # The seventh step was the last one asked for, so that it was judged too.
    assert judged == [0, 5, 7, 10, 15]  # four without improvement


def test_whether_the_start_is_judged_is_a_flag():
    with pytest.raises(TypeError, match="start of a validation is 1; expected True or"):
        validation(start=1)


def test_patience_survives_a_resume(tmp_path):
    checkpoints = ml.Checkpoints(tmp_path / "run")
    options = {"validation": validation(), "checkpoints": checkpoints}
    fit(27, counting_trainer(), **options)
    result = fit(100, counting_trainer(), resume=True, **options)
    assert result.best_step == 20 and float(result.variables.params["n"][0]) == 20


def test_validations_that_are_no_numbers_leave_the_last_variables():
    nan = lambda outputs, examples: jnp.nan * jnp.mean(outputs)
    judged = validation(loss_fn=nan, patience=None)
    with (
        pytest.warns(UserWarning, match="query/loss in 2 of 2 tasks"),
        pytest.warns(UserWarning, match="query/loss = nan, which is neither kept"),
    ):
        result = fit(8, counting_trainer(), validation=judged)
    assert result.best_step == 8 and float(result.variables.params["n"][0]) == 8


def test_unknown_validation_metric_is_named():
    with pytest.raises(ValueError, match=r"query/accuracy.*not reported.*query/loss"):
        fit(5, validation=ml.Validation(tasks=SINES, num_tasks=2, every=5))


# -- Directions ---------------------------------------------------------------------------


def test_a_metric_of_unknown_direction_is_refused():
    """Found when it is written down; the best of another direction would be the worst."""
    words = r"'query/brier' is better is not known; known are accuracy.*rmse.*higher_is_"
    with pytest.raises(ValueError, match=words):
        validation(metric="query/brier")
    validation(metric="query/brier", higher_is_better=False)


@pytest.mark.parametrize("said", ["no", 1, 0.0])
def test_a_direction_is_a_bool(said):
    with pytest.raises(ValueError, match=r"higher_is_better is .*expected True, False"):
        validation(higher_is_better=said)


@pytest.mark.parametrize(
    ("metric", "said", "best"),
    [
        ("query/rmse", None, 20),  # known
        ("query/brier", False, 20),
        ("query/brier", True, 0),
        ("query/loss", True, 0),  # the caller knows better, e.g. of a log-likelihood
    ],
)
def test_the_best_is_that_of_the_direction(metric, said, best, monkeypatch):
    """The metric is 0 at step 20 and largest at the first validation, of step 5."""
    original = metrics.of_task

    def of_task(loss_fn, outputs, examples):
        found = original(loss_fn, outputs, examples)
        return {**found, metric.removeprefix("query/"): found["loss"]}

    monkeypatch.setattr(metrics, "of_task", of_task)
    trainer = ml.meta_trainer(counting_learner(), optax.sgd(1.0))  # evaluates anew
    judged = validation(metric=metric, higher_is_better=said, patience=None)
    result = fit(30, trainer, validation=judged)
    expected = best or 5
    assert result.best_step == expected
    np.testing.assert_array_equal(result.variables.params["n"], [expected])


def test_a_seed_draws_the_validation_tasks():
    """Every validation, and `evaluate` with that key, sees the same tasks."""
    spread = lambda outputs, examples: jnp.mean(examples.y**2)
    judged = validation(loss_fn=spread, num_tasks=3, patience=None, seed=4)
    result = fit(10, counting_trainer(), validation=judged)
    rows = [r["validation/loss"] for r in result.history if "validation/loss" in r]
    other = fit(
        5, counting_trainer(), validation=validation(loss_fn=spread, num_tasks=3, seed=5)
    )
    assert rows[0] == rows[1] != other.history[-1]["validation/loss"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every of a validation is 0"),
        ({"num_tasks": 1}, "num_tasks of a validation is 1; expected an integer of 2"),
        ({"num_tasks": "x"}, "num_tasks of a validation is 'x'"),
        ({"patience": 0}, "patience of a validation is 0"),
        ({"patience": "x"}, "patience of a validation is 'x'"),
        ({"seed": -1}, "seed of a validation is -1"),
    ],
)
def test_numbers_of_a_validation_are_checked_when_it_is_made(options, words):
    with pytest.raises(ValueError, match=words):
        validation(**options)
