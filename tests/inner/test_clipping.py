"""Clips of inner optimisers: the values of optax, and right derivatives at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import blob_batch, one, plain

import metalearn as ml
from metalearn.core import checks

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)

PAIRS = {
    "global norm": (ml.inner.clip_by_global_norm, optax.clip_by_global_norm, 1.5),
    "block": (ml.inner.clip_by_block_rms, optax.clip_by_block_rms, 0.7),
    "adaptive": (ml.inner.adaptive_grad_clip, optax.adaptive_grad_clip, 0.4),
    "normalised": (
        ml.inner.normalize_by_update_norm,
        optax.normalize_by_update_norm,
        2.0,
    ),
}
SHAPES = {"b": (3,), "k": (2, 3), "c": (3, 3, 2, 2), "m": (2, 1, 3), "s": ()}


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(scale * rng.normal(size=s)) for n, s in SHAPES.items()}


def clipped(opt, grads, params):
    return opt.update(grads, opt.init(params), params)[0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("name", PAIRS)
def test_values_are_those_of_optax(name, scale):
    ours, theirs, number = PAIRS[name]
    grads, params = tree(0, scale), tree(1)
    found = clipped(ours(number), grads, params)
    expected = clipped(theirs(number), grads, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, expected)


def zeros(tree_):
    return jax.tree.map(np.zeros_like, tree_)


POINTS = {
    "apart": lambda: (tree(0, 10.0), tree(1)),
    "below": lambda: (tree(0, 1e-3), tree(1)),
    "no gradient": lambda: (zeros(tree(0)), tree(1)),
    "one leaf without": lambda: ({**tree(0), "k": np.zeros((2, 3))}, tree(1)),
    "no weights": lambda: (tree(0), zeros(tree(1))),
    "neither": lambda: (zeros(tree(0)), zeros(tree(1))),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_equal_finite_differences(name, point):
    """Along random directions of gradients; at zero as well, where roots have none."""
    opt = PAIRS[name][0](PAIRS[name][2])
    grads, params = POINTS[point]()
    weights, way = tree(2), tree(3)
    at_zero = not any(np.any(leaf) for leaf in grads.values())
    step = 1e-12 if at_zero else 1e-6  # far below the eps of the norm

    def value(grads):
        found = clipped(opt, grads, params)
        return sum(jnp.vdot(found[n], weights[n]) for n in found)

    _, slope = jax.jvp(value, (grads,), (way,))
    moved = [
        value(jax.tree.map(lambda g, d, s=s: g + s * step * d, grads, way)) for s in (1, -1)
    ]
    expected = (moved[0] - moved[1]) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)
    back = jax.grad(lambda g, p: jnp.sum(clipped(opt, g, p)["k"]), argnums=(0, 1))
    for leaf in jax.tree.leaves(back(grads, params)):
        assert np.isfinite(leaf).all()


def test_a_task_without_a_gradient_leaves_the_meta_gradient_of_the_others():
    """Compared with the mean over tasks of which each is differentiated by itself."""
    clip = optax.chain(ml.inner.clip_by_global_norm(10.0), optax.sgd(0.1))
    tasks = blob_batch()
    mask = tasks.support.mask.at[1].set(False)  # no example: a gradient of exactly zero
    support = ml.Examples(x=tasks.support.x, y=tasks.support.y, mask=mask)
    tasks = ml.Task(support=support, query=tasks.query)
    found, expected = (
        ml.maml(plain(), ml.losses.cross_entropy, opt, task_chunk=8)
        for opt in (clip, optax.sgd(0.1))
    )
    variables = found.init(KEY, one(tasks))
    grads = [
        jax.jit(f.estimate)(variables, tasks, key=KEY).grads for f in (found, expected)
    ]
    # No gradient here is longer than 10, so the clip changes nothing.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), *grads)


@pytest.mark.parametrize("name", PAIRS)
def test_ours_pass_the_probe_and_those_of_optax_are_refused_with_ours(name):
    ours, theirs, number = PAIRS[name]
    make = lambda opt: ml.maml(
        plain(), ml.losses.cross_entropy, optax.chain(opt, optax.sgd(0.1))
    )
    make(ours(number))
    assert checks.is_differentiable(ours(number)) is True
    with pytest.raises(ValueError, match=f"ml.inner.{theirs.__name__}"):
        make(theirs(number))


@pytest.mark.parametrize("bad", [0, -1.0, np.nan, np.inf, "1", None])
@pytest.mark.parametrize("name", ["global norm", "block", "adaptive"])
def test_bounds_are_positive_numbers(name, bad):
    with pytest.raises(ValueError, match="expected a finite number above 0"):
        PAIRS[name][0](bad)
