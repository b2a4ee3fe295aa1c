"""Every reduction that decides or is reported, in each dtype, beside NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn.core import estimators
from metalearn.training import loop

DTYPES = {"bfloat16": 4e-3, "float16": 1e-3, "float32": 1e-6, "float64": 1e-12}
# What is reported is as exact as float32, whatever dtype the network computes in.
REPORTED = {"bfloat16": 2e-6, "float16": 2e-6, "float32": 2e-6, "float64": 1e-12}
ROWS, WAYS = 1000, 3


@pytest.fixture(params=DTYPES)
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def cast(values, dtype):
    """An array of the dtype, and the numbers that it holds in float64."""
    array = jnp.asarray(values, dtype)
    return array, np.asarray(array).astype(np.float64)


def rows(dtype, *shape, seed=0):
    return cast(np.random.default_rng(seed).normal(size=(ROWS, *shape)), dtype)


def examples(y, mask=None):
    x = jnp.zeros((len(y), 1), jnp.float32)
    return ml.Examples.of(x, jnp.asarray(y), mask)


MASK = np.arange(ROWS) % 4 > 0
LABELS = (np.arange(ROWS) ** 2 % WAYS).astype(np.int32)


def close(found, expected, dtype, tolerance=REPORTED):
    assert found.dtype == ("float64" if dtype == "float64" else "float32")
    np.testing.assert_allclose(
        np.asarray(found, np.float64), expected, rtol=tolerance[dtype], atol=1e-7
    )


def test_masked_mean(dtype):
    array, _ = rows(dtype, 2)
    found = ml.masked_mean(array + 1, jnp.asarray(MASK))
    shifted = np.asarray(array + 1).astype(np.float64)
    close(found, shifted[MASK].mean(0), dtype)
    ones = ml.masked_mean(jnp.ones(ROWS, dtype), jnp.ones(ROWS, bool))
    assert float(ones) == 1  # a sum in bfloat16 would stop at 256


@pytest.mark.parametrize("name", ["mse", "huber"])
def test_losses_of_real_targets(name, dtype):
    outputs, exact = rows(dtype, 2)
    y, targets = rows(dtype, 2, seed=1)
    found = getattr(ml.losses, name)(outputs, examples(y, jnp.asarray(MASK)))
    errors = (exact - targets)[MASK]
    if name == "mse":
        expected = (errors**2).mean()
    else:
        size = np.abs(errors)
        expected = np.where(size <= 1, size**2 / 2, size - 0.5).mean()
    close(found, expected, dtype)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "smoothed", "weighted"])
def test_losses_of_classes(name, dtype):
    logits, exact = rows(dtype, WAYS)
    log = log_softmax(exact)
    own, even = -log[np.arange(ROWS), LABELS], -log.mean(-1)
    weights = np.array([0.5, 1.0, 3.0])
    loss, expected = {
        "cross_entropy": (ml.losses.cross_entropy, own),
        "focal": (ml.losses.focal, (1 - np.exp(-own)) ** 2 * own),
        "smoothed": (
            functools.partial(ml.losses.cross_entropy, label_smoothing=0.2),
            0.8 * own + 0.2 * even,
        ),
        "weighted": (
            functools.partial(ml.losses.cross_entropy, class_weights=weights),
            own * weights[LABELS] / weights[LABELS][MASK].mean(),
        ),
    }[name]
    found = loss(logits, examples(LABELS, jnp.asarray(MASK)))
    close(found, expected[MASK].mean(), dtype)


def test_accuracy_and_f1(dtype):
    logits, exact = rows(dtype, WAYS)
    logits = jnp.round(logits)  # many ties
    exact = np.round(exact)
    best = exact == exact.max(-1, keepdims=True)
    share = best[np.arange(ROWS), LABELS] / best.sum(-1)
    found = ml.metrics.accuracy(logits, examples(LABELS, jnp.asarray(MASK)))
    close(found, share[MASK].mean(), dtype)
    guessed, true = exact.argmax(-1)[MASK], LABELS[MASK]
    parts = []
    for k in range(WAYS):
        both = ((guessed == k) & (true == k)).sum()
        parts.append(2 * both / ((guessed == k).sum() + (true == k).sum()))
    found = ml.metrics.f1(logits, examples(LABELS, jnp.asarray(MASK)))
    np.testing.assert_allclose(found, np.mean(parts), rtol=1e-6)


def test_states_of_tasks(dtype):
    array, exact = rows(dtype)
    array = array + 100
    found = estimators._reduce_states("mean", array[0], array)
    assert found.dtype == dtype
    exact = np.asarray(array).astype(np.float64).mean()
    np.testing.assert_allclose(np.float64(found), exact, rtol=DTYPES[dtype])


def test_gradients_of_many_chunks(dtype):
    """A running sum in bfloat16 would stop growing."""

    def gradient(variables, task, *, key):
        return jax.tree.map(jnp.ones_like, variables.params), (variables.state, {})

    one = examples(jnp.zeros((1, 1)))
    tasks = ml.stack_tasks([ml.Task(support=one, query=one)] * 600)
    estimate = estimators.mean_estimator(gradient, task_chunk=1)
    variables = ml.Variables(params={"w": jnp.zeros(2, dtype)}, state={})
    found = jax.jit(estimate)(variables, tasks, key=jax.random.key(0)).grads["w"]
    assert found.dtype == dtype and (np.asarray(found) == 1).all()


def judged(dtype):
    """A learner whose loss and outputs are of a dtype."""

    def predict(adapted, x, *, key=None, mask=None):
        return (adapted * x).astype(dtype)

    def loss(outputs, examples):
        return jnp.mean(outputs)  # a mean of one row: nothing is rounded

    return ml.MetaLearner(
        init=lambda key, task: ml.Variables(params={}, state={}),
        adapt=lambda variables, support, *, key=None: support.x[0, 0],
        predict=predict,
        estimate=lambda variables, tasks, *, key: None,
        loss_fn=loss,
    )


def draw(key):
    x = 1 + jnp.floor(8 * jax.random.uniform(key, (1, 1))) / 8
    ones = ml.Examples.of(jnp.ones((1, 1), x.dtype), x)
    return ml.Task(support=ones, query=ml.Examples.of(x, x))


def test_evaluations_and_validations(dtype):
    """Numbers of four bits, so that their mean is known in every dtype."""
    learner, nothing = judged(dtype), ml.Variables(params={}, state={})
    key = jax.random.key(0)
    found = ml.evaluate(learner, nothing, draw, num_tasks=300, key=key)
    keys = [jax.random.split(jax.random.fold_in(key, i), 3)[0] for i in range(300)]
    exact = np.asarray(jax.vmap(draw)(jnp.stack(keys)).query.x, np.float64).reshape(-1)
    np.testing.assert_array_equal(found.values["query/loss"], exact)
    assert found.mean_ci95("query/loss")[0] == exact.mean()
    validation = ml.Validation(
        tasks=draw, learner=learner, num_tasks=300, metric="query/loss"
    )
    assert validation.measure(nothing)["query/loss"] == exact.mean()
    half = 1.96 * exact.std(ddof=1) / np.sqrt(300)
    assert found.mean_ci95("query/loss")[1] == pytest.approx(half, rel=1e-12)


def test_windows(dtype):
    """A window of 1,000 steps of bfloat16 metrics."""
    metrics, _ = rows(dtype, 4)
    learner = ml.MetaLearner(
        init=lambda key, task: ml.Variables(params={"w": jnp.zeros(1)}, state={}),
        adapt=None,
        predict=None,
        estimate=lambda variables, tasks, *, key: ml.Estimate(
            grads=variables.params, state={}, metrics={"query/loss": metrics[0]}
        ),
    )
    trainer = ml.meta_trainer(learner, optax.sgd(0.1))
    task = draw(jax.random.key(0))
    totals = loop.no_totals(trainer, trainer.init(jax.random.key(0), task), task, 4)

    def add(totals, values):
        report = {"query/loss": values, "meta/finite": jnp.ones(4, jnp.float32)}
        return loop._accumulate(totals, report, jnp.int32(0)), None

    totals = jax.jit(lambda t: jax.lax.scan(add, t, metrics + 1)[0])(totals)
    shifted = np.asarray(metrics + 1).astype(np.float64)
    found = loop.row_of(1000, totals, 4, 1.0, 1.0)["query/loss"]
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(found, shifted.mean(), rtol=tolerance)


def test_averages_of_weights(dtype):
    """With a decay next to one, steps of the average are far below bfloat16's digits."""
    opt, params = ml.averaging(optax.sgd(1.0), 1 - 1e-9), {"w": jnp.ones((), dtype)}
    state, seen = opt.init(params), []
    for step in range(20):
        updates, state = opt.update({"w": jnp.asarray(-(step % 3), dtype)}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params["w"]))
    assert params["w"].dtype == dtype
    np.testing.assert_allclose(state.average["w"], np.mean(seen), rtol=1e-5)
    made = ml.judged(
        ml.TrainState(
            step=0, variables=ml.Variables(params=params, state={}), opt_state=state
        )
    )
    assert made.params["w"].dtype == dtype


