"""Learning to reweight: scores by finite differences, weights of flipped examples, sums."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import centred, one, plain

import metalearn as ml
from metalearn.algorithms.joint.builder import each

CE = ml.losses.cross_entropy
x64 = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)


def _task(noisy=7, clean=5, seed=0):
    rng = np.random.default_rng(seed)

    def part(num):
        y = jnp.asarray(rng.integers(0, 3, num), jnp.int32)
        return ml.Examples.of(jnp.asarray(rng.normal(size=(num, 4))), y)

    return ml.Task(support=part(noisy), query=part(clean))


def _batch(task):
    return jax.tree.map(lambda leaf: leaf[None], task)


def _estimate(learner, variables, task):
    return jax.jit(learner.estimate)(variables, _batch(task), key=KEY)


def _of_model(variables):
    return ml.Variables(params=variables.params["model"], state=variables.state["model"])


def _linear():
    """Logits `x W` of two classes, without a bias: rows of W do not mix inputs."""
    init = lambda key, x: {"w": 0.3 * jax.random.normal(key, (x.shape[-1], 2))}
    return ml.from_apply_fn(init, lambda params, x: x @ params["w"])


def _flipped_duplicates(flips):
    """Orthogonal clean points, and each again with the label that `flips` says."""
    x, y = jnp.eye(3), jnp.asarray([0, 1, 0], jnp.int32)
    given = jnp.where(jnp.asarray(flips), 1 - y, y)
    return ml.Task(support=ml.Examples.of(x, given), query=ml.Examples.of(x, y))


@pytest.mark.parametrize("make", [ml.l2rw, ml.meta_weight_net])
def test_a_loss_that_divides_by_class_weights_is_refused(make):
    weighted = functools.partial(CE, class_weights=(1.0, 5.0, 1.0))

    @functools.wraps(weighted)
    def wrapped(outputs, examples):
        return weighted(outputs, examples)

    model, task = plain(), _task()
    for loss_fn in (weighted, functools.partial(weighted, label_smoothing=0.1), wrapped):
        with pytest.raises(ValueError, match=r"class_weights divides .*losses\.focal"):
            make(model, loss_fn)
    make(model, functools.partial(CE, class_weights=None, label_smoothing=0.1))
    # The remedy keeps the weights.
    remedy = functools.partial(ml.losses.focal, gamma=0, class_weights=(1.0, 5.0, 1.0))
    outputs = jax.random.normal(KEY, (7, 3))
    found = each(remedy, outputs, task.support)
    plainly = each(CE, outputs, task.support)
    weights = np.asarray([1.0, 5.0, 1.0])[np.asarray(task.support.y)]
    np.testing.assert_allclose(found, weights * plainly, rtol=1e-6)
    make(model, remedy)
    variables = model.init(KEY, task.support.x)
    with pytest.raises(ValueError, match="clean_weights takes the loss"):
        ml.clean_weights(model, variables, task, loss_fn=weighted)


@x64
def test_scores_are_the_slopes_of_the_clean_loss_along_each_step():
    """The definition in the paper, by central differences in the weight of an example."""
    model, task = plain(), _task()
    learner = ml.l2rw(model, CE)
    variables = learner.init(jax.random.key(1), task)
    params = variables.params["model"]

    @jax.jit
    def clean_loss(weights):
        def loss(params):
            outputs, _ = model.apply(ml.Variables(params=params, state={}), task.support.x)
            each = optax.softmax_cross_entropy_with_integer_labels(outputs, task.support.y)
            return jnp.sum(weights * each)

        moved = jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params))
        outputs, _ = model.apply(ml.Variables(params=moved, state={}), task.query.x)
        return CE(outputs, task.query)

    num, step = 7, 1e-5
    scores = [
        -float(clean_loss(row) - clean_loss(-row)) / (2 * step)
        for row in step * np.eye(num)
    ]
    expected = np.maximum(scores, 0) / np.maximum(scores, 0).sum()
    assert 0 < (expected > 0).sum() < num
    found = ml.clean_weights(model, _of_model(variables), task, loss_fn=CE)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("label", [3, -1, 255])
@pytest.mark.parametrize("part", ["support", "query"])
def test_labels_of_no_logit_are_refused(part, label):
    model, task = plain(), _task()
    variables = model.init(KEY, task.support.x)
    examples = getattr(task, part)
    wrong = dataclasses.replace(examples, y=examples.y.at[2].set(label))
    other = dataclasses.replace(task, **{part: wrong})
    weigh = functools.partial(ml.clean_weights, model, variables, loss_fn=CE)
    with pytest.raises(
        ValueError, match=rf"{part}\.y holds labels .*expected labels 0\.\.2"
    ):
        weigh(other)
    assert np.isnan(jax.jit(weigh)(other)).all()
    # Where nobody looks, any label may stand.
    mask = wrong.mask.at[2].set(False)
    hidden = dataclasses.replace(task, **{part: dataclasses.replace(wrong, mask=mask)})
    assert np.isfinite(weigh(hidden)).all() and np.isfinite(weigh(task)).all()


def test_what_is_no_task_has_no_weights():
    model, task = plain(), _task()
    variables = model.init(KEY, task.support.x)
    for given in (None, task.support):
        with pytest.raises(TypeError, match=r"expected ml\.Task"):
            ml.clean_weights(model, variables, given, loss_fn=CE)


@x64
def test_the_gradient_of_the_model_is_that_of_the_weighted_losses():
    model, task = plain(), _task()
    learner = ml.l2rw(model, CE)
    variables = learner.init(jax.random.key(1), task)
    weights = ml.clean_weights(model, _of_model(variables), task, loss_fn=CE)

    @jax.jit
    @functools.partial(jax.jacrev)
    def each(params):
        outputs, _ = model.apply(ml.Variables(params=params, state={}), task.support.x)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, task.support.y)

    rows = each(variables.params["model"])
    expected = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), rows)
    found = _estimate(learner, variables, task)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        found.grads["model"],
        expected,
    )
    told = one(found.metrics)
    assert float(told["weights/sum"]) == pytest.approx(1)
    assert float(told["weights/used"]) == pytest.approx(float((weights > 0).mean()))
    assert {"query/loss", "query/accuracy", "support/loss"} <= told.keys()


@pytest.mark.parametrize("flips", [(0, 1, 0), (0, 0, 0)])
def test_flipped_duplicates_of_clean_points_get_no_weight(flips):
    flips = np.asarray(flips, bool)
    model, task = _linear(), _flipped_duplicates(flips)
    variables = model.init(jax.random.key(1), task.support.x)
    found = ml.clean_weights(model, variables, task, loss_fn=CE)
    np.testing.assert_array_equal(np.asarray(found)[flips], 0)
    assert (np.asarray(found)[~flips] > 0).all()
    assert float(found.sum()) == pytest.approx(1)


def test_without_a_helpful_example_the_step_is_zero():
    task = _flipped_duplicates([1, 1, 1])
    learner = ml.l2rw(_linear(), CE)
    trainer = ml.meta_trainer(learner, optax.sgd(0.5, momentum=0.9))
    state = trainer.init(jax.random.key(1), task)
    after, told = jax.jit(trainer.step)(state, _batch(task), key=KEY)
    np.testing.assert_array_equal(
        after.variables.params["model"]["w"], state.variables.params["model"]["w"]
    )
    assert float(told["weights/sum"][0]) == float(told["weights/used"][0]) == 0


def test_masked_examples_do_not_count():
    """Neither noisy nor clean ones, whatever they hold."""
    task, learner = _task(), ml.l2rw(centred(), CE)
    variables = learner.init(jax.random.key(1), task)

    def padded(part):
        x = jnp.concatenate([part.x, jnp.full((2, 4), 1e3)])
        y = jnp.concatenate([part.y, jnp.zeros(2, jnp.int32)])
        return ml.Examples.of(x, y, jnp.concatenate([part.mask, jnp.zeros(2, bool)]))

    wide = ml.Task(support=padded(task.support), query=padded(task.query))
    found, expected = (_estimate(learner, variables, each) for each in (wide, task))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


def test_running_averages_see_the_noisy_batch_once():
    task, model = _task(), centred()
    learner = ml.l2rw(model, CE)
    variables = learner.init(jax.random.key(1), task)
    found = _estimate(learner, variables, task).state["model"]
    support = task.support
    _, expected = model.apply(
        _of_model(variables), support.x, train=True, mask=support.mask
    )
    np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-6)


def test_the_model_predicts_as_it_is():
    task, model = _task(), plain()
    learner = ml.l2rw(model, CE)
    variables = learner.init(jax.random.key(1), task)
    outputs = learner.predict(learner.adapt(variables, task.support), task.query.x)
    expected, _ = model.apply(_of_model(variables), task.query.x)
    np.testing.assert_array_equal(outputs, expected)


def test_a_masked_example_has_a_loss_of_zero():
    rows = _task().support
    rows = ml.Examples(x=rows.x, y=rows.y, mask=rows.mask.at[2].set(False))
    found = each(CE, jnp.zeros((7, 3)), rows)
    np.testing.assert_allclose(found, np.log(3) * (np.arange(7) != 2), rtol=1e-6)
