"""Networks against NumPy and against finite differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    INNER,
    MODES,
    as_list,
    close,
    differs,
    grads_of,
    model_grads,
    network,
    numpy_tasks,
    of,
    wide_blobs,
)
from reference import steps as reference
from tiny import WAYS, plain

import metalearn as ml

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("first_order", [False, True])
def test_maml_step_equals_numpy(first_order):
    learner = ml.maml(
        plain(),
        CE,
        optax.sgd(INNER),
        num_steps=3,
        differentiation=MODES[first_order],
        task_chunk=9,
    )
    params = network()
    found = as_list(model_grads(learner, params, wide_blobs()).grads)
    arguments = (as_list(params), numpy_tasks(), INNER, 3)
    close(found, reference.maml_gradient(*arguments, first_order), rtol=1e-6)
    assert differs(found, reference.maml_gradient(*arguments, not first_order))


def test_reptile_step_equals_numpy():
    learner = ml.reptile(plain(), CE, optax.sgd(INNER), num_steps=3, task_chunk=9)
    params = network()
    grads = grads_of(learner, params, wide_blobs()).grads
    after = jax.tree.map(lambda p, g: p - 0.7 * g, params, grads)
    close(
        as_list(after),
        reference.reptile_step(as_list(params), numpy_tasks(), INNER, 3, epsilon=0.7),
    )


def embedding():
    return ml.from_apply_fn(
        lambda key, x: jax.random.normal(key, (x.shape[-1], 5)),
        lambda params, x: jnp.tanh(x @ params),
    )


def test_protonet_step_equals_numpy():
    learner = ml.protonet(embedding(), num_ways=WAYS, task_chunk=9)
    w = np.random.default_rng(0).normal(size=(4, 5))
    found = grads_of(learner, w, wide_blobs()).grads
    close(found, reference.protonet_gradient(w, numpy_tasks(), WAYS))


# -- Finite differences -------------------------------------------------------------


def _adam_maml():
    opt = optax.adam(0.05, eps_root=1e-4)
    return ml.maml(plain(), CE, opt, num_steps=2, task_chunk=9), {}


def _learned(learner):
    inner = jax.tree.map(lambda p: jnp.full_like(p, 0.2), network())
    return learner, {"inner": inner}


OBJECTIVES = {
    "maml": lambda: (ml.maml(plain(), CE, optax.sgd(INNER), num_steps=3, task_chunk=9), {}),
    "maml_adam": _adam_maml,
    "anil": lambda: (ml.anil(plain(), CE, optax.sgd(INNER), num_steps=2, task_chunk=9), {}),
    "boil": lambda: (ml.boil(plain(), CE, optax.sgd(INNER), task_chunk=9), {}),
    "meta_sgd": lambda: _learned(ml.meta_sgd(plain(), CE, num_steps=2, task_chunk=9)),
    "fine_tune": lambda: (
        ml.fine_tune(plain(), CE, optax.sgd(INNER), num_steps=2, task_chunk=9),
        {},
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_meta_gradient_equals_finite_differences(name):
    learner, inner = OBJECTIVES[name]()
    start = of(network(), **inner)
    if name == "fine_tune":
        start = ml.Variables(params=network(), state={})
    params = start.params
    run = jax.jit(lambda v, t: learner.estimate(v, t, key=jax.random.key(0)))

    def at(params):
        found = run(ml.Variables(params=params, state=start.state), wide_blobs())
        losses = found.metrics.get("query/loss", found.metrics.get("joint/loss"))
        return losses.mean(), found.grads

    grads = at(params)[1]
    leaves, treedef = jax.tree.flatten(params)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = treedef.unflatten(
            [jnp.asarray(rng.normal(size=p.shape)) for p in leaves]
        )
        moved = [
            at(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction))[0]
            for s in (1e-5, -1e-5)
        ]
        slope = float(moved[0] - moved[1]) / 2e-5
        products = jax.tree.map(lambda g, d: jnp.vdot(g, d), grads, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=2e-6)


FLAT, IMAGES = jnp.zeros((2, 3)), jnp.zeros((2, 28, 28, 1))
SIZES = {
    "no outputs": (lambda: ml.models.Conv4(0), IMAGES, "num_outputs is 0"),
    "negative outputs": (lambda: ml.models.MLP(-1), FLAT, "num_outputs is -1"),
    "text": (lambda: ml.models.Conv4("5"), IMAGES, "num_outputs is '5'; expected an int"),
    "half": (lambda: ml.models.MLP(2.5), FLAT, "num_outputs is 2.5"),
    "no channels": (lambda: ml.models.Conv4(5, width=0), IMAGES, "width is 0"),
    "one width": (lambda: ml.models.MLP(widths=40), FLAT, r"widths is 40; .*\(40, 40\)"),
    "widths of text": (lambda: ml.models.MLP(widths="40"), FLAT, "widths is '40'"),
    "a width of none": (
        lambda: ml.models.MLP(widths=(4, 0)),
        FLAT,
        "a width of widths is 0",
    ),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_of_networks_are_counts(kind):
    make, x, words = SIZES[kind]
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(make().init, jax.random.key(0), x)