def test_calibration(dtype):
    logits, _ = rows(dtype, WAYS)
    array = jax.nn.softmax(logits)
    probabilities = np.asarray(array).astype(np.float64)
    found = ml.metrics.calibration_error(array, LABELS, num_bins=4)
    confidence, error = probabilities.max(-1), 0.0
    for k in range(4):
        inside = np.minimum((confidence * 4).astype(int), 3) == k
        if inside.any():
            hit = (probabilities.argmax(-1) == LABELS)[inside].mean()
            error += inside.mean() * abs(hit - confidence[inside].mean())
    assert found == pytest.approx(error, abs=1e-12)


def test_paired_differences(dtype):
    learner, nothing = judged(dtype), ml.Variables(params={}, state={})
    found = ml.evaluate(learner, nothing, draw, num_tasks=50, key=jax.random.key(0))
    more = ml.evaluate(
        learner,
        nothing,
        draw,
        lambda outputs, examples: 3 * jnp.mean(outputs),
        num_tasks=50,
        key=jax.random.key(0),
    )
    mean, _ = ml.paired_difference(more, found, "query/loss")
    exact = 2 * found.values["query/loss"].astype(np.float64).mean()
    assert mean == pytest.approx(exact, rel=1e-12 if dtype != "bfloat16" else 5e-3)
