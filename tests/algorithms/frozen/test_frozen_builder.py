"""What the frozen learners share: meta-training, the mean feature, batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, wide_blobs
from frozen_tasks import (
    CLASSES,
    SIZES,
    as_they_are,
    ragged,
    tanh_features,
    trained,
    variables,
)
from reference import steps as reference
from tiny import HIDDEN, WAYS, blob_batch, linen, one

import metalearn as ml
from metalearn.algorithms import frozen
from metalearn.algorithms.frozen import builder

pytestmark = pytest.mark.usefixtures("x64")


def rows_of(tasks, i):
    """Valid examples of a task, support first, and their classes in training."""
    x, y = [], []
    for part in (tasks.support, tasks.query):
        keep = np.asarray(part.mask[i])
        x.append(np.asarray(part.x[i])[keep])
        y.append(np.asarray(part.y[i])[keep])
    return np.concatenate(x), np.asarray(tasks.info["class_ids"][i])[np.concatenate(y)]


def listed(params):
    body, head = params["encoder"], params["classifier"]
    return [np.asarray(p) for p in (body["w"], body["b"], head["kernel"], head["bias"])]


def test_meta_training_is_over_support_and_query_and_all_classes():
    """Loss and gradient by a reference in NumPy; the mean feature of valid rows."""
    learner = frozen.simple_shot(tanh_features(), **SIZES, task_chunk=9)
    body, head = trained()
    start = variables(body, classifier=head, mean=np.full(HIDDEN, 9.0))
    found = grads_of(learner, start, ragged())
    params, rows = listed(start.params), [rows_of(ragged(), i) for i in range(3)]
    slopes = [reference.gradient(params, *pair) for pair in rows]
    close(listed(found.grads), [np.mean(leaves, 0) for leaves in zip(*slopes)])
    losses = np.stack([reference.loss(params, *pair) for pair in rows])
    close(found.metrics["joint/loss"], losses)
    means = [np.tanh(x @ params[0] + params[1]).mean(0) for x, _ in rows]
    close(found.state["mean"], np.mean(means, 0))  # of the first step, whatever was there
    assert found.state["step"] == 1


def test_the_mean_feature_is_plain_at_first_and_slow_later():
    """Of tasks alike; a task without any example does not count."""
    learner = frozen.simple_shot(as_they_are(), **SIZES, task_chunk=9)
    tasks = wide_blobs()
    shown = jnp.array([True, True, False])[:, None]
    cut = [
        ml.Examples(x=part.x, y=part.y, mask=part.mask & shown)
        for part in (tasks.support, tasks.query)
    ]
    tasks = ml.Task(support=cut[0], query=cut[1], info=tasks.info)
    old = np.array([1.0, -2.0, 0.5, 3.0])
    head = {"kernel": jnp.zeros((4, CLASSES)), "bias": jnp.zeros(CLASSES)}
    run = jax.jit(lambda v: learner.estimate(v, tasks, key=jax.random.key(0)).state["mean"])
    means = [rows_of(tasks, i)[0].mean(0) - old for i in (0, 1)]
    for step, share in ((3, 1 / 4), (98, 1 / 99), (5000, 1 / 100)):
        found = run(variables(mean=old, step=step, classifier=head))
        close(found, old + share * np.sum(means, 0) / 3)


def test_batch_norm_learns_in_meta_training_and_is_read_in_a_task():
    encoder, tasks = linen(None), blob_batch()
    learner = frozen.nearest_centroid(encoder, **SIZES, task_chunk=9)

    def run(key):
        start = learner.init(key, one(tasks))
        found = learner.estimate(start, tasks, key=key)
        own = builder.encoder_of(start)

        def moved(task):
            x = jnp.concatenate([task.support.x, task.query.x])
            return encoder.apply(own, x, train=True)[1]

        state = jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(moved)(tasks))
        after = ml.Variables(params=start.params, state=found.state)
        fitted = learner.adapt(after, one(tasks).support).fitted
        now = ml.Variables(params=own.params, state=state)
        features, _ = encoder.apply(now, one(tasks).support.x)
        return found.state["model"], state, fitted, features

    found, expected, fitted, features = jax.jit(run)(jax.random.key(0))
    close(found, expected, rtol=1e-5)
    means = np.asarray(features).reshape(WAYS, 2, HIDDEN).mean(1)
    close(fitted, means / np.linalg.norm(means, axis=-1, keepdims=True), rtol=1e-5)


def test_what_one_learner_has_trained_serves_the_others():
    """Variables of the same structure and shapes, so heads can be compared on them."""
    made = [
        jax.eval_shape(
            getattr(frozen, name)(linen(None), **SIZES).init,
            jax.random.key(0),
            one(blob_batch()),
        )
        for name in ("simple_shot", "linear_probe", "transductive_fine_tune")
    ]
    assert all(other == made[0] for other in made)
    assert made[0].params["classifier"]["kernel"].shape == (HIDDEN, CLASSES)


def test_tasks_that_do_not_say_their_classes_are_refused():
    learner = frozen.linear_probe(tanh_features(), **SIZES)
    task = ml.Task(support=wide_blobs().support, query=wide_blobs().query)
    start = variables(trained()[0], classifier=trained()[1])
    with pytest.raises(ValueError, match=r"class_ids.*got info \[\]"):
        learner.estimate(start, task, key=jax.random.key(0))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="num_classes is 1; expected"):
        frozen.nearest_centroid(as_they_are(), num_classes=1, num_ways=WAYS)
    with pytest.raises(ValueError, match="num_ways is None; expected"):
        frozen.nearest_centroid(as_they_are(), num_classes=CLASSES, num_ways=None)
