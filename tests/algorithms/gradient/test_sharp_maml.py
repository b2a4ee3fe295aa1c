"""Sharp-MAML: closed forms, what is held constant, gradients of zero, no radii."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    INNER,
    RATE,
    TASKS,
    THETA,
    bench,
    close,
    differs,
    model_grads,
    network,
    network_maml,
    of,
    quadratic_loss,
    quadratic_maml,
    quadratic_model,
    wide_blobs,
)
from jax.flatten_util import ravel_pytree
from tiny import blob_batch, linen, one, plain, tanh_net

import metalearn as ml
from metalearn.algorithms.gradient.sharp_maml import perturbation, sharp_maml
from metalearn.inner import Implicit
from metalearn.testing import check_learner

x64 = pytest.mark.usefixtures("x64")
LOW, UP = 0.4, 0.3  # radii
EYE = np.eye(3)


def quadratic(steps=2, low=LOW, up=0.0, **options):
    options = {"task_chunk": TASKS, **options}
    return sharp_maml(
        quadratic_model(),
        quadratic_loss,
        optax.sgd(RATE),
        num_steps=steps,
        inner_radius=low,
        outer_radius=up,
        **options,
    )


@functools.cache  # it keeps what was compiled for it
def learner_of(low=LOW, up=0.0, **options):
    options = {"num_steps": 2, "task_chunk": 3, **options}
    return sharp_maml(
        plain(), CE, optax.sgd(INNER), inner_radius=low, outer_radius=up, **options
    )


def maml_of(**options):
    return network_maml(task_chunk=3, **options)


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def adapted(a, c, theta, steps=2, low=LOW, through=False):
    """The end of the perturbed descent and its Jacobian."""
    jacobian = EYE
    for _ in range(steps):
        slope = a @ (theta - c)
        size = np.linalg.norm(slope)
        turn = low / size * (EYE - np.outer(slope, slope) / size**2) @ a
        jacobian = (EYE - RATE * a @ (EYE + turn * through)) @ jacobian
        theta = theta - RATE * a @ (theta + low * slope / size - c)
    return theta, jacobian


def closed_form(theta=THETA, **options):
    terms = []
    for m, y, n, f in zip(*bench()[0]):
        phi, jacobian = adapted(m, y, theta, **options)
        terms.append(jacobian.T @ n @ (phi - f))
    return np.mean(terms, 0)


# -- Closed forms -----------------------------------------------------------------------


@x64
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_inner_perturbation_has_its_closed_form(steps, through):
    options = dict(steps=steps, through=through)
    learner = quadratic(steps, through_perturbation=through)
    found = model_grads(learner, THETA, bench()[1])
    close(found.grads, closed_form(**options), rtol=1e-12)
    assert differs(found.grads, closed_form(steps=steps, through=not through))
    assert not np.any(found.metrics["outer/sharpness"])


@x64
@pytest.mark.parametrize("low", [0.0, LOW])
def test_outer_perturbation_is_along_the_gradient_of_the_batch(low):
    """One for all tasks, of length `outer_radius`; the inner loops start there."""
    plain_gradient = closed_form(low=low)
    away = THETA + UP * plain_gradient / np.linalg.norm(plain_gradient)
    runs = [model_grads(quadratic(low=low, up=up), THETA, bench()[1]) for up in (0.0, UP)]
    close(runs[0].grads, plain_gradient, rtol=1e-12)
    close(runs[1].grads, closed_form(away, low=low), rtol=1e-12)
    losses = {"at": [], "away": []}
    for m, y, n, f in zip(*bench()[0]):
        for name, theta in (("at", THETA), ("away", away)):
            gap = adapted(m, y, theta, low=low)[0] - f
            losses[name].append(0.5 * gap @ n @ gap)
    found = runs[1].metrics
    close(found["query/loss"], np.stack(losses["at"]), rtol=1e-12)
    sharpness = np.subtract(losses["away"], losses["at"])
    close(found["outer/sharpness"], sharpness, rtol=1e-10)
    assert sharpness.mean() > 0


@x64
def test_adaptation_perturbs_in_evaluation_too():
    (a, c, _, _), tasks = bench()
    variables = of(THETA)
    found = jax.jit(quadratic().adapt)(variables, one(tasks).support).params
    close(found, adapted(a[0], c[0], THETA)[0], rtol=1e-12)


@x64
def test_first_order_drops_all_jacobians():
    terms = [n @ (adapted(m, y, THETA)[0] - f) for m, y, n, f in zip(*bench()[0])]
    for through in (False, True):
        learner = quadratic(differentiation="first_order", through_perturbation=through)
        found = model_grads(learner, THETA, bench()[1]).grads
        close(found, np.mean(terms, 0), rtol=1e-12)


# -- Reductions -------------------------------------------------------------------------


@x64
def test_without_radii_it_is_maml():
    tasks = wide_blobs()
    expected = model_grads(maml_of(), network(), tasks)
    found = model_grads(learner_of(0.0, 0.0), network(), tasks)
    close(found.grads, expected.grads, rtol=1e-13)
    for name, value in expected.metrics.items():
        close(found.metrics[name], value, rtol=1e-13)
    tiny = model_grads(learner_of(1e-9, 1e-9), network(), tasks)
    close(tiny.grads, expected.grads, rtol=1e-7)
    assert differs(model_grads(learner_of(0.2), network(), tasks).grads, expected.grads)
    none = model_grads(quadratic(0), THETA, bench()[1]).grads
    close(none, model_grads(quadratic_maml(0), THETA, bench()[1]).grads, rtol=1e-13)


@x64
@pytest.mark.parametrize(
    "mode",
    ["mixed", *(pytest.param(m, marks=pytest.mark.slow) for m in ("remat", "nested"))],
)
def test_ways_to_differentiate_agree(mode):
    expected = model_grads(learner_of(), network(), wide_blobs()).grads
    found = model_grads(learner_of(differentiation=mode), network(), wide_blobs()).grads
    close(found, expected, rtol=1e-12)


# -- A network --------------------------------------------------------------------------


@x64
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("part", ["head", pytest.param(None, marks=pytest.mark.slow)])
def test_meta_gradient_of_a_network(through, part):
    """Against a plain implementation, and finite differences of that."""
    task, theta = one(wide_blobs()), network()
    selected = {k: part is None or k == part for k in theta}

    def slope_at(params):
        def loss(params):
            return CE(tanh_net(params, task.support.x), task.support)

        grads = jax.grad(loss)(params)
        return {k: scaled(v, selected[k]) for k, v in grads.items()}

    def query_loss(params, held=None):
        """With the perturbations given, or else those of the params themselves."""
        used = []
        for step in range(2):
            slope = slope_at(params)
            size = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(slope)))
            away = scaled(slope, LOW / size)
            away = away if held is None else held[step]
            used.append(away)
            worst = jax.tree.map(jnp.add, params, away)
            params = jax.tree.map(lambda p, g: p - INNER * g, params, slope_at(worst))
        return CE(tanh_net(params, task.query.x), task.query), used

    held = None if through else jax.jit(query_loss)(theta)[1]
    slope_of = jax.jit(jax.value_and_grad(lambda p: query_loss(p, held)[0]))
    options = dict(through_perturbation=through, task_chunk=1)
    if part:
        options["adapt_filter"] = lambda path, leaf: part in path
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    found = model_grads(learner_of(**options), theta, batch)
    value, expected = slope_of(theta)
    close(found.metrics["query/loss"][0], value, rtol=1e-12)
    close(found.grads, expected, rtol=1e-9)
    flat, back = ravel_pytree(theta)
    along = np.random.default_rng(0).normal(size=flat.shape)
    ends = [slope_of(back(flat + h * along))[0] for h in (1e-5, -1e-5)]
    found = ravel_pytree(found.grads)[0] @ along
    close(found, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


# -- Gradients of zero ------------------------------------------------------------------


def test_perturbation_has_the_radius_and_zero_stays():
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    found = perturbation(grads, 0.5)
    close(found, jax.tree.map(lambda g: g / 10, grads), rtol=1e-6)
    still = jax.tree.map(jnp.zeros_like, grads)
    assert not any(np.any(e) for e in jax.tree.leaves(perturbation(still, 0.5)))
    slopes = jax.jit(jax.jacobian(lambda g: perturbation(g, 0.5)))(still)
    assert all(np.isfinite(s).all() for s in jax.tree.leaves(slopes))


@x64
@pytest.mark.parametrize("through", [False, True])
def test_gradients_of_zero_give_no_nan(through):
    """Support sets whose minimum is theta, then queries as well: MAML's gradients."""
    tasks = bench()[1]
    here = jnp.broadcast_to(jnp.asarray(THETA), tasks.support.y.shape)
    support = ml.Examples(x=tasks.support.x, y=here, mask=tasks.support.mask)
    query = ml.Examples(x=tasks.query.x, y=here, mask=tasks.query.mask)
    for task in (
        ml.Task(support=support, query=tasks.query),
        ml.Task(support=support, query=query),
    ):
        learner = quadratic(through_perturbation=through)
        found = model_grads(learner, THETA, task).grads
        close(found, model_grads(quadratic_maml(2), THETA, task).grads, rtol=1e-12)
    both = quadratic(up=UP, through_perturbation=through)
    assert not np.any(model_grads(both, THETA, task).grads)


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"low": -0.1}, r"inner_radius is -0\.1"),
        ({"up": float("inf")}, "outer_radius is inf"),
        ({"up": float("nan")}, "outer_radius is nan"),
        ({"low": True}, "inner_radius is True"),
        ({"low": "0.1"}, r"inner_radius is '0\.1'"),
        ({"num_steps": -1}, "num_steps is -1"),
        (
            {"through_perturbation": True, "differentiation": "mixed"},
            "'mixed' needs symmetric.*'remat'",
        ),
        ({"differentiation": Implicit()}, "sharp_maml cannot learn"),
        ({"differentiation": "second"}, "differentiation is 'second'"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"task_chunk": 0}, "task_chunk is 0"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        learner_of(**options)


def test_bad_inner_optimiser_is_refused():
    with pytest.raises(TypeError, match="inner_opt is a float"):
        sharp_maml(plain(), CE, 0.1)
    with pytest.raises(ValueError, match="eps_root"):
        sharp_maml(plain(), CE, optax.adam(0.1))


def test_absent_classes_are_masked():
    task = one(blob_batch())
    keep = task.support.mask & (task.support.y != 2)
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=keep)
    learner = learner_of(mask_absent_classes=True)
    variables = jax.jit(learner.init)(jax.random.key(0), task)
    found = jax.jit(learner.adapt)(variables, support)
    assert found.present.tolist() == [True, True, False]


@pytest.mark.slow  # built by `bilevel`, as maml is
def test_keeps_the_contract(strict_dtypes):
    learner = sharp_maml(linen(), CE, optax.sgd(0.1), task_chunk=8)
    assert ml.describe(learner)["outer_radius"] == 0.05
    check_learner(learner, blob_batch())
