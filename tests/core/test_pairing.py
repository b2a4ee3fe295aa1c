"""Losses and metrics of users that mix the examples of a set."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml

KEY = jax.random.key(0)

SGD = optax.sgd(0.1)


def net(width):
    return ml.from_apply_fn(
        lambda key, x: {"w": jnp.ones((x.shape[-1], width))},
        lambda params, x: x @ params["w"],
    )


def square(outputs, examples):
    return jnp.mean((outputs - examples.y) ** 2)


def gaussian(outputs, examples):
    mean, log = jnp.split(outputs, 2, axis=-1)
    return jnp.mean((mean - examples.y) ** 2 * jnp.exp(-log) + log)


def binary(outputs, examples):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(outputs, examples.y > 0))


def centred(outputs, examples):
    x = examples.x - examples.x.mean(0)
    return jnp.mean((outputs[:, 0] - examples.y) ** 2) + 1e-3 * jnp.mean(x**2)


def pinball(outputs, examples):
    error = examples.y - outputs[:, 0]
    shares = jnp.array([0.1, 0.5, 0.9])
    return jnp.mean(jnp.maximum(shares * error[:, None], (shares - 1) * error[:, None]))


def sets(dtype=np.float32):
    rng = np.random.default_rng(0)
    y = np.sign(rng.normal(size=6)).astype(dtype)
    part = ml.Examples.of(rng.normal(size=(6, 2)).astype(np.float32), y)
    return ml.Task(support=part, query=part)


MIXING = [(square, 1, np.float32), (gaussian, 2, np.float32), (binary, 1, np.int32)]
MAKERS = {
    "maml": lambda model, fn: ml.maml(model, fn, SGD, num_steps=1),
    "no step": lambda model, fn: ml.maml(model, fn, SGD, num_steps=0),
    "imaml": lambda model, fn: ml.imaml(model, fn, SGD, num_steps=1, lam=1.0),
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("fn", "width", "dtype"), MIXING, ids=lambda part: str(part)[:12])
def test_a_loss_of_each_output_against_each_target_is_refused(fn, width, dtype, make):
    """Outputs [N, 1] less targets [N] are [N, N], whose mean learns the mean target."""
    task, learner = sets(dtype), MAKERS[make](net(width), fn)
    variables = learner.init(KEY, task)
    with (
        jax.numpy_rank_promotion("allow"),  # as it is outside of these tests
        pytest.raises(ValueError, match=r"outputs of shape \(6, \d\) against targets"),
    ):
        if make == "imaml":
            learner.adapt(variables, task.support)
        learner.estimate(variables, ml.stack_tasks([task, task]), key=KEY)


@pytest.mark.parametrize("fn", [centred, pinball])
def test_losses_that_broadcast_something_else_are_taken(fn):
    task, learner = sets(), ml.maml(net(1), fn, SGD, num_steps=0)
    variables = learner.init(KEY, task)
    with jax.numpy_rank_promotion("allow"):
        found = learner.estimate(variables, ml.stack_tasks([task, task]), key=KEY)
        outputs = np.asarray(task.query.x).sum(-1, keepdims=True)
        expected = fn(outputs, task.query)
    np.testing.assert_allclose(found.metrics["query/loss"], expected, rtol=1e-5)


def test_a_metric_of_each_output_against_each_target_is_refused():
    task = sets()
    learner = ml.maml(net(1), centred, SGD, num_steps=0)
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(
            ValueError, match=r"^square broadcasts.*each output against each target"
        ),
    ):
        ml.evaluate(
            learner,
            learner.init(KEY, task),
            lambda key: task,
            num_tasks=2,
            key=KEY,
            metrics={"query/square": square},
        )


# -- Masks -------------------------------------------------------------------------------


def weighed(outputs, examples):
    """Errors [N, 1] times the mask [N]."""
    errors = (outputs - examples.y[:, None]) ** 2
    return jnp.sum(errors * examples.mask) / jnp.sum(examples.mask)


def chosen(outputs, examples):
    errors = (outputs - examples.y[:, None]) ** 2
    return jnp.mean(jnp.where(examples.mask, errors, 0.0))


def heeding(outputs, examples):
    """Broadcasts over ranks, and weighs each error by its own mask."""
    errors = (outputs[:, 0] - examples.y) ** 2 + 0 * (examples.x - examples.x.mean(0))[:, 0]
    return ml.masked_mean(errors, examples.mask)


def unmasked(outputs, examples):
    """Looks at no mask, and says so by its code."""
    return jnp.mean((outputs[:, 0] - examples.y) ** 2) + 0 * (examples.x[0] * outputs).sum()


@pytest.mark.parametrize("fn", [heeding, unmasked])
def test_losses_that_heed_the_mask_or_do_not_read_it_are_taken(fn):
    task, learner = sets(), ml.maml(net(1), fn, SGD, num_steps=0)
    with jax.numpy_rank_promotion("allow"):
        learner.estimate(learner.init(KEY, task), ml.stack_tasks([task, task]), key=KEY)


@pytest.mark.parametrize("fn", [weighed, chosen])
def test_a_loss_of_each_error_by_each_mask_is_refused(fn):
    """It is N times what it should be, and masked rows count."""
    task, learner = sets(), ml.maml(net(1), fn, SGD, num_steps=0)
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match=r"reads the mask of shape \(6,\) and counts"),
    ):
        learner.estimate(learner.init(KEY, task), ml.stack_tasks([task, task]), key=KEY)
