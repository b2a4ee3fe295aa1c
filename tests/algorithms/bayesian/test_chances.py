"""Draws of the Bayesian learners: each is a new one, of the deviation it should have."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE, close, differs
from tiny import WAYS, blob_batch, one, plain

import metalearn as ml
from metalearn.algorithms.bayesian.ascent import ascent, population
from metalearn.algorithms.bayesian.gaussian import draw
from metalearn.algorithms.bayesian.laplace import CURVATURES, laplace, output_hessian
from metalearn.algorithms.bayesian.posterior import REGRESSION
from metalearn.algorithms.bayesian.svgd import svgd

x64 = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)


@x64
def test_draws_of_a_gaussian_scale_and_no_leaf_repeats_another():
    mean = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5, 3.0])}
    like = lambda value: jax.tree.map(lambda m: jnp.full_like(m, value), mean)
    noise = draw(KEY, like(0.0), like(0.0))
    assert differs(noise["a"], noise["b"])
    found = draw(KEY, mean, like(2 * np.log(3.0)))
    close(found, jax.tree.map(lambda m, n: m + 3 * n, mean, noise))
    close(draw(KEY, mean, like(-400.0)), mean)


# -- Particles --------------------------------------------------------------------------


def noisy():
    """A network whose outputs are noise, where training has a key."""

    def apply(variables, x, *, key=None, train=False, mask=None):
        del mask
        outputs = x @ variables.params
        if train and key is not None:
            outputs += jax.random.normal(key, outputs.shape, outputs.dtype)
        return outputs, variables.state

    return ml.Model(lambda key, x: ml.Variables(params=jnp.ones((2, 1)), state={}), apply)


def test_particles_draw_from_keys_of_their_own():
    networks = population(noisy(), 3)
    x = jnp.ones((4, 2))
    outputs, _ = networks.apply(networks.init(KEY, x), x, key=KEY, train=True)
    assert outputs.shape == (3, 4, 1)
    for m in range(3):
        assert differs(outputs[m], outputs[m - 1])


def test_particles_draw_anew_in_every_step():
    part = ml.Examples.of(jnp.ones((4, 2)), jnp.ones((4, 1)))
    inner = ascent(
        noisy(),
        ml.losses.mse,
        optax.sgd(1e-9),  # so small that only noise is seen
        REGRESSION,
        mixing=svgd(),
        num_particles=2,
        num_steps=3,
        differentiation="reverse",
        adapt_filter=None,
        norm="support",
        mask_absent_classes=False,
    )
    variables = inner.init(KEY, ml.Task(support=part, query=part))
    adapt = jax.jit(lambda key: inner.adapt(variables, part, key=key, train=True)[1])
    outputs = adapt(KEY).aux[1]  # [S, M, N, 1]
    for step in range(3):
        assert differs(outputs[step], outputs[step - 1])
    assert differs(adapt(jax.random.key(1)).aux[1], outputs)


def test_particles_start_from_keys_of_their_own():
    made = population(plain(), 3).init(KEY, one(blob_batch()).support.x)
    for leaf in (made.params["body"]["w"], made.params["head"]["w"]):
        assert all(differs(leaf[m], leaf[m - 1]) for m in range(3))


# -- Laplace ----------------------------------------------------------------------------


@x64
@pytest.mark.parametrize("curvature", CURVATURES)
def test_draws_of_two_arrays_are_not_the_same(curvature):
    jacobian = {name: jnp.zeros((1, WAYS, 2, 2)) for name in "ab"}
    found = laplace(jacobian, jnp.eye(WAYS)[None], 4.0, curvature)
    draws = jax.vmap(found.draw)(jax.random.split(KEY, 500))
    flat = np.concatenate([np.asarray(draws[name]).reshape(500, 4) for name in "ab"], 1)
    np.testing.assert_allclose(np.cov(flat.T), np.eye(8) / 4, atol=0.06)


@x64
def test_the_curvature_of_a_softmax_is_its_fisher_information_and_no_masked_row_has_any():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, WAYS))
    mask = np.array([True, False, True])
    examples = ml.Examples.of(jnp.zeros((3, 1)), jnp.array([0, 2, 1]), jnp.asarray(mask))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    fisher = np.einsum("ni,ij->nij", p, np.eye(WAYS)) - np.einsum("ni,nj->nij", p, p)
    found = jax.jit(lambda rows: output_hessian(CE, rows, examples))(logits)
    close(found, fisher * mask[:, None, None])
