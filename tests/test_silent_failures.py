"""What must not pass in silence."""

from __future__ import annotations

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn.inner.norm import batch_statistics


def _blobs(num_classes=3, shift=0):
    def sample(key):
        k_mean, k_noise = jax.random.split(key)
        y = jnp.arange(2 * num_classes, dtype=jnp.int32) % num_classes
        means = 3 * jax.random.normal(k_mean, (num_classes, 4))
        x = means[y] + 0.1 * jax.random.normal(k_noise, (y.size, 4)) + shift
        half = num_classes
        return ml.Task(
            support=ml.Examples.of(x[:half], y[:half]),
            query=ml.Examples.of(x[half:], y[half:]),
        )

    return sample


def _linear(num_outputs):
    return ml.from_linen(nn.Dense(num_outputs))


def test_labels_outside_the_logits_are_never_hits():
    examples = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([5, -9]))
    logits = jnp.array([[0.0, 1.0, 2.0]] * 2)
    assert ml.metrics.accuracy(logits, examples) == 0


def test_evaluate_refuses_labels_outside_the_logits_of_any_task():
    good = _blobs()

    def sometimes(key):
        task = good(key)
        odd = jax.random.bernoulli(jax.random.fold_in(key, 4), 0.3)
        y = jnp.where(odd, task.query.y + 7, task.query.y)
        query = ml.Examples(x=task.query.x, y=y, mask=task.query.mask)
        return ml.Task(support=task.support, query=query)

    learner = ml.maml(_linear(3), ml.losses.cross_entropy, optax.sgd(0.1))
    variables = learner.init(jax.random.key(0), good(jax.random.key(0)))
    with pytest.raises(ValueError, match="labels outside the logits"):
        ml.evaluate(learner, variables, sometimes, num_tasks=30, key=jax.random.key(0))


def test_paired_difference_needs_the_same_tasks_and_not_only_the_same_names():
    learner = ml.protonet(_linear(4), num_ways=3)
    first, second = _blobs(), _blobs(shift=1)
    variables = learner.init(jax.random.key(0), first(jax.random.key(0)))
    key = jax.random.key(0)
    a = ml.evaluate(learner, variables, first, num_tasks=4, key=key)
    b = ml.evaluate(learner, variables, second, num_tasks=4, key=key)
    assert a.tasks == b.tasks
    with pytest.raises(ValueError, match="different tasks"):
        ml.paired_difference(a, b)
    assert ml.paired_difference(a, a) == (0.0, 0.0)


def test_infinite_loss_with_finite_gradients_stops_training():
    waves = ml.tasks.sinusoid()

    def huge(key):
        task = waves(key)
        y = task.query.y * 1e30
        query = ml.Examples(x=task.query.x, y=y, mask=task.query.mask)
        return ml.Task(support=task.support, query=query)

    learner = ml.maml(_linear(1), ml.losses.mse, optax.sgd(0.01))
    with pytest.raises(ml.NonFiniteGradient, match="step 0"):
        ml.fit(
            ml.meta_trainer(learner, optax.adam(1e-2)),
            huge,
            num_steps=5,
            tasks_per_step=2,
            key=jax.random.key(0),
            progress=False,
        )


class _Normed(nn.Module):
    @nn.compact
    def __call__(self, x, learning=False):
        return nn.BatchNorm(use_running_average=not learning, momentum=0.99)(x)


def test_a_training_flag_of_another_name_is_found_out():
    with pytest.raises(TypeError, match=r"takes x, learning"):
        ml.from_linen(_Normed(), train_kw="trian")
    with pytest.raises(ValueError, match="no training flag"):
        ml.from_linen(_Normed()).init(jax.random.key(0), jnp.zeros((2, 3)))
    ml.from_linen(_Normed(), train_kw="learning").init(jax.random.key(0), jnp.zeros((2, 3)))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_batch_statistics_keep_their_digits_at_any_scale(scale):
    model = ml.from_linen(_Normed(), train_kw="learning")
    x = scale * jax.random.normal(jax.random.key(1), (16, 3))
    variables = model.init(jax.random.key(0), x)
    examples = ml.Examples.of(x, jnp.zeros(16, jnp.int32))
    state = batch_statistics(model, variables.params, variables.state, examples)
    found = state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["var"], x.var(0), rtol=1e-3)
    np.testing.assert_allclose(found["mean"], x.mean(0), rtol=1e-3, atol=1e-3 * scale)


def test_a_validation_that_cannot_work_is_refused_before_training():
    learner = ml.maml(_linear(1), ml.losses.mse, optax.sgd(0.01))
    with pytest.raises(ValueError, match="'query/accuracy' is not reported"):
        ml.fit(
            ml.meta_trainer(learner, optax.adam(1e-2)),
            ml.tasks.sinusoid(),
            num_steps=10**9,
            tasks_per_step=2,
            key=jax.random.key(0),
            validation=ml.Validation(tasks=ml.tasks.sinusoid()),
            progress=False,
        )


