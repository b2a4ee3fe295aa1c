"""The check that an inner optimiser can be differentiated: what it finds, what it costs."""

import jax
import jax.numpy as jnp
import optax
import pytest
from tiny import blobs, plain

import metalearn as ml
from metalearn.core import checks


def of_update(change):
    """An optimiser without a state."""
    return optax.GradientTransformation(
        lambda params: (), lambda grads, state, params=None: (change(grads), state)
    )


def each(fn):
    return lambda grads: jax.tree.map(fn, grads)


OPTIMISERS = {
    "sgd": (lambda: optax.sgd(0.1), True),
    "nesterov": (lambda: optax.sgd(0.1, momentum=0.9, nesterov=True), True),
    "clip": (lambda: optax.chain(optax.clip(1.0), optax.sgd(0.1)), True),
    "decay": (lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), True),
    "norm": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        True,  # of the sample, which is not zero everywhere
    ),
    "adam": (lambda: optax.adam(0.1), False),
    "adam with a root": (lambda: optax.adam(0.1, eps_root=1e-8), True),
    "square root": (lambda: of_update(each(lambda g: jnp.sqrt(jnp.abs(g)))), False),
    "inside a call": (lambda: of_update(each(jax.jit(lambda g: jnp.abs(g) ** 0.5))), False),
    "another structure": (lambda: of_update(lambda grads: grads["w"]), None),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_finite_slopes_at_a_zero_gradient(name):
    make, expected = OPTIMISERS[name]
    found = checks.is_differentiable(make())
    assert found is expected


def test_second_order_learners_refuse_what_has_no_slope():
    ml.maml(plain(), ml.losses.cross_entropy, optax.sgd(0.1))
    for name in ("adam", "square root"):
        with pytest.raises(ValueError, match="eps_root"):
            ml.maml(plain(), ml.losses.cross_entropy, OPTIMISERS[name][0]())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_answer_is_kept_for_each_precision(dtype):
    """Where 32 bits have no slope any more, 64 do."""
    tiny = of_update(each(lambda g: jnp.sqrt(g**2 + jnp.asarray(1e-60, g.dtype))))
    assert checks.is_differentiable(tiny) is False
    with jax.enable_x64(dtype == jnp.float64):
        assert checks.is_differentiable(tiny) is (dtype == jnp.float64)


def test_learners_are_made_without_compiling(count_compilations):
    key, adam = jax.random.key(0), optax.adam(0.1, eps_root=1e-8)
    task = blobs(key)
    count_compilations()
    ml.maml(plain(), ml.losses.cross_entropy, optax.sgd(0.1, momentum=0.9))
    assert count_compilations() == 0
    ml.maml(plain(), ml.losses.cross_entropy, adam)
    assert count_compilations() > 0  # the slopes of Adam have to be computed, once
    learner = ml.maml(plain(), ml.losses.cross_entropy, adam)
    jax.eval_shape(learner.init, key, task)
    assert count_compilations() == 0
