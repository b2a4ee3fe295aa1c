"""Unrolled and truncated hypergradients against descent that is written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import close

import metalearn as ml

hg = ml.hypergradient
pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(1)
STEPS, N, D = 3, 5, 4
X, Y = RNG.normal(size=(STEPS, N, D)), RNG.normal(size=(STEPS, N))
PARAMS = {"w": RNG.normal(size=D), "b": np.zeros(())}
HPARAMS = {"scale": np.full(D, 0.3), "shift": np.array(0.5)}
RATE, MOMENTUM = 0.1, 0.9


def inner_loss(params, hparams, step):
    """A batch for each step, a learned regulariser, and the step as second result."""
    x, y = jnp.asarray(X)[step], jnp.asarray(Y)[step]
    outputs = jnp.tanh(x @ params["w"] + params["b"] + hparams["shift"])
    loss = jnp.mean((outputs - y) ** 2) + jnp.sum(hparams["scale"] * params["w"] ** 2)
    return loss, {"step": step}


def outer_loss(params, hparams):
    value = jnp.sum(params["w"] ** 3) + params["b"] + 0.1 * hparams["shift"] ** 2
    return value, jnp.sum(params["w"])


def optimiser():
    return optax.sgd(RATE, momentum=MOMENTUM)


def by_hand(hparams, params, trace, first, last):
    for step in range(first, last):
        grads = jax.grad(inner_loss, has_aux=True)(params, hparams, step)[0]
        trace = jax.tree.map(lambda t, g: MOMENTUM * t + g, trace, grads)
        params = jax.tree.map(lambda p, t: p - RATE * t, params, trace)
    return params, trace


TRACE = jax.tree.map(lambda p: 0.2 * np.ones_like(p), PARAMS)


def of(**options):
    state = optimiser().init(PARAMS)
    state = (state[0]._replace(trace=TRACE), *state[1:])
    return lambda hparams: hg.unrolled(
        inner_loss,
        outer_loss,
        PARAMS,
        hparams,
        optimiser(),
        num_steps=STEPS,
        opt_state=state,
        **options,
    )


@pytest.mark.parametrize("truncate", [None, 2])
def test_gradient_is_that_of_the_last_steps_from_a_constant(truncate):
    before = STEPS - (truncate or STEPS)

    def reference(hparams):
        start = jax.lax.stop_gradient(by_hand(hparams, PARAMS, TRACE, 0, before))
        params, trace = by_hand(hparams, *start, before, STEPS)
        value, total = outer_loss(params, hparams)
        return value, (params, trace, total)

    @jax.jit
    def both(hparams):
        exact = jax.value_and_grad(reference, has_aux=True)(hparams)
        last = exact[0][1][0]
        return (
            of(truncate=truncate)(hparams),
            exact,
            jax.grad(inner_loss, has_aux=True)(last, hparams, STEPS - 1)[0],
        )

    found, ((value, (params, trace, total)), gradient), slope = both(HPARAMS)
    close(found.value, value)
    close(found.gradient, gradient)
    close(found.state[0], params)
    close(found.state[1][0].trace, trace)
    close(found.outer_aux, total)
    assert found.inner_aux["step"] == STEPS - 1
    leaves = jax.tree.leaves(slope)
    close(found.residual, np.sqrt(sum(np.sum(leaf**2) for leaf in leaves)))


def test_ways_of_storing_agree_and_the_derivative_of_the_value_is_truncated_too():
    @jax.jit
    def both(hparams):
        mixed = of(truncate=2, differentiation="mixed")(hparams)
        return mixed.gradient, jax.grad(lambda h: of(truncate=2)(h).value)(hparams)

    close(*both(HPARAMS))


def test_training_goes_on_from_the_state_with_a_learned_rate():
    """One step of gradient descent has `dL/drate = -grad L . grad l`."""

    @jax.jit
    def step(rate, params, opt_state):
        return hg.unrolled(
            lambda params, rate, step: jnp.sum((params - 1.0) ** 2),
            lambda params, rate: jnp.sum(params**3),
            params,
            rate,
            lambda rate: optax.sgd(rate, momentum=MOMENTUM),
            num_steps=1,
            opt_state=opt_state,
        )

    rate, params = np.array(0.1), np.array([3.0, -1.0])
    state, trace = optax.sgd(rate, momentum=MOMENTUM).init(params), np.zeros(2)
    for _ in range(2):
        found = step(rate, params, state)
        trace = MOMENTUM * trace + 2 * (params - 1)
        params = params - rate * trace
        close(found.state[0], params)
        close(found.gradient, -3 * params**2 @ trace)
        params, state = found.state


SGD = optax.sgd(0.1)
MISTAKES = {
    "num_steps is 0": dict(num_steps=0),
    "truncate is 4; expected at most num_steps, which is 3": dict(truncate=4),
    "truncate is 0": dict(truncate=0),
    "differentiation is 'first_order'": dict(differentiation="first_order"),
    "opt_state has the structure": dict(opt_state=()),
    "opt_state at 0/trace/b is .*\\[2\\]; expected": dict(
        opt_state=optimiser().init({"w": np.zeros(D), "b": np.zeros(2)})
    ),
    "inner_loss returns an array \\[4\\]": dict(inner_loss=lambda p, h, step: p["w"]),
    "inner_loss returns the dtype int": dict(inner_loss=lambda p, h, step: step),
    "outer_loss is a float": dict(outer_loss=0.1),
    "no finite derivative": dict(inner_opt=optax.adam(0.1), opt_state=None),
    "inner_opt is a float": dict(inner_opt=0.1),
    "hparams at shift is of the dtype int": dict(hparams={"shift": np.array(1)}),
    "params at w is of the dtype str": dict(params={"w": "none"}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message):
    given = dict(
        inner_loss=inner_loss,
        outer_loss=outer_loss,
        params=PARAMS,
        hparams=HPARAMS,
        inner_opt=optimiser(),
        num_steps=STEPS,
    )
    with pytest.raises((TypeError, ValueError), match=message):
        hg.unrolled(**{**given, **MISTAKES[message]})
