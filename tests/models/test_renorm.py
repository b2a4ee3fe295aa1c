"""Batch renormalisation: what it gives in training, its averages and its gradient."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalearn as ml
from metalearn import apps, models
from metalearn.models.renorm import BatchRenorm

STATS = "batch_stats"


def made(x, **options):
    layer = BatchRenorm(**options)
    variables = layer.init(jax.random.key(0), x)
    params = {"scale": jnp.array([1.5, 0.5]), "bias": jnp.array([0.1, -0.2])}
    return layer, {"params": params, STATS: variables[STATS]}


def draws(seed, *shape, mean=2.0, scale=3.0):
    return mean + scale * jax.random.normal(jax.random.key(seed), shape)


def test_training_gives_what_the_running_averages_give():
    x = draws(0, 6, 4, 4, 2)
    layer, variables = made(x)
    stats = {"mean": jnp.array([1.0, 2.5]), "square": jnp.array([9.0, 12.0])}
    variables[STATS] = stats
    trained, state = layer.apply(variables, x, mutable=[STATS])
    still = layer.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(trained, still, rtol=1e-4, atol=1e-5)
    variance = stats["square"] - stats["mean"] ** 2
    by_hand = (np.asarray(x) - np.asarray(stats["mean"])) / np.sqrt(variance + 1e-5)
    by_hand = by_hand * np.array([1.5, 0.5]) + np.array([0.1, -0.2])
    np.testing.assert_allclose(still, by_hand, rtol=1e-5, atol=1e-6)
    wanted = 0.9 * stats["mean"] + 0.1 * x.mean((0, 1, 2))
    np.testing.assert_allclose(state[STATS]["mean"], wanted, rtol=1e-6)


def test_the_gradient_is_that_of_batch_norm_where_averages_are_those_of_the_batch():
    x = draws(1, 8, 2)
    layer, variables = made(x)
    moments = {"mean": x.mean(0), "square": jnp.square(x).mean(0)}
    weights = jax.random.normal(jax.random.key(2), x.shape)
    other = nn.BatchNorm(use_running_average=False)
    stats = {"mean": jnp.zeros(2), "var": jnp.ones(2)}

    def loss(layer, stats, x):
        given = {"params": variables["params"], STATS: stats}
        return jnp.sum(weights * layer.apply(given, x, mutable=[STATS])[0])

    mine = jax.grad(lambda x: loss(layer, moments, x))(x)
    theirs = jax.grad(lambda x: loss(other, stats, x))(x)
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-6)
    # By running averages alone a shift of all inputs would change the loss.
    np.testing.assert_allclose(mine.sum(0), 0, atol=1e-4)


def test_averages_count_the_variance_between_tasks():
    """Each task is constant: all variance is between tasks, none within."""
    values = draws(3, 400, 2)
    layer, variables = made(jnp.ones((5, 2)), momentum=0.0)

    @jax.jit
    def state_of(value):
        x = jnp.broadcast_to(value, (5, 2))
        return layer.apply(variables, x, mutable=[STATS])[1][STATS]

    stats = jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(state_of)(values))
    variance = stats["square"] - stats["mean"] ** 2
    np.testing.assert_allclose(variance, values.var(0), rtol=1e-4)


@pytest.mark.parametrize(("shift", "scale"), [(1e3, 1.0), (0.0, 1e3), (0.0, 0.05)])
def test_far_averages_are_met_by_limits(shift, scale):
    x = shift + scale * draws(4, 16, 2, mean=0.0, scale=1.0)
    layer, variables = made(x)
    variables["params"] = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    y, _ = layer.apply(variables, x, mutable=[STATS])
    spread = 1 / 3 if scale < 1 else 3 if scale > 1 else x.std(0)
    np.testing.assert_allclose(y.std(0), spread, rtol=0.1)
    assert jnp.all(jnp.abs(y.mean(0)) <= 5.01)


def test_masked_rows_have_no_part():
    x = draws(5, 6, 2)
    mask = jnp.broadcast_to(jnp.array([1, 1, 1, 1, 0, 0], bool)[:, None], x.shape)
    layer, variables = made(x)

    def outputs(x):
        y, state = layer.apply(variables, x, mask=mask, mutable=[STATS])
        return jnp.where(mask, y, 0), state

    for junk in (0.0, 1e6):
        y, state = outputs(jnp.where(mask, x, junk))
        alone, kept = layer.apply(variables, x[:4], mutable=[STATS])
        np.testing.assert_allclose(y[:4], alone, rtol=1e-6)
        for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(kept)):
            np.testing.assert_allclose(one, two, rtol=1e-6)
    grad = jax.grad(lambda x: jnp.sum(jnp.square(outputs(x)[0])))(x)
    np.testing.assert_array_equal(grad[4:], 0)


def test_constant_inputs_have_a_finite_gradient():
    x = jnp.full((4, 2), 3.0)
    layer, variables = made(x)
    loss = lambda x: jnp.sum(layer.apply(variables, x, mutable=[STATS])[0] ** 2)
    assert jnp.all(jnp.isfinite(jax.grad(loss)(x)))


def test_networks_have_it_by_name():
    x = draws(6, 4, 16, 16, 1)
    network = models.Conv4(width=4, norm="renorm")
    variables = network.init(jax.random.key(0), x)
    names = {
        jax.tree_util.keystr(p[-1:]) for p, _ in jax.tree.leaves_with_path(variables[STATS])
    }
    assert names == {"['mean']", "['square']"}
    y, _ = network.apply(variables, x, train=True, mutable=[STATS])
    assert y.shape == (4, 4)
    assert y.dtype == jnp.float32
    half = network.apply(variables, x.astype(jnp.bfloat16), train=False)
    assert jnp.all(jnp.isfinite(half))


ROWS = jax.random.normal(jax.random.key(7), (6, 3))
EXAMPLES = ml.Examples.of(ROWS, np.arange(6) % 2)
TASK = ml.Task(support=EXAMPLES, query=EXAMPLES)


def maml(norm):
    network = models.MLP(2, widths=(4, 4), norm="renorm")
    inner = optax.sgd(0.1)
    return ml.maml(ml.from_linen(network), ml.losses.cross_entropy, inner, norm=norm)


@pytest.mark.parametrize("norm", ["support", "batch"])
def test_policies_that_learn_no_averages_are_refused(norm):
    with pytest.raises(ValueError, match=r"running average batch_stats/.*'running'"):
        maml(norm).init(jax.random.key(0), TASK)


def test_one_layer_is_refused_too():
    """Its averages are averages, and so far they would do; but training reads them."""
    network = ml.models.MLP(2, widths=(4,), norm="renorm")
    learner = ml.maml(ml.from_linen(network), ml.losses.cross_entropy, optax.sgd(0.1))
    with pytest.raises(ValueError, match="reads the running average"):
        learner.init(jax.random.key(0), TASK)


def test_an_inner_loop_takes_the_policy_of_averages():
    learner = maml("running")
    variables = learner.init(jax.random.key(0), TASK)
    tasks = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], TASK)
    found = jax.jit(learner.estimate)(variables, tasks, key=jax.random.key(1))
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), variables.state, found.state)
    assert all(jax.tree.leaves(moved))
    adapted = learner.adapt(variables, TASK.support)
    together = learner.predict(adapted, ROWS)
    alone = learner.predict(adapted, ROWS[:1])
    np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["support", "batch"])
def test_learners_that_make_their_state_themselves_refuse_it_too(norm):
    network = ml.from_linen(models.MLP(None, widths=(4,), norm="renorm"))
    inner = {"loss_fn": ml.losses.cross_entropy, "num_steps": 1, "norm": norm}
    learner = ml.fine_tune(network, opt=optax.sgd(0.1), num_classes=4, num_ways=2, **inner)
    with pytest.raises(ValueError, match="reads the running average"):
        learner.init(jax.random.key(0), TASK)


def test_an_embedder_has_its_averages_only():
    network = ml.from_linen(models.MLP(None, widths=(4,), norm="renorm"))
    learner = ml.protonet(network, num_ways=2, norm="batch")
    with pytest.raises(ValueError, match="reads the running average"):
        learner.adapt(learner.init(jax.random.key(0), TASK), EXAMPLES)


@pytest.mark.parametrize(
    ("kind", "policy", "message"),
    [
        ("renorm", "support", "normalises by the batch at hand"),
        ("renorm", "batch", "normalises by the batch at hand"),
        ("group", "running", "read by app.norm batch"),
    ],
)
def test_images_refuse_a_policy_that_their_network_does_not_have(kind, policy, message):
    learner = apps.learners.MAML(inner_opt=apps.sgd(0.1), norm=policy)
    with pytest.raises(ValueError, match=message):
        apps.FewShotImages(norm=kind).check(learner)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum is 1.0; expected 0 or more and below 1"),
        ({"momentum": -1}, "momentum is -1"),
        ({"epsilon": 0.0}, "epsilon is 0.0; expected more than 0"),
        ({"r_max": 0.5}, "r_max is 0.5; expected 1 or more"),
        ({"d_max": float("nan")}, "d_max is nan; expected 0 or more"),
    ],
)
def test_attributes_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchRenorm(**options).init(jax.random.key(0), jnp.ones((3, 2)))


def test_whole_numbers_are_normalised_as_floats():
    x = jnp.array([[1, 2], [3, 5], [8, 9]])
    layer, variables = made(x)
    y, _ = layer.apply(variables, x, mutable=[STATS])
    wanted, _ = layer.apply(variables, x.astype(jnp.float32), mutable=[STATS])
    np.testing.assert_array_equal(y, wanted)
    assert y.dtype == jnp.float32


def test_averages_far_from_zero_bound_what_they_give():
    """Of a mean of 1e4 and a deviation of 1 a difference of squares keeps no digit."""
    x = 1e4 + jax.random.normal(jax.random.key(8), (64, 2))
    layer, variables = made(x)
    variables[STATS] = {"mean": x.mean(0), "square": jnp.square(x).mean(0)}
    y = layer.apply(variables, x, use_running_average=True)
    assert jnp.max(jnp.abs(y)) < 1


def test_variances_of_the_batch_keep_their_digits():
    x = 1e4 + jax.random.normal(jax.random.key(8), (64, 2))
    layer, variables = made(x)
    variables["params"] = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    variables[STATS] = {"mean": x.mean(0), "square": jnp.square(x).mean(0)}
    y, _ = layer.apply(variables, x, mutable=[STATS])
    np.testing.assert_allclose(y.std(0), 1 / 3, rtol=1e-3)  # the limit of r


def test_averages_that_rounding_has_crossed_are_finite():
    x = draws(9, 8, 2)
    layer, variables = made(x)
    variables[STATS] = {"mean": jnp.full(2, 3.0), "square": jnp.full(2, 8.99)}
    for still in (True, False):
        y, _ = layer.apply(variables, x, use_running_average=still, mutable=[STATS])
        assert jnp.all(jnp.isfinite(y))


def test_half_precision_is_computed_in_full():
    x = draws(10, 256, 2, mean=100.0).astype(jnp.bfloat16)
    layer, variables = made(x)
    half = layer.apply(variables, x, mutable=[STATS])[0]
    full = layer.apply(variables, x.astype(jnp.float32), mutable=[STATS])[0]
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, full)