def test_adam_in_disguise_is_refused_when_the_parameters_are_known():
    adam = optax.multi_transform({"a": optax.adam(0.1)}, lambda params: "a")
    by_name = optax.partition({"a": optax.adam(0.1)}, {"kernel": "a", "bias": "a"})
    task = ml.tasks.sinusoid()(jax.random.key(0))
    learned = ml.maml(
        _linear(1),
        ml.losses.mse,
        lambda rate: optax.adam(rate),
        inner_hparams=lambda key, params: 0.1,
    )
    hidden = [ml.maml(_linear(1), ml.losses.mse, by_name), learned]
    for learner in hidden:
        with pytest.raises(ValueError, match="eps_root"):
            jax.jit(learner.init)(jax.random.key(0), task)
    with pytest.raises(ValueError, match="eps_root"):
        ml.maml(_linear(1), ml.losses.mse, adam)
    good = optax.partition(
        {"a": optax.adam(0.1, eps_root=1e-8)}, {"kernel": "a", "bias": "a"}
    )
    ml.maml(_linear(1), ml.losses.mse, good).init(jax.random.key(0), task)


@pytest.mark.parametrize(
    ("opt", "start"),
    [
        (lambda h: optax.sgd(jnp.exp(h)), jnp.log(0.01)),
        (lambda h: optax.sgd(jax.nn.softplus(h)), jnp.zeros(())),
        (lambda h: optax.chain(ml.inner.clip_by_global_norm(10.0), optax.sgd(h)), 0.1),
    ],
)
def test_learned_rates_may_be_made_of_anything(opt, start):
    learner = ml.maml(_linear(1), ml.losses.mse, opt, inner_hparams=start, num_steps=2)
    result = ml.fit(
        ml.meta_trainer(learner, optax.adam(1e-2)),
        ml.tasks.sinusoid(),
        num_steps=2,
        tasks_per_step=2,
        key=jax.random.key(0),
        progress=False,
    )
    assert result.variables.params["inner"] != start


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: ml.maml(m, ml.losses.mse, optax.sgd(0.1), num_steps=2.5), "num_steps"),
        (lambda m: ml.maml(m, ml.losses.mse, optax.sgd(0.1), num_steps=-1), "num_steps"),
        (lambda m: ml.maml(m, ml.losses.mse, optax.sgd(0.1), task_chunk=0), "task_chunk"),
        (
            lambda m: ml.reptile(
                m, ml.losses.mse, optax.sgd(0.1), num_steps=1, batch_size=0
            ),
            "batch_size",
        ),
    ],
)
def test_counts_are_refused_when_the_learner_is_made(make, words):
    with pytest.raises(ValueError, match=words):
        make(_linear(1))


def test_masked_queries_do_not_move_transductive_predictions():
    model = ml.from_linen(ml.models.MLP(2, widths=(4,), norm="batch"))
    learner = ml.maml(model, ml.losses.cross_entropy, optax.sgd(0.1), norm="batch")
    x = jax.random.uniform(jax.random.key(0), (4, 3))
    y = jnp.arange(4, dtype=jnp.int32) % 2
    examples = ml.Examples.of(x, y)
    task = ml.Task(support=examples, query=examples)
    variables = learner.init(jax.random.key(1), task)
    adapted = jax.jit(learner.adapt)(variables, examples)
    plain = learner.predict(adapted, x)
    padded = jnp.concatenate([x, 9 * jnp.ones((3, 3))])
    mask = jnp.arange(7) < 4
    masked = learner.predict(adapted, padded, mask=mask)[:4]
    np.testing.assert_allclose(masked, plain, atol=1e-5)
    assert np.abs(learner.predict(adapted, padded)[:4] - plain).max() > 1e-3


def test_rows_that_are_not_numbers_stay_json(tmp_path):
    ml.sinks.json_lines(tmp_path / "rows.jsonl")({"loss": float("nan"), "step": 1})
    row = json.loads((tmp_path / "rows.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"loss": None, "step": 1}


def test_equal_samplers_share_their_compilations(count_compilations):
    images = np.random.default_rng(0).integers(0, 255, (12, 4, 4, 1), np.uint8)
    labels = np.arange(12) % 3
    make = functools.partial(ml.data.few_shot, num_ways=3, num_support=1, num_query=1)
    first, second = make(images, labels), make(255 - images, labels)
    assert first.sample == second.sample
    jax.block_until_ready(jax.jit(first.sample)(first.data, jax.random.key(0)))
    count_compilations()
    jax.block_until_ready(jax.jit(second.sample)(second.data, jax.random.key(0)))
    assert count_compilations() == 0


def test_images_too_small_for_four_poolings_are_refused():
    model = ml.from_linen(ml.models.Conv4(5))
    with pytest.raises(ValueError, match="sides of 16 or more"):
        model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
