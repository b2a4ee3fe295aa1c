"""Meta-Weight-Net: its derivative, its own step before the model's, what it learns."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import plain

import metalearn as ml

CE = ml.losses.cross_entropy
x64 = pytest.mark.usefixtures("x64")
KEY, RATE, V_RATE, DECAY = jax.random.key(0), 0.7, 0.05, 0.01


def _task(noisy=6, clean=5):
    rng = np.random.default_rng(0)

    def part(num):
        y = jnp.asarray(rng.integers(0, 3, num), jnp.int32)
        return ml.Examples.of(jnp.asarray(rng.normal(size=(num, 4))), y)

    return ml.Task(support=part(noisy), query=part(clean))


@functools.cache  # it keeps what was compiled for it
def _learner(**options):
    options = {"rate": RATE, "weights_rate": V_RATE, "weight_decay": DECAY, **options}
    return ml.meta_weight_net(plain(), CE, hidden=3, **options)


def _estimate(learner, variables, task):
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    return jax.jit(learner.estimate)(variables, batch, key=KEY)


def _losses(params, part):
    outputs, _ = plain().apply(ml.Variables(params=params, state={}), part.x)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, part.y)


def _net_by_hand(net, losses):
    """In NumPy, from the equation."""
    hidden = np.maximum(np.asarray(losses)[:, None] @ net["in"]["w"] + net["in"]["b"], 0)
    return 1 / (1 + np.exp(-(hidden @ net["out"]["w"] + net["out"]["b"])[:, 0]))


def _close(found, expected, rtol=1e-7, atol=1e-10):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected
    )


@x64
def test_the_gradient_of_the_weight_network_is_that_through_the_virtual_step():
    """By central differences, and by the formula with products of gradients.

    Adam's first moment after the first step is a tenth of the gradient.
    """
    task, learner = _task(), _learner(weight_decay=0.0)
    variables = learner.init(jax.random.key(1), task)
    params = variables.params["model"]
    net = jax.tree.map(np.asarray, variables.state["weights"])
    rows = jax.jit(jax.jacrev(lambda p: _losses(p, task.support)))(params)
    each = np.asarray(_losses(params, task.support))
    clean = jax.jit(lambda p: jnp.mean(_losses(p, task.query)))

    def outer(net):
        weights = _net_by_hand(net, each) / len(each)
        moved = jax.tree.map(
            lambda p, leaf: p - RATE * np.tensordot(weights, leaf, 1), params, rows
        )
        return float(clean(moved)), moved

    found = _estimate(learner, variables, task)
    moments = [s for s in jax.tree.leaves(found.state["moments"]) if s.ndim]
    first = jax.tree.unflatten(jax.tree.structure(net), moments[: len(moments) // 2])
    first = jax.tree.map(lambda leaf: leaf / 0.1, first)
    step = 1e-6
    for layer in ("in", "out"):
        for name in ("w", "b"):
            expected = np.zeros_like(net[layer][name])
            for place in np.ndindex(expected.shape):
                values = []
                for sign in (1, -1):
                    copy = jax.tree.map(np.copy, net)
                    copy[layer][name][place] += sign * step
                    values.append(outer(copy)[0])
                expected[place] = (values[0] - values[1]) / (2 * step)
            np.testing.assert_allclose(first[layer][name], expected, rtol=1e-6, atol=1e-9)
    # -(rate / n) sum_i <grad L(virtual), grad l_i> dV(l_i)/dTheta, of the output's bias.
    slope = jax.jit(jax.grad(clean))(outer(net)[1])
    products = sum(
        np.tensordot(leaf.reshape(6, -1), s.reshape(-1), 1)
        for leaf, s in zip(jax.tree.leaves(rows), jax.tree.leaves(slope))
    )
    v = _net_by_hand(net, each)
    by_formula = -RATE / 6 * (products * v * (1 - v)).sum()
    np.testing.assert_allclose(first["out"]["b"][0], by_formula, rtol=1e-8)


@x64
def test_the_model_steps_with_the_weight_network_as_it_is_after_its_own_step():
    task, learner = _task(), _learner()
    variables = learner.init(jax.random.key(1), task)
    params, old = variables.params["model"], variables.state["weights"]
    found = _estimate(learner, variables, task)
    rows = jax.jit(jax.jacrev(lambda p: _losses(p, task.support)))(params)
    each = _losses(params, task.support)
    apart = []
    for net in (found.state["weights"], old):
        weights = _net_by_hand(jax.tree.map(np.asarray, net), each) / 6
        expected = jax.tree.map(lambda leaf, w=weights: np.tensordot(w, leaf, 1), rows)
        apart.append(expected)
    _close(found.grads["model"], apart[0])
    body = found.grads["model"]["body"]["w"]
    assert np.abs(body - apart[1]["body"]["w"]).max() > 1e-4


@x64
def test_the_weight_network_moves_by_adam_with_decay():
    """Two steps at one model, against Adam by hand."""
    task, learner = _task(), _learner()
    variables = learner.init(jax.random.key(1), task)
    start = jax.tree.leaves(variables.state["weights"])
    states = [variables.state]
    for _ in range(2):
        at = ml.Variables(params=variables.params, state=states[-1])
        states.append(_estimate(learner, at, task).state)
    bare = _learner(weight_decay=0.0)
    fresh = bare.init(jax.random.key(1), task).state["moments"]
    m, v = [0 * p for p in start], [0 * p for p in start]
    p = start
    for t, before in enumerate(states[:-1], 1):
        # The gradient at these weights, from the first moment of an optimiser without past.
        at = ml.Variables(params=variables.params, state={**before, "moments": fresh})
        moments = _estimate(bare, at, task).state["moments"]
        moments = [s for s in jax.tree.leaves(moments) if s.ndim]
        grads = [10 * g + DECAY * w for g, w in zip(moments[: len(p)], p)]
        m = [0.9 * a + 0.1 * g for a, g in zip(m, grads)]
        v = [0.999 * a + 0.001 * g**2 for a, g in zip(v, grads)]
        p = [
            w - V_RATE * (a / (1 - 0.9**t)) / (np.sqrt(b / (1 - 0.999**t)) + 1e-8)
            for w, a, b in zip(p, m, v)
        ]
    _close(jax.tree.leaves(states[-1]["weights"]), p, rtol=1e-6)


@x64
def test_a_constant_weight_is_ordinary_training_at_another_rate():
    """A hidden layer that is off has no derivative, so that V stays constant."""
    task, learner = _task(), _learner()
    variables = learner.init(jax.random.key(1), task)
    net = variables.state["weights"]
    dead = {**net["in"], "w": jnp.zeros((1, 3)), "b": jnp.full(3, -1.0)}
    state = {**variables.state, "weights": {**net, "in": dead}}
    variables = ml.Variables(params=variables.params, state=state)
    found = _estimate(learner, variables, task)
    moved = found.state["weights"]["out"]["b"][0]
    assert abs(float(moved)) == pytest.approx(V_RATE, rel=1e-4)
    plain_step = jax.jit(jax.grad(lambda p: jnp.mean(_losses(p, task.support))))
    scale = jax.nn.sigmoid(moved)
    expected = jax.tree.map(lambda g: scale * g, plain_step(variables.params["model"]))
    _close(found.grads["model"], expected)


def test_masked_examples_do_not_count():
    task, learner = _task(), _learner()
    variables = learner.init(jax.random.key(1), task)
    part = task.support
    x = jnp.concatenate([part.x, jnp.full((3, 4), 1e3)])
    y = jnp.concatenate([part.y, jnp.zeros(3, jnp.int32)])
    mask = jnp.concatenate([part.mask, jnp.zeros(3, bool)])
    wide = ml.Task(support=ml.Examples.of(x, y, mask), query=task.query)
    found, expected = (_estimate(learner, variables, each) for each in (wide, task))
    _close(found, expected, rtol=1e-3, atol=1e-5)


def test_after_training_on_flipped_labels_large_losses_weigh_less():
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(3, 4))
    y = rng.integers(0, 3, 400)
    x = jnp.asarray(centres[y] + 0.5 * rng.normal(size=(400, 4)), jnp.float32)
    noisy = np.where(rng.random(400) < 0.4, rng.integers(0, 3, 400), y)
    y, noisy = jnp.asarray(y, jnp.int32), jnp.asarray(noisy, jnp.int32)

    def sample(key):
        train, clean = jax.random.split(key)
        train = jax.random.randint(train, (40,), 40, 400)
        clean = jax.random.randint(clean, (20,), 0, 40)
        return ml.Task(
            support=ml.Examples.of(x[train], noisy[train]),
            query=ml.Examples.of(x[clean], y[clean]),
        )

    learner = ml.meta_weight_net(plain(), CE, hidden=10, rate=0.3, weights_rate=0.01)
    found = ml.fit(
        ml.meta_trainer(learner, optax.sgd(0.3)),
        sample,
        num_steps=300,
        tasks_per_step=1,
        key=KEY,
        log_every=300,
    )
    losses = jnp.asarray([0.05, 1.0, 3.0])
    weights = ml.loss_weights(found.variables.state["weights"], losses)
    assert weights[0] > weights[1] + 0.1 and weights[1] > weights[2] + 0.1


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("rate", 0.0, "rate is 0.0; expected a finite number above 0"),
        ("weights_rate", -1.0, "weights_rate is -1.0"),
        ("weight_decay", -0.1, "weight_decay is -0.1"),
    ],
)
def test_settings_are_checked(option, value, said):
    with pytest.raises(ValueError, match=said):
        _learner(**{option: value})
