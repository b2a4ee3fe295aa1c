"""SVGD and the posterior it samples: definitions, moments, densities of SciPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import close
from scipy import stats
from tiny import one

import metalearn as ml
from metalearn.algorithms.bayesian.posterior import (
    CLASSIFICATION,
    REGRESSION,
    Gamma,
    Posterior,
    gaussian,
    log_posterior,
)
from metalearn.algorithms.bayesian.svgd import (
    median_bandwidth,
    rbf_kernel,
    squared_distances,
    svgd,
)

x64 = pytest.mark.usefixtures("x64")


def particles_of(num=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(rng.normal(size=(num, 2, 3))),
        "b": jnp.asarray(rng.normal(size=(num,))),
    }


def direction(particles, grads, **options):
    """phi of SVGD for gradients of log p."""
    stein = svgd(**options)
    downwards = jax.tree.map(jnp.negative, grads)
    found = stein.update(downwards, stein.init(particles), particles)[0]
    return jax.tree.map(jnp.negative, found)


# -- SVGD -------------------------------------------------------------------------------


@x64
def test_direction_is_that_of_the_definition():
    """With the derivative of the kernel, by its first argument, from jax.grad."""
    particles, grads = particles_of(), particles_of(seed=1)
    distances = squared_distances(particles)
    rows = [np.concatenate([np.ravel(w), [b]]) for w, b in zip(*particles.values())]
    expected = [[np.sum((a - b) ** 2) for a in rows] for b in rows]
    close(distances, np.array(expected))
    pairs = [expected[i][j] for i in range(4) for j in range(i)]
    h = np.median(pairs) / np.log(4)
    close(median_bandwidth(distances), h)

    def kernel(first, second):
        gaps = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), first, second)
        return jnp.exp(-sum(jax.tree.leaves(gaps)) / h)

    def phi(m, repulsion):
        total = jax.tree.map(jnp.zeros_like, one(particles))
        for j in range(4):
            k, push = jax.value_and_grad(kernel)(one(particles, j), one(particles, m))
            total = jax.tree.map(
                lambda t, g, p, k=k: t + (k * g + repulsion * p) / 4,
                total,
                one(grads, j),
                push,
            )
        return total

    for repulsion in (1.0, 0.5):
        expected = [phi(m, repulsion) for m in range(4)]
        expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
        close(direction(particles, grads, repulsion=repulsion), expected)


@x64
def test_equal_particles_get_equal_steps_and_no_repulsion():
    alike = jax.tree.map(lambda p: jnp.stack([p[0]] * 4), particles_of())
    grads = particles_of(seed=1)
    found = direction(alike, grads)
    mean = jax.tree.map(lambda g: jnp.broadcast_to(g.mean(0)[None], g.shape), grads)
    close(found, mean)
    nothing = direction(alike, jax.tree.map(jnp.zeros_like, grads))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing))
    slopes = jax.grad(lambda p: direction(p, grads)["b"].sum())(alike)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    close(
        rbf_kernel(jnp.zeros((2, 2)), median_bandwidth(jnp.zeros((2, 2)))), np.ones((2, 2))
    )


@x64
def test_one_particle_is_free_and_the_order_is_free():
    single, grads = particles_of(1), particles_of(1, seed=1)
    close(direction(single, grads), grads, rtol=0)
    particles, grads = particles_of(), particles_of(seed=1)
    order = np.array([2, 0, 3, 1])

    def turned(tree):
        return jax.tree.map(lambda leaf: leaf[order], tree)

    swapped = direction(turned(particles), turned(grads))
    close(swapped, turned(direction(particles, grads)))


@x64
def test_no_derivative_through_the_bandwidth():
    distances = squared_distances(particles_of())
    assert not np.any(jax.grad(median_bandwidth)(distances))


def test_steps_have_the_dtype_of_their_leaf_and_need_the_particles():
    """Weights in half precision and log-precisions in single move by one kernel."""
    mixed = particles_of()
    mixed = {"w": mixed["w"].astype(jnp.bfloat16), "b": mixed["b"].astype(jnp.float32)}
    found = direction(mixed, mixed)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(
        lambda leaf: leaf.dtype, mixed
    )
    with pytest.raises(ValueError, match="update got no params"):
        svgd().update(mixed, ())


@x64
@pytest.mark.parametrize("repulsion", [1.0, 0.0])
def test_samples_a_gaussian(repulsion):
    """Its moments with the repulsion, its mode without."""
    mean, deviation, num = 2.0, 0.5, 40
    optimiser = optax.chain(svgd(repulsion=repulsion), optax.adam(0.05))
    start = jnp.linspace(-1.0, 0.5, num)

    def step(carry, _):
        theta, state = carry
        updates, state = optimiser.update((theta - mean) / deviation**2, state, theta)
        return (theta + updates, state), None

    run = jax.jit(lambda t: jax.lax.scan(step, (t, optimiser.init(t)), None, 800)[0][0])
    end = np.asarray(run(start))
    assert abs(end.mean() - mean) < 0.02
    spread = deviation if repulsion else 0.0
    assert abs(end.std() - spread) < 0.05


# -- The posterior ----------------------------------------------------------------------


@x64
def test_log_posterior_is_that_of_scipy():
    """Up to a constant, with padded rows, in weights and both log-precisions."""
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(2, 4, 2))
    weights = {"w": rng.normal(size=3), "b": rng.normal(size=(2, 1))}
    mask = np.array([True, True, False, True])
    examples = ml.Examples.of(jnp.zeros((4, 1)), y, jnp.asarray(mask))

    def ours(data, prior):
        logs = {"data": jnp.log(data), "weights": jnp.log(prior)}
        particle = {"weights": weights, "log_precision": logs}
        return log_posterior(REGRESSION, particle, jnp.asarray(outputs), examples)

    def theirs(data, prior):
        gaps = (outputs - y)[mask].ravel()
        flat = np.concatenate([weights["w"], weights["b"].ravel()])
        total = stats.norm(scale=data**-0.5).logpdf(gaps).sum()
        total += stats.norm(scale=prior**-0.5).logpdf(flat).sum()
        total += stats.gamma(2.0, scale=1 / 0.2).logpdf(data) + np.log(data)
        return total + stats.gamma(2.0, scale=1 / 2.0).logpdf(prior) + np.log(prior)

    points = [(1.0, 1.0), (30.0, 1.0), (1.0, 0.2), (4.0, 7.0)]
    gaps = [ours(*p) - theirs(*p) for p in points]
    close(np.array(gaps), np.full(4, gaps[0]))
    logits = jnp.asarray(rng.normal(size=(4, 3)))
    labels = ml.Examples.of(jnp.zeros((4, 1)), np.array([0, 2, 1, 1]), jnp.asarray(mask))
    picked = jax.nn.log_softmax(logits)[np.arange(4), labels.y][mask].sum()
    fixed = dataclasses.replace(CLASSIFICATION, weight_precision=0.3)
    particle = {"weights": weights, "log_precision": {}}
    squares = sum(np.sum(w**2) for w in weights.values())
    close(log_posterior(fixed, particle, logits, labels), picked - 0.15 * squares)


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="data_precision is 0"):
        Posterior(log_likelihood=gaussian, weight_precision=0.0, data_precision=0)
    with pytest.raises(ValueError, match="rate of weight_precision is -1"):
        Posterior(log_likelihood=gaussian, weight_precision=Gamma(1.0, -1, 1.0))
    with pytest.raises(ValueError, match="floor is 0"):
        svgd(floor=0)
    with pytest.raises(ValueError, match="repulsion is True"):
        svgd(repulsion=True)
