"""Distributions of actions against sums, quadrature and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metalearn.policies import Categorical, DiagonalGaussian

RNG = np.random.default_rng(0)
LOGITS, OTHERS = RNG.normal(size=(2, 3, 4)).astype(np.float32)
MEAN, LOG_STD, OTHER_MEAN, OTHER_LOG_STD = 0.5 * RNG.normal(size=(4, 3, 2)).astype(
    np.float32
)
GAUSSIAN = DiagonalGaussian(jnp.asarray(MEAN), jnp.asarray(LOG_STD))
OTHER = DiagonalGaussian(jnp.asarray(OTHER_MEAN), jnp.asarray(OTHER_LOG_STD))
OUT = -jnp.inf


def probabilities(logits):
    powers = np.exp(logits)
    return powers / powers.sum(-1, keepdims=True)


def test_categorical_is_what_sums_over_actions_say():
    law, other = Categorical(jnp.asarray(LOGITS)), Categorical(jnp.asarray(OTHERS))
    p, q = probabilities(LOGITS), probabilities(OTHERS)
    for action in range(4):
        found = law.log_prob(jnp.full((3,), action))
        np.testing.assert_allclose(found, np.log(p[:, action]), rtol=1e-5)
    np.testing.assert_allclose(law.entropy(), scipy.stats.entropy(p, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(law.kl(other), scipy.stats.entropy(p, q, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(law.mode(), p.argmax(-1))


def test_an_action_that_is_no_action_has_no_probability():
    assert np.isnan(Categorical(jnp.zeros(3)).log_prob(jnp.array(3)))


def test_categorical_actions_come_as_often_as_they_are_probable():
    law = Categorical(jnp.array([0.0, 1.0, OUT]))
    drawn = jax.vmap(law.sample)(jax.random.split(jax.random.key(0), 4000))
    assert drawn.dtype == jnp.int32
    shares = np.bincount(drawn, minlength=3) / 4000
    np.testing.assert_allclose(shares, [1 / (1 + np.e), np.e / (1 + np.e), 0], atol=0.03)


def test_actions_that_are_ruled_out_count_as_nothing():
    masked = Categorical(jnp.array([0.3, -0.4, OUT]))
    short = Categorical(jnp.array([0.3, -0.4]))
    other, less = Categorical(jnp.array([1.0, 0.0, OUT])), Categorical(jnp.array([1.0, 0]))
    np.testing.assert_allclose(masked.entropy(), short.entropy(), rtol=1e-6)
    np.testing.assert_allclose(masked.kl(other), short.kl(less), rtol=1e-6)
    wider = Categorical(jnp.array([1.0, 0.0, 2.0]))
    p, q = probabilities(np.array([0.3, -0.4])), probabilities(np.array([1.0, 0.0, 2.0]))
    np.testing.assert_allclose(masked.kl(wider), (p * np.log(p / q[:2])).sum(), rtol=1e-5)
    assert wider.kl(masked) == jnp.inf


def test_an_underflown_probability_makes_no_nan():
    law, other = Categorical(jnp.array([0.0, -500.0])), Categorical(jnp.array([0.0, OUT]))
    assert law.kl(other) == 0 and law.entropy() == 0


def test_logits_of_nan_stay_to_be_seen():
    law = Categorical(jnp.array([0.0, jnp.nan]))
    values = (law.entropy(), law.kl(law), law.log_prob(jnp.array(0)))
    assert np.isnan(values).all()


def quantities(logits, other):
    law, other = Categorical(logits), Categorical(other)
    return law.entropy() + law.kl(other) + law.log_prob(jnp.array(0))


def test_derivatives_with_ruled_out_actions_are_those_without():
    full = jnp.array([0.3, -0.4, OUT]), jnp.array([1.0, 0.0, OUT])
    short = jax.tree.map(lambda x: x[:2], full)
    grad = jax.jit(jax.grad(quantities, (0, 1)))
    for found, wanted in zip(grad(*full), grad(*short)):
        np.testing.assert_allclose(found[:2], wanted, atol=1e-6)
        assert found[2] == 0
    second = jax.jit(jax.hessian(quantities))
    np.testing.assert_allclose(second(*full)[:2, :2], second(*short), atol=1e-6)
    assert np.isfinite(second(*full)).all()


def test_gaussian_densities_and_entropies_are_those_of_scipy():
    action = np.full((3, 2), 0.4, np.float32)
    laws = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    logs = GAUSSIAN.log_prob(jnp.asarray(action))
    np.testing.assert_allclose(logs, laws.logpdf(action).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(GAUSSIAN.entropy(), laws.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(GAUSSIAN.mode(), MEAN)


def test_gaussian_divergence_is_its_integral():
    x = np.linspace(-12, 12, 20001)[:, None, None]
    p = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    q = scipy.stats.norm(OTHER_MEAN, np.exp(OTHER_LOG_STD))
    integrand = p.pdf(x) * (p.logpdf(x) - q.logpdf(x))
    wanted = integrand.sum(0) * (x[1, 0, 0] - x[0, 0, 0])
    np.testing.assert_allclose(GAUSSIAN.kl(OTHER), wanted.sum(-1), rtol=1e-4)


def test_divergence_of_close_gaussians_keeps_its_digits():
    near = DiagonalGaussian(jnp.zeros(1), jnp.zeros(1))
    other = DiagonalGaussian(jnp.zeros(1), jnp.full((1,), 3e-4))
    wanted = 0.5 * np.expm1(-6e-4) + 3e-4
    np.testing.assert_allclose(near.kl(other), wanted, rtol=1e-2)
    assert near.kl(near) == 0


def test_gaussian_actions_have_mean_and_spread():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(GAUSSIAN.sample)(keys)
    np.testing.assert_allclose(drawn.mean(0), MEAN, atol=0.1)
    np.testing.assert_allclose(drawn.std(0), np.exp(LOG_STD), rtol=0.05)


@pytest.mark.parametrize("law", [GAUSSIAN, Categorical(jnp.asarray(LOGITS))])
def test_distributions_are_pytrees_that_vmap_takes_apart(law):
    mapped = jax.vmap(lambda one: one.kl(one) + one.entropy())(law)
    np.testing.assert_allclose(mapped, law.entropy(), rtol=1e-6)
