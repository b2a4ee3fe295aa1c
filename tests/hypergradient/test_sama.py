"""SAMA against Adam's derivative in closed form and the exact one-step hypergradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import close

import metalearn as ml

hg = ml.hypergradient
pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(3)
D, RATE, B1, B2, EPS = 5, 0.1, 0.9, 0.999, 1e-3
PARAMS, G, C = RNG.normal(size=(3, D))
PAST = RNG.normal(size=(3, D)) * np.array([0.01, 0.1, 1.0, 3.0, 10.0])


def adam(**options):
    return optax.adam(RATE, B1, B2, eps=EPS, **options)


def state_of(opt):
    """A state with second moments of very different sizes."""
    state = opt.init(PARAMS)
    for grads in PAST:
        _, state = opt.update(grads, state, PARAMS)
    return state


def adam_by_hand(g):
    """Adam's step `u` after the past gradients, and `du/dg` in closed form."""
    m = w = np.zeros(D)
    for grads in [*PAST, g]:
        m, w = B1 * m + (1 - B1) * grads, B2 * w + (1 - B2) * grads**2
    one, two = 1 - B1 ** (len(PAST) + 1), 1 - B2 ** (len(PAST) + 1)
    root = np.sqrt(w / two)
    slope = (1 - B1) / (one * (root + EPS))
    slope -= m / one * (1 - B2) * g / (two * root * (root + EPS) ** 2)
    return RATE * m / one / (root + EPS), RATE * slope


def linear_loss(params, grads):
    return jnp.dot(params, grads)  # whose gradient is the hyper-parameter


def test_derivative_of_an_update_is_adams_closed_form_and_is_transposed():
    """With a clip by the norm in front the Jacobian is no longer its own transpose."""
    clipped = optax.chain(optax.clip_by_global_norm(0.5), adam())

    def run(opt, g):
        return hg.sama(
            linear_loss, lambda p, h: jnp.dot(C, p), PARAMS, g, opt, opt_state=state_of(opt)
        )

    @jax.jit
    def both(g):
        update = lambda g: clipped.update(g, state_of(clipped), PARAMS)[0]
        return run(adam(), g), run(clipped, g).gradient, jax.jacrev(update)(g)

    found, of_clipped, jacobian = both(G)
    step, slope = adam_by_hand(G)
    close(found.state[0], PARAMS - step)
    close(found.gradient, -slope * C)
    apart = 1e-5 * np.eye(D)
    ends = [[adam_by_hand(G + sign * row)[0] for row in apart] for sign in (1, -1)]
    close(np.diag(ends[0]) - np.diag(ends[1]), 2e-5 * slope, rtol=1e-6)
    close(found.residual, np.linalg.norm(G))
    close(of_clipped, C @ jacobian)
    assert np.abs(jacobian - jacobian.T).max() > 1e-3


MATRIX = RNG.normal(size=(8, D))


def quadratic(params, hparams):
    rows = jnp.asarray(MATRIX) @ params - 1.0
    return jnp.mean(jax.nn.sigmoid(hparams) * rows**2), {"rows": rows}


def curved(params, hparams):
    return jnp.mean(
        jax.nn.sigmoid(hparams) * jnp.tanh(jnp.asarray(MATRIX) @ params - 1) ** 2
    )


def outer_loss(params, hparams):
    return jnp.sum(jnp.sin(params)) + 0.1 * jnp.sum(hparams**2)


HPARAMS = RNG.normal(size=8)


def exact(inner_loss, opt, hparams):
    inner = lambda p, h, step: inner_loss(p, h)
    return hg.unrolled(
        inner, outer_loss, PARAMS, hparams, opt, num_steps=1, opt_state=state_of(opt)
    )


def estimate(inner_loss, opt, hparams, **options):
    return hg.sama(
        inner_loss, outer_loss, PARAMS, hparams, opt, opt_state=state_of(opt), **options
    )


def test_is_exact_for_quadratic_losses_and_gradient_descent_at_any_distance():
    opt = optax.sgd(RATE, momentum=0.9)

    @jax.jit
    def run(hparams):
        return exact(quadratic, opt, hparams), [
            estimate(quadratic, opt, hparams, alpha=alpha) for alpha in (1e-3, 1.0, 50.0)
        ]

    wanted, found = run(HPARAMS)
    for one in found:
        close(one.gradient, wanted.gradient, rtol=1e-8)
        close(one.state, wanted.state)  # the step is the optimiser's own
        close(one.value, wanted.value)
        assert one.inner_aux["rows"].shape == (8,)


