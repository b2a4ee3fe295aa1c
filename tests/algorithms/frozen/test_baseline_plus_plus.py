"""Baseline++ against NumPy: its classifier in meta-training, and its fit to a task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, grads_of, wide_blobs
from frozen_tasks import (
    CLASSES,
    SIZES,
    arrays,
    as_they_are,
    lengths,
    logits_of,
    ragged,
    variables,
)
from tiny import INPUTS, WAYS, one

import metalearn as ml
from metalearn.algorithms import frozen
from metalearn.algorithms.frozen.baseline_plus_plus import cosine

pytestmark = pytest.mark.usefixtures("x64")
RATE, DECAY, SCALE = 0.3, 0.02, 3.0


def make(**options):
    options = {"rate": RATE, "weight_decay": DECAY, **options}
    return frozen.baseline_plus_plus(as_they_are(), **SIZES, **options)


def shares_of(logits):
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def slopes(v, g, x, y, scale):
    """Gradient of the mean cross-entropy of `scale g_k cos(x, v_k)`, plus the decay."""
    x, of = x / lengths(x), np.linalg.norm(v, axis=0)
    unit = v / of
    apart = (shares_of(scale * (x @ unit) * g) - np.eye(v.shape[1])[y]) / len(y)
    by_length = scale * (apart * (x @ unit)).sum(0)
    by_unit = scale * x.T @ (apart * g)
    by_direction = (by_unit - unit * (unit * by_unit).sum(0)) / of
    return by_direction + DECAY * v, by_length + DECAY * g


def test_a_task_is_fitted_by_damped_momentum():
    """Five examples: two steps a pass, on all of them, the first one undamped."""
    task, key = one(ragged()), jax.random.key(5)
    x, y, queries = arrays(task)

    def both(support):
        return [
            make(num_epochs=epochs, scale=SCALE).adapt(variables(), support, key=key).fitted
            for epochs in (0, 2)
        ]

    start, end = jax.jit(both)(task.support)
    v, g = np.asarray(start["direction"]), np.asarray(start["length"])
    close(g, np.linalg.norm(v, axis=0))
    assert np.abs(v).max() <= INPUTS**-0.5 and v.shape == (INPUTS, WAYS)
    momentum = slopes(v, g, x, y, SCALE)
    for step in range(4):
        found = slopes(v, g, x, y, SCALE)
        if step:
            momentum = [0.9 * b + 0.1 * f for b, f in zip(momentum, found)]
        v, g = v - RATE * momentum[0], g - RATE * momentum[1]
    close([end["direction"], end["length"]], [v, g])
    logits = SCALE * (queries / lengths(queries)) @ (v / np.linalg.norm(v, axis=0))
    found = logits_of(make(num_epochs=2, scale=SCALE), task, key=key)
    close(found, logits * g)


def test_an_absent_class_has_no_part_in_the_fit():
    """As if there were two classes: what is left of the third one is its decay."""
    task = one(wide_blobs())
    mask = jnp.array([True, True, True, True, False, False])
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=mask)
    start, end = jax.jit(
        lambda s: [make(num_epochs=n).adapt(variables(), s).fitted for n in (0, 1)]
    )(support)
    v, g = np.asarray(start["direction"])[:, :2], np.asarray(start["length"])[:2]
    x, y = np.asarray(task.support.x)[:4], np.asarray(task.support.y)[:4]
    found = slopes(v, g, x, y, 2.0)  # four examples: one step
    close(end["direction"][:, :2], v - RATE * found[0])
    close(end["length"][:2], g - RATE * found[1])
    close(end["length"][2], start["length"][2] * (1 - RATE * DECAY))


def test_the_scale_of_features_does_not_matter_and_the_key_does():
    task, learner = one(wide_blobs()), make(num_epochs=3)
    wide = jax.tree.map(lambda x: 9 * x if x.ndim == 2 else x, task)
    run = jax.jit(
        lambda t, key: learner.predict(
            learner.adapt(variables(), t.support, key=key), t.query.x
        )
    )
    first = run(task, jax.random.key(1))
    close(run(wide, jax.random.key(1)), first)
    assert np.abs(run(task, jax.random.key(2)) - first).max() > 0.01


def test_meta_training_is_by_cosines_too():
    """The loss in NumPy, and the gradient of the lengths of the weights."""
    rng = np.random.default_rng(0)
    v, g = rng.normal(size=(INPUTS, CLASSES)), rng.uniform(1, 2, CLASSES)
    head = jax.tree.map(jnp.asarray, {"direction": v, "length": g})
    tasks = wide_blobs()
    found = grads_of(make(scale=4.0, task_chunk=9), variables(classifier=head), tasks)
    losses, total = [], []
    for i in range(3):
        x = np.concatenate([tasks.support.x[i], tasks.query.x[i]])
        y = np.concatenate([tasks.support.y[i], tasks.query.y[i]])
        y = np.asarray(tasks.info["class_ids"][i])[y]
        logits = 4.0 * (x / lengths(x)) @ (v / np.linalg.norm(v, axis=0)) * g
        losses.append(-np.log(shares_of(logits)[np.arange(len(y)), y]).mean())
        total.append(slopes(v, g, x, y, 4.0))
    close(found.metrics["joint/loss"], np.stack(losses))
    close(
        found.grads["classifier"]["length"], np.mean([t[1] for t in total], 0) - DECAY * g
    )
    means = np.mean([t[0] for t in total], 0) - DECAY * v
    close(found.grads["classifier"]["direction"], means)


def test_the_scale_is_two_for_up_to_two_hundred_classes():
    for num, scale in ((200, 2.0), (201, 10.0)):
        weights = {"direction": jnp.ones((1, num)), "length": jnp.ones(num)}
        assert np.allclose(cosine().logits(weights, jnp.ones((1, 1))), scale)


def test_options_are_checked():
    with pytest.raises(ValueError, match="scale is 0; expected a finite number above 0"):
        make(scale=0)
    with pytest.raises(ValueError, match=r"num_epochs is 1\.5; expected an integer of 0"):
        make(num_epochs=1.5)
