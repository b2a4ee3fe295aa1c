"""What judges a learner: its own loss, not a guessed one, and metrics of users."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sines import counting_learner
from sklearn.metrics import f1_score
from tiny import WAYS, blobs, plain

import metalearn as ml

KEY = jax.random.key(0)
CE = ml.losses.cross_entropy
SINES = ml.tasks.sinusoid(num_support=5, num_query=5)


# -- Losses whose outputs are not shaped as the targets -----------------------------------


def mean_and_variance(outputs, examples):
    mean, log_variance = outputs[:, :1], outputs[:, 1:]
    errors = (mean - examples.y) ** 2 * jnp.exp(-log_variance) + log_variance
    return ml.masked_mean(errors[:, 0], examples.mask)


def quantiles(outputs, examples):
    errors = examples.y - outputs
    levels = jnp.array([[0.1, 0.5, 0.9]])
    pinball = jnp.maximum(levels * errors, (levels - 1) * errors)
    return ml.masked_mean(pinball.mean(-1), examples.mask)


def multi_label(outputs, examples):
    losses = optax.sigmoid_binary_cross_entropy(outputs, examples.y.astype(jnp.float32))
    return ml.masked_mean(losses.mean(-1), examples.mask)


def of_a_dict(outputs, examples):
    return ml.masked_mean(
        ((outputs["mean"] - examples.y["value"]) ** 2)[:, 0], examples.mask
    )


def hot(key):
    task = blobs(key)
    each = lambda part: ml.Examples.of(part.x, jax.nn.one_hot(part.y, WAYS, dtype=int))
    return ml.Task(support=each(task.support), query=each(task.query))


def named(key):
    task = SINES(key)
    each = lambda part: ml.Examples.of(part.x, {"value": part.y})
    return ml.Task(support=each(task.support), query=each(task.query))


def dict_model():
    apply = lambda params, x: {"mean": x @ params["w"]}
    return ml.from_apply_fn(lambda key, x: {"w": jnp.ones((1, 1))}, apply)


# Model, loss, tasks, and whether training and validation are asked as well: what judges is
# found by one function for all three.
CASES = {
    "mean and variance": (lambda: plain(2), mean_and_variance, SINES, False),
    "quantiles": (lambda: plain(3), quantiles, SINES, False),
    "multi-label": (lambda: plain(WAYS), multi_label, hot, False),
    "a dict": (dict_model, of_a_dict, named, True),
}


def trained(learner, tasks, num_steps=1, **options):
    trainer = ml.meta_trainer(learner, optax.sgd(0.01))
    options = {"tasks_per_step": 2, "key": KEY, "progress": False, **options}
    return ml.fit(trainer, tasks, num_steps=num_steps, **options)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_of_the_learner_judges(case):
    make, loss, tasks, trains = CASES[case]
    learner = ml.maml(make(), loss, optax.sgd(0.01), num_steps=1)
    variables = learner.init(KEY, tasks(KEY))
    if trains:
        validation = ml.Validation(tasks=tasks, num_tasks=3, every=1, metric="query/loss")
        variables = trained(learner, tasks, validation=validation).variables
    found = ml.evaluate(learner, variables, tasks, num_tasks=3, key=KEY)
    assert list(found.values) == ["query/loss"]

    @jax.jit
    def expected(number):
        key = jax.random.split(jax.random.fold_in(KEY, number), 3)[0]
        task = tasks(key)
        adapted = learner.adapt(variables, task.support)
        return loss(learner.predict(adapted, task.query.x), task.query)

    values = [expected(number) for number in range(3)]
    np.testing.assert_allclose(found.values["query/loss"], values, rtol=1e-4)


def test_a_given_loss_goes_before_the_learners():
    learner = ml.maml(plain(1), ml.losses.mse, optax.sgd(0.01), num_steps=1)
    variables = learner.init(KEY, SINES(KEY))
    run = functools.partial(ml.evaluate, learner, variables, SINES, num_tasks=3, key=KEY)
    own, given = run(), run(lambda outputs, examples: 3 * ml.losses.mse(outputs, examples))
    np.testing.assert_allclose(
        given.values["query/loss"], 3 * own.values["query/loss"], rtol=1e-6
    )


def test_learners_that_carry_no_loss_train_whatever_would_judge_them():
    """`predict` gives a dict, for which no loss can be guessed."""
    made = counting_learner()
    learner = made._replace(
        predict=lambda adapted, x, *, key=None, mask=None: {"mean": x + adapted[None]}
    )
    result = trained(learner, SINES)
    evaluate = functools.partial(
        ml.evaluate, learner, result.variables, SINES, num_tasks=2, key=KEY
    )
    with pytest.raises(TypeError, match=r"guessed from the targets.*loss_fn="):
        evaluate()
    loss = lambda outputs, examples: ml.losses.mse(outputs["mean"], examples)
    assert evaluate(loss).values["query/loss"].shape == (2,)


class Unhashable:
    """A loss that is compared by value, as dataclasses are."""

    __hash__ = None

    def __call__(self, outputs, examples):
        return 2 * ml.losses.mse(outputs, examples)


def test_losses_that_cannot_be_keys_of_a_cache():
    learner = ml.maml(plain(1), Unhashable(), optax.sgd(0.01), num_steps=1)
    result = trained(learner, SINES)
    run = functools.partial(
        ml.evaluate, learner, result.variables, SINES, num_tasks=2, key=KEY
    )
    np.testing.assert_array_equal(
        run().values["query/loss"], run(Unhashable()).values["query/loss"]
    )


# -- Metrics of users -------------------------------------------------------------------


@functools.cache
def classifier():
    learner = ml.maml(plain(), CE, optax.sgd(0.1), num_steps=1)
    return learner, learner.init(KEY, blobs(KEY))


def spread(outputs, examples):
    return jnp.max(outputs).astype(jnp.bfloat16)


def test_metrics_beside_the_loss_have_intervals_and_differences():
    learner, variables = classifier()
    run = functools.partial(ml.evaluate, learner, num_tasks=6, key=KEY)
    more = {"query/f1": ml.metrics.f1, "top": spread}
    found = run(variables, blobs, metrics=more)
    assert set(found.values) == {"query/loss", "query/accuracy", "query/f1", "top"}
    assert all(values.dtype == np.float32 for values in found.values.values())
    predict = jax.jit(
        lambda task: learner.predict(learner.adapt(variables, task.support), task.query.x)
    )
    for i in range(6):
        task = blobs(jax.random.split(jax.random.fold_in(KEY, i), 3)[0])
        guessed = np.argmax(predict(task), -1)
        expected = f1_score(task.query.y, guessed, average="macro", zero_division=0)
        assert found.values["query/f1"][i] == pytest.approx(expected, rel=1e-5)
    mean, half = found.mean_ci95("query/f1")
    assert found.summary()["query/f1"] == {"mean": mean, "ci95": half}
    assert "query/f1" in str(found)
    other = jax.tree.map(lambda leaf: 2 * leaf, variables)
    second = run(other, blobs, metrics=more)
    mean, _ = ml.paired_difference(found, second, "query/f1")
    gap = found.values["query/f1"] - second.values["query/f1"]
    assert mean == pytest.approx(gap.mean(), abs=1e-7)
    plain_ = run(variables, blobs)
    assert plain_.fingerprint == found.fingerprint
    np.testing.assert_array_equal(plain_.values["query/loss"], found.values["query/loss"])


def test_a_metric_of_the_user_may_decide_a_validation():
    learner, _ = classifier()
    judged = ml.Validation(
        tasks=blobs,
        num_tasks=3,
        every=1,
        metric="query/f1",
        metrics={"query/f1": ml.metrics.f1},
    )
    result = trained(learner, blobs, num_steps=2, validation=judged)
    rows = [row for row in result.history if "validation/f1" in row]
    assert len(rows) == 2
    best = max(rows, key=lambda row: row["validation/f1"])
    assert result.best_step == best["step"]