def test_is_exact_for_adam_up_to_the_square_of_the_distance():
    """The direction that leaves the optimiser out (DARTS) is another one."""
    opt = adam(eps_root=1e-12)

    @jax.jit
    def run(hparams):
        near = [estimate(curved, opt, hparams, alpha=a) for a in (0.2, 0.1)]
        derivative = estimate(curved, opt, hparams, alpha=None)
        plain = estimate(curved, optax.sgd(RATE), hparams, alpha=None)
        return exact(curved, opt, hparams), near, derivative, plain

    wanted, near, derivative, plain = run(HPARAMS)
    close(derivative.gradient, wanted.gradient)
    far, close_by = (np.abs(one.gradient - wanted.gradient).max() for one in near)
    assert 3.5 < far / close_by < 4.5
    direct = 0.2 * HPARAMS
    one, other = wanted.gradient - direct, plain.gradient - direct
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert cosine < 0.99


def test_what_a_loss_holds_constant_stays_so_in_the_derivative():
    """Weights from losses that are stopped; a difference would see through the stop."""

    def weighted(params, hparams):
        each = (jnp.asarray(MATRIX) @ params - 1.0) ** 2
        return jnp.mean(jax.nn.sigmoid(hparams * jax.lax.stop_gradient(each)) * each)

    opt = optax.sgd(RATE)

    @jax.jit
    def run(hparams):
        return (
            exact(weighted, opt, hparams).gradient,
            estimate(weighted, opt, hparams, alpha=None).gradient,
            estimate(weighted, opt, hparams, alpha=1e-4).gradient,
        )

    wanted, derivative, difference = run(HPARAMS)
    close(derivative, wanted)
    assert np.abs(difference - wanted).max() > 1e-3


def test_zeros_in_gradients_and_in_the_outer_loss_make_no_nan():
    """Adam from a fresh state, with a parameter that the inner loss does not see."""
    opt = optax.adam(RATE)  # whose root has no derivative at 0

    def inner(params, hparams):
        return 0.5 * jnp.sum((params[:3] - hparams) ** 2)

    @jax.jit
    def run(scale):
        outer = lambda p, h: scale * jnp.sum(p) + jnp.sum(h)
        return hg.sama(inner, outer, PARAMS, G[:3], opt)

    found = run(1.0)
    # Adam's first step is the sign of the gradient, but for 1e-8 beside it.
    close(found.gradient, np.ones(3), rtol=1e-6)
    assert (found.gradient != 1).all()
    still = run(0.0)
    np.testing.assert_array_equal(still.gradient, np.ones(3))


def test_multitask_moves_the_state_against_the_outer_loss():
    opt = adam()

    @jax.jit
    def run(hparams):
        off = estimate(quadratic, opt, hparams, alpha=0.1)
        on = estimate(quadratic, opt, hparams, alpha=0.1, multitask=True)
        grads = jax.grad(quadratic, has_aux=True)(PARAMS, hparams)[0]
        updates, _ = opt.update(grads, state_of(opt), PARAMS)
        return off, on, optax.apply_updates(PARAMS, updates)

    off, on, plain = run(HPARAMS)
    np.testing.assert_array_equal(off.state[0], plain)
    close(np.linalg.norm(on.state[0] - plain), 0.1)
    assert outer_loss(on.state[0], HPARAMS) < off.value
    close(on.gradient, off.gradient)


MISTAKES = {
    "alpha is 0": dict(alpha=0),
    "multitask is set and alpha is None": dict(alpha=None, multitask=True),
    "inner_opt is a function": dict(inner_opt=lambda rate: optax.sgd(rate)),
    "opt_state has the structure": dict(opt_state=3.0),
    "inner_loss returns an array \\[5\\]": dict(inner_loss=lambda p, h: p),
    "hparams is of the dtype int": dict(hparams=np.arange(8)),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message):
    given = dict(
        inner_loss=quadratic,
        outer_loss=outer_loss,
        params=PARAMS,
        hparams=HPARAMS,
        inner_opt=optax.adam(0.1),
    )
    with pytest.raises((TypeError, ValueError), match=message):
        hg.sama(**{**given, **MISTAKES[message]})
