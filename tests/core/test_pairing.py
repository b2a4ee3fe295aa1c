"""Losses and metrics of users that mix the examples of a set."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn.core.pairing import paired

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


def weighed_by_inputs(outputs, examples):
    return jnp.mean(examples.x[:, -1] ** 2 * (outputs - examples.y) ** 2)


def of_chances(outputs, examples):
    """A cross-entropy of chances, which no logarithm takes of other numbers."""
    p, y = jax.nn.sigmoid(outputs) ** 2, examples.y**2 / 10
    return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log1p(-p))


def poisson(outputs, examples):
    return jnp.mean(outputs - examples.y * jnp.log(outputs))


def hits(outputs, examples):
    """The accuracy of logits that an offset decides in most draws."""
    return jnp.mean(jnp.argmax(outputs - jnp.array([0.0, 3.0]), -1) == examples.y)


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


CASES = [(*case, make) for case in MIXING for make in MAKERS]
CASES += [(fn, 1, np.float32, "no step") for fn in (weighed_by_inputs, of_chances, poisson)]


@pytest.mark.parametrize(
    ("fn", "width", "dtype", "make"), CASES, ids=lambda part: str(part)[:12]
)
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


def beside_a_good_one(outputs, examples):
    """Of the two parts one weighs the size of all outputs."""
    errors = (outputs[:, 0] - examples.y) ** 2
    size = jnp.sum(outputs**2 * examples.mask) / jnp.sum(examples.mask)
    return ml.masked_mean(errors, examples.mask) + 0.1 * size


def heeding(outputs, examples):
    """Broadcasts over ranks, and weighs each error by its own mask."""
    errors = (outputs[:, 0] - examples.y) ** 2 + 0 * (examples.x - examples.x.mean(0))[:, 0]
    return ml.masked_mean(errors, examples.mask)


def unmasked(outputs, examples):
    """Looks at no mask."""
    return jnp.mean((outputs[:, 0] - examples.y) ** 2) + 0 * (examples.x[0] * outputs).sum()


def of_positive_outputs(outputs, examples):
    """A logarithm of what the network makes positive, beside a square of all inputs."""
    x = jnp.where(examples.mask[:, None], examples.x, 0.0)
    losses = outputs[:, 0] - examples.y * jnp.log(outputs[:, 0] ** 3)
    return ml.masked_mean(losses, examples.mask) + 1e-3 * jnp.mean((x @ x.T) ** 2)


def distance_of_sets(outputs, examples):
    """The energy distance of outputs and targets, by explicit axes."""

    def between(a, b):
        return jnp.mean(jnp.abs(a[:, None] - b[None, :]))

    a, b = outputs[:, 0], examples.y
    return 2 * between(a, b) - between(a, a) - between(b, b)


def ranked(outputs, examples):
    """Pairs of examples in their order, each pair of two valid ones."""
    gaps = outputs[:, 0][:, None] - outputs[:, 0][None, :]
    above = (examples.y[:, None] > examples.y[None, :]) & examples.mask[:, None]
    above = above & examples.mask[None, :]
    return jnp.sum(jnp.where(above, jnp.logaddexp(0.0, -gaps), 0.0)) / above.size


TAKEN = [heeding, unmasked, of_positive_outputs, distance_of_sets, ranked]


@pytest.mark.parametrize("fn", TAKEN)
def test_losses_that_heed_the_mask_or_do_not_read_it_are_taken(fn):
    task, learner = sets(), ml.maml(net(1), fn, SGD, num_steps=0)
    with jax.numpy_rank_promotion("allow"):
        learner.estimate(learner.init(KEY, task), ml.stack_tasks([task, task]), key=KEY)


@pytest.mark.parametrize("num", [2, 3, 6])
def test_a_metric_that_counts_hits_is_taken(num):
    rows = jax.tree.map(lambda leaf: leaf[:num], sets(np.int32).support)
    with jax.numpy_rank_promotion("allow"):
        found = paired(hits, jnp.ones((num, 2)), rows)
        assert found == hits(jnp.ones((num, 2)), rows)


def test_a_function_is_asked_once_for_each_shape():
    calls, task = [], sets()

    def counted(outputs, examples):
        calls.append(0)
        return distance_of_sets(outputs, examples)

    outputs = jnp.ones((6, 1))
    paired(counted, outputs, task.support)
    first = len(calls)
    for _ in range(3):
        paired(counted, outputs, task.support)
    assert len(calls) == first + 3


@pytest.mark.parametrize("fn", [weighed, chosen, beside_a_good_one])
def test_a_loss_of_each_error_by_each_mask_is_refused(fn):
    """It is N times what it should be, and masked rows count."""
    task, learner = sets(), ml.maml(net(1), fn, SGD, num_steps=0)
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match=r"reads the mask of shape \(6,\) and counts"),
    ):
        learner.estimate(learner.init(KEY, task), ml.stack_tasks([task, task]), key=KEY)
