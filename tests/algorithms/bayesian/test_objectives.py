"""Outer objectives of the Bayesian learners: values in NumPy, slopes by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    DIM,
    RATE,
    TASKS,
    THETA,
    bench,
    close,
    descend,
    differs,
    grads_of,
    quadratic_loss,
    quadratic_model,
    wide_blobs,
)
from tiny import INPUTS, WAYS, one, plain

import metalearn as ml
from metalearn.algorithms.bayesian.bmaml import bmaml, emaml
from metalearn.algorithms.bayesian.platipus import platipus
from metalearn.algorithms.bayesian.posterior import (
    CLASSIFICATION,
    REGRESSION,
    initial_precisions,
)

pytestmark = pytest.mark.usefixtures("x64")
MSE = ml.losses.mse
KEY = jax.random.key(0)
MEMBERS = 3


def linear(outputs=WAYS):
    return ml.from_apply_fn(
        lambda key, x: jax.random.normal(key, (x.shape[-1], outputs)), lambda p, x: x @ p
    )


# -- BMAML ------------------------------------------------------------------------------


def masked_blobs():
    """Tasks, some of whose queries are not there."""
    tasks = wide_blobs()
    there = jnp.arange(tasks.query.mask.shape[1])[None] != jnp.array([[1], [4], [9]])
    query = ml.Examples(x=tasks.query.x, y=tasks.query.y, mask=there)
    return ml.Task(support=tasks.support, query=query)


def likelihoods(params, query):
    """Of each valid query under each particle, `[M, Q]`."""
    logits = np.einsum("qd,mdw->mqw", query.x, params)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    own = np.take_along_axis(p, np.asarray(query.y)[None, :, None], -1)[..., 0]
    return own[:, np.asarray(query.mask)]


OBJECTIVES = {
    "query": lambda own: -np.log(own.mean(0)).mean(),
    "joint": lambda own: -np.log(own.prod(1).mean()) / own.shape[1],
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bmaml_descends_the_likelihood_it_names(monkeypatch, objective):
    """With the bandwidth held, through which no derivative goes."""
    monkeypatch.setattr(
        "metalearn.algorithms.bayesian.svgd.median_bandwidth", lambda d, floor: 20.0
    )
    options = dict(num_particles=MEMBERS, objective=objective, task_chunk=9)
    learner, tasks = bmaml(linear(), CE, optax.sgd(0.05), **options), masked_blobs()
    rng = np.random.default_rng(0)
    params, way = rng.normal(size=(2, MEMBERS, INPUTS, WAYS))
    adapt = jax.jit(jax.vmap(lambda v, s: learner.adapt(v, s).params, in_axes=(None, 0)))

    def value(scale):
        moved = ml.Variables(params=jnp.asarray(params + scale * way), state={})
        ends = np.asarray(adapt(moved, tasks.support))
        of_task = OBJECTIVES[objective]
        return np.array(
            [of_task(likelihoods(e, one(tasks.query, i))) for i, e in enumerate(ends)]
        )

    found = grads_of(learner, params, tasks)
    close(found.metrics[f"{objective}/loss"], value(0.0))
    difference = (value(1e-5) - value(-1e-5)).mean() / 2e-5
    close(np.sum(found.grads * way), difference, rtol=1e-6)


def test_two_particles_part_as_far_as_bmaml_is_told():
    """`h = d^2 / log 2`, so `k = 1 / 2`: a push of `log 2 (theta_m - theta_j) / 2 d^2`."""
    support, rate = one(wide_blobs()).support, 0.05
    params = np.random.default_rng(0).normal(size=(2, INPUTS, WAYS))
    variables = ml.Variables(params=jnp.asarray(params), state={})

    def ends(repulsion):
        options = dict(num_particles=2, repulsion=repulsion)
        learner = bmaml(linear(), CE, optax.sgd(rate), **options)
        return learner.adapt(variables, support).params

    apart = params - params[::-1]
    push = 0.5 * np.log(2) * apart / np.sum(apart[0] ** 2)
    close(ends(0.3) - ends(0.0), rate * 0.3 * push)


def test_precisions_begin_where_their_priors_say():
    found = initial_precisions(REGRESSION, 2)
    close(found, {"data": np.log([100.0, 100.0]), "weights": np.zeros(2)})
    assert initial_precisions(CLASSIFICATION, 2) == {}


# -- EMAML ------------------------------------------------------------------------------


def test_emaml_of_numbers_averages_predictions_and_adds_losses():
    rng = np.random.default_rng(0)
    x, y, x_q, y_q = (rng.normal(size=(5, n)) for n in (2, 1, 2, 1))
    part = lambda x, y: ml.Examples.of(jnp.asarray(x), jnp.asarray(y))
    task = ml.Task(support=part(x, y), query=part(x_q, y_q))
    learner = emaml(linear(1), MSE, optax.sgd(0.1), num_particles=MEMBERS, num_steps=1)
    params = rng.normal(size=(MEMBERS, 2, 1))
    hessian = 2 * x.T @ x / 5
    moves = np.eye(2) - 0.1 * hessian
    ends = np.stack([moves @ w + 0.2 * x.T @ y / 5 for w in params])
    variables = ml.Variables(params=jnp.asarray(params), state={})
    adapted = learner.adapt(variables, task.support)
    close(adapted.params, ends)
    each = np.einsum("qd,mdo->mqo", x_q, ends)
    close(learner.predict(adapted, task.query.x), each.mean(0))
    found = grads_of(learner, params, ml.stack_tasks([task]))
    close(found.metrics["query/loss"][0], np.mean((each.mean(0) - y_q) ** 2))
    close(found.grads, np.stack([moves @ (2 * x_q.T @ (e - y_q) / 5) for e in each]))


# -- PLATIPUS ---------------------------------------------------------------------------


def params_of(gamma_p, gamma_q, log_prior, log_posterior):
    like = lambda value: np.full(DIM, value)
    return {
        "model": THETA,
        "prior_log_variance": like(log_prior),
        "posterior_log_variance": like(log_posterior),
        "prior_rate": like(gamma_p),
        "posterior_rate": like(gamma_q),
    }


def quadratic(**options):
    options = {"combine": "mean", "num_steps": 2, "task_chunk": TASKS, **options}
    return platipus(quadratic_model(), quadratic_loss, optax.sgd(RATE), **options)


def test_training_starts_from_the_posterior():
    """Shifted by the queries and drawn with the variance v; then it adapts."""
    (a, c, b, e), tasks = bench()
    run = jax.jit(
        lambda p, k: (
            quadratic().estimate(ml.Variables(params=p, state={}), tasks, key=k).metrics
        )
    )
    found = run(params_of(0.3, 0.2, 0.0, -400.0), KEY)["query/loss"]
    expected = []
    for i in range(TASKS):
        theta = descend(b[i], e[i], THETA, 1, 0.2)
        gap = descend(a[i], c[i], theta, 2) - e[i]
        expected.append(0.5 * gap @ b[i] @ gap)
    close(found, np.array(expected))
    close(run(params_of(0.3, 0.2, 0.0, -400.0), jax.random.key(1))["query/loss"], found)
    drawn = [
        run(params_of(0.3, 0.2, -400.0, 0.0), jax.random.key(i))["query/loss"]
        for i in range(2)
    ]
    assert differs(drawn[0], drawn[1]) and differs(drawn[0], found)


def test_platipus_begins_with_the_numbers_it_is_given():
    learner = platipus(
        plain(), CE, optax.sgd(0.1), combine="mean", initial_std=0.3, initial_rate=0.07
    )
    params = learner.init(KEY, one(wide_blobs())).params
    for which in ("prior", "posterior"):
        for name, value in (("log_variance", 2 * np.log(0.3)), ("rate", 0.07)):
            for leaf in jax.tree.leaves(params[f"{which}_{name}"]):
                close(leaf, np.full(leaf.shape, value), rtol=1e-6)


def test_weight_of_the_divergence_counts_valid_queries():
    """`1 / Q`, where padding is no query."""
    task = one(masked_blobs())
    num = int(task.query.mask.sum())
    assert num == 5 and len(task.query.mask) == 6

    def grads(weight):
        options = dict(combine="probabilities", kl_weight=weight, task_chunk=9)
        learner = platipus(linear(), CE, optax.sgd(0.1), **options)
        params = learner.init(KEY, task).params
        return grads_of(learner, params, ml.stack_tasks([task])).grads

    close(grads(None), grads(1 / num))
