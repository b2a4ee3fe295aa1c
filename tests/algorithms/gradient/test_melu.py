"""MeLU by finite differences and by its parts; what a rating would move."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import compiled

import metalearn as ml

RATE, STEPS = 0.1, 2
x64 = pytest.mark.usefixtures("x64")


def _model():
    """`w . tanh(embed[code]) + b`: one embedding for a code, one layer that decides."""

    def init(key, x):
        k_embed, k_head = jax.random.split(key)
        return {
            "embed": jax.random.normal(k_embed, (4, 3)),
            "head": jax.random.normal(k_head, (3,)),
            "bias": jnp.full((1,), 0.3),
        }

    def apply(params, x):
        outputs = jnp.tanh(params["embed"])[x] @ params["head"]
        return outputs[:, None] + params["bias"][None]

    return ml.from_apply_fn(init, apply)


def _task():
    rng = np.random.default_rng(0)

    def part(codes):
        y = jnp.asarray(rng.normal(size=(len(codes), 1)))
        return ml.Examples.of(jnp.asarray(codes), y)

    return ml.Task(support=part([0, 1, 1, 2]), query=part([1, 3, 0]))


def _learner(**options):
    options = {"num_steps": STEPS, "inner_opt": optax.sgd(RATE), **options}
    return compiled(ml.melu(_model(), ml.losses.mse, **options))


def _by_hand(params, task, steps=STEPS, rate=RATE):
    """Query loss after steps of the head alone, in NumPy."""
    features, head, bias = np.tanh(params["embed"]), params["head"], params["bias"]
    x, y = np.asarray(task.support.x), np.asarray(task.support.y)[:, 0]
    for _ in range(steps):
        error = features[x] @ head + bias - y
        head = head - rate * 2 * features[x].T @ error / len(y)
        bias = bias - rate * 2 * error.mean()
    x, y = np.asarray(task.query.x), np.asarray(task.query.y)[:, 0]
    return np.mean((features[x] @ head + bias - y) ** 2)


@x64
def test_the_outer_gradient_is_of_second_order():
    """Embeddings change the inner gradient too, which first order leaves out."""
    task, learner = _task(), _learner()
    variables = learner.init(jax.random.key(1), task)
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    grads = learner.estimate(variables, batch, key=jax.random.key(0)).grads["model"]
    params = jax.tree.map(np.asarray, variables.params["model"])
    step = 1e-6
    for name, leaf in params.items():
        expected = np.zeros_like(leaf)
        for place in np.ndindex(leaf.shape):
            moved = []
            for sign in (1, -1):
                copy = {**params, name: leaf.copy()}
                copy[name][place] += sign * step
                moved.append(_by_hand(copy, task))
            expected[place] = (moved[0] - moved[1]) / (2 * step)
        np.testing.assert_allclose(grads[name], expected, rtol=1e-6, atol=1e-8)
    first = _learner(differentiation="first_order")
    cut = first.estimate(variables, batch, key=jax.random.key(0)).grads["model"]
    assert np.abs(cut["embed"] - grads["embed"]).max() > 1e-2


def test_embeddings_stay_and_the_rest_adapts():
    task, learner = _task(), _learner()
    variables = learner.init(jax.random.key(1), task)
    before = variables.params["model"]
    after = learner.adapt(variables, task.support).params
    np.testing.assert_array_equal(after["embed"], before["embed"])
    assert (after["head"] != before["head"]).all()


@x64
def test_without_a_step_it_is_the_model_of_all_users():
    task, still = _task(), _learner(num_steps=0)
    variables = still.init(jax.random.key(1), task)
    adapted = still.adapt(variables, task.support)
    outputs = still.predict(adapted, task.query.x)
    params = variables.params["model"]
    plain, _ = _model().apply(ml.Variables(params=params, state={}), task.query.x)
    np.testing.assert_array_equal(outputs, plain)
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    grads = still.estimate(variables, batch, key=jax.random.key(0)).grads["model"]

    def loss(params):
        outputs, _ = _model().apply(ml.Variables(params=params, state={}), task.query.x)
        return ml.losses.mse(outputs, task.query)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10),
        grads,
        jax.jit(jax.grad(loss))(params),
    )


@pytest.mark.parametrize(
    ("shared", "said"),
    [("nowhere", "no parameter path"), ("[a-z]", "every parameter path")],
)
def test_what_is_shared_is_some_and_not_all(shared, said):
    with pytest.raises(ValueError, match=said):
        _learner(shared=shared).init(jax.random.key(0), _task())


# -- Evidence --------------------------------------------------------------------------


@x64
def test_evidence_is_the_gradient_of_the_unit_loss():
    """Of `e^2 / e^2` with a constant below: `2 |(feature, 1)| / |e|`, one norm of both."""
    task, model = _task(), _model()
    variables = model.init(jax.random.key(1), task.support.x)
    features = np.tanh(np.asarray(variables.params["embed"]))[np.asarray(task.support.x)]
    head = np.asarray(variables.params["head"])
    error = features @ head + 0.3 - np.asarray(task.support.y)[:, 0]
    expected = 2 * np.sqrt(np.square(features).sum(1) + 1) / np.abs(error)
    found = ml.evidence(model, variables, task.support, loss_fn=ml.losses.mse)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    # The scale of the loss does not count.
    scaled = lambda outputs, examples: 7.0 * ml.losses.mse(outputs, examples)
    again = ml.evidence(model, variables, task.support, loss_fn=scaled)
    np.testing.assert_allclose(again, found, rtol=1e-10)


def test_evidence_of_masked_rows_and_of_exact_predictions_is_0():
    task, model = _task(), _model()
    variables = model.init(jax.random.key(1), task.support.x)
    outputs, _ = model.apply(variables, task.support.x)
    y = task.support.y.at[0].set(outputs[0])
    mask = jnp.asarray([True, True, False, True])
    examples = ml.Examples.of(task.support.x, y, mask)
    found = np.asarray(ml.evidence(model, variables, examples, loss_fn=ml.losses.mse))
    assert found[0] == found[2] == 0 and (found[[1, 3]] > 0).all()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_evidence_does_not_depend_on_the_scale_of_the_loss_in_float32(scale):
    task, model = _task(), _model()
    variables = model.init(jax.random.key(1), task.support.x)
    scaled = lambda outputs, examples: scale * ml.losses.mse(outputs, examples)
    plain = ml.evidence(model, variables, task.support, loss_fn=ml.losses.mse)
    found = ml.evidence(model, variables, task.support, loss_fn=scaled)
    np.testing.assert_allclose(found, plain, rtol=1e-4)


def test_evidence_of_a_network_that_is_not_finite_is_no_number():
    task, model = _task(), _model()
    variables = model.init(jax.random.key(1), task.support.x)
    broken = {**variables.params, "head": jnp.full((3,), jnp.nan)}
    broken = ml.Variables(params=broken, state={})
    assert np.isnan(ml.evidence(model, broken, task.support, loss_fn=ml.losses.mse)).all()


def test_evidence_needs_some_that_is_shared():
    task, model = _task(), _model()
    variables = model.init(jax.random.key(1), task.support.x)
    for shared in ("nowhere", ".*"):
        with pytest.raises(ValueError, match="parameter path"):
            ml.evidence(
                model, variables, task.support, loss_fn=ml.losses.mse, shared=shared
            )
