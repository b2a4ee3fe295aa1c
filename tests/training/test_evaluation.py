"""Evaluating on tiny tasks: chance, transduction, the same tasks, intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from tiny import WAYS, blobs

import metalearn as ml

KEY = jax.random.key(0)


def predictor(function):
    """A learner that predicts `function(x)` whatever the support set."""
    return ml.MetaLearner(
        init=lambda key, task: ml.Variables(params={}, state={}),
        adapt=lambda variables, support, *, key=None: support,
        predict=lambda adapted, x, *, key=None, mask=None: function(adapted, x),
        estimate=lambda variables, tasks, *, key: None,
    )


def nearest(support, x):
    apart = jnp.sum((x[:, None] - support.x[None]) ** 2, -1)
    return jax.nn.one_hot(support.y[jnp.argmin(apart, -1)], WAYS)


def separated(key):
    """Blobs far apart."""
    task = blobs(key)
    shift = lambda part: ml.Examples.of(
        part.x + 100 * jax.nn.one_hot(part.y, part.x.shape[-1]), part.y
    )
    return ml.Task(support=shift(task.support), query=shift(task.query))


def evaluate(function, tasks=separated, num_tasks=20, **options):
    variables = ml.Variables(params={}, state={})
    options = {"num_tasks": num_tasks, "key": KEY, **options}
    return ml.evaluate(predictor(function), variables, tasks, **options)


def test_constant_predictor_is_exactly_at_chance_and_an_oracle_perfect():
    constant = lambda support, x: jnp.zeros((x.shape[0], WAYS))
    mean, half = evaluate(constant).mean_ci95("query/accuracy")
    assert mean == np.float32(1 / WAYS) and half == 0
    result = evaluate(nearest)
    assert result.mean_ci95("query/accuracy") == (1.0, 0.0)
    assert result.summary()["query/accuracy"] == {"mean": 1.0, "ci95": 0.0}
    assert "query/accuracy 100.00 ± 0.00 %" in str(result) and not result.transductive


def test_transduction_is_measured():
    mean = lambda support, x: nearest(support, x) * jnp.mean(x) * 1e-2
    assert evaluate(mean).transductive


def test_transduction_is_measured_beside_masked_classes():
    def masked(support, x):
        del support
        logits = x[:, :WAYS] * jnp.mean(x)
        return jnp.where(jnp.arange(WAYS)[None] == 0, -1e9, logits)

    assert evaluate(masked).transductive


def test_more_tasks_extend_fewer():
    few = evaluate(lambda s, x: x[:, :WAYS], blobs, num_tasks=5)
    many = evaluate(lambda s, x: x[:, :WAYS], blobs, num_tasks=11, tasks_per_call=4)
    for name, values in few.values.items():
        np.testing.assert_allclose(values, many.values[name][:5], rtol=1e-6)
    assert len(set(many.values["query/loss"].tolist())) == 11


def test_paired_difference_needs_the_same_tasks():
    first, second = evaluate(nearest), evaluate(lambda s, x: -nearest(s, x))
    mean, half = ml.paired_difference(first, second)
    values = first.values["query/accuracy"] - second.values["query/accuracy"]
    assert (mean, half) == ml.metrics.mean_ci95(values) and mean == 1
    for options in (dict(num_tasks=21), dict(key=jax.random.key(1))):
        other = evaluate(nearest, **options)
        with pytest.raises(ValueError, match="different tasks"):
            ml.paired_difference(first, other)


def test_interval_equals_scipy():
    values = np.random.default_rng(0).normal(size=50)
    mean, half = ml.metrics.mean_ci95(values)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert half == pytest.approx(1.96 * stats.sem(values), rel=1e-12)
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        ml.metrics.mean_ci95([1.0])


def test_accuracy_shares_ties_and_ignores_masked_rows():
    logits = jnp.array([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0], [9.0, 0.0, 0.0]])
    examples = ml.Examples.of(
        logits, jnp.array([0, 1, 2], jnp.int32), jnp.array([True, True, False])
    )
    assert float(ml.metrics.accuracy(logits, examples)) == 0.75


def test_protonet_learns_blobs():
    encoder = ml.from_linen(ml.models.MLP(num_outputs=4, widths=(8,)), lower=False)
    learner = ml.protonet(encoder, num_ways=WAYS)
    result = ml.fit(
        ml.meta_trainer(learner, optax.adam(1e-2)),
        separated,
        num_steps=60,
        tasks_per_step=4,
        key=KEY,
        progress=False,
    )
    accuracy = ml.evaluate(learner, result.variables, separated, num_tasks=20, key=KEY)
    assert accuracy.mean_ci95("query/accuracy")[0] > 0.95


def test_answers_that_are_not_finite_are_told_and_count_as_wrong():
    """Of tasks whose data are finite; a mean without a number would say nothing of why."""

    def diverging(support, x):
        right = nearest(support, x)
        return jnp.where(support.x[0, -1] > 0, jnp.nan, right)

    with pytest.warns(UserWarning, match=r"query/loss in (\d+) of 20 tasks") as w:
        result = evaluate(diverging)
    broken = ~np.isfinite(result.values["query/loss"])
    assert 0 < broken.sum() < 20
    told = str(w[0].message)
    assert f"in {broken.sum()} of" in told and f"task {np.argmax(broken)}. The" in told
    np.testing.assert_array_equal(result.values["query/accuracy"], ~broken)
    assert len(w) == 1


def test_a_metric_without_a_value_is_no_divergence():
    nothing = lambda outputs, examples: jnp.nan * jnp.mean(outputs)
    with pytest.warns(UserWarning, match=r"query/own in 20 of 20 .* has no value there"):
        evaluate(nearest, metrics={"query/own": nothing})
