"""PLATIPUS: its Gaussians against NumPy, what it reduces to, its samples."""

import functools

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
    model_grads,
    network,
    quadratic_loss,
    quadratic_maml,
    quadratic_model,
    wide_blobs,
)
from tiny import WAYS, blob_batch, linen, one, plain

import metalearn as ml
from metalearn.algorithms.bayesian.ensemble import members
from metalearn.algorithms.bayesian.gaussian import draw, gaussian_kl
from metalearn.algorithms.bayesian.platipus import platipus
from metalearn.testing import check_learner

x64 = pytest.mark.usefixtures("x64")
MEMBERS = 4


@functools.cache  # it keeps what was compiled for it
def quadratic(**options):
    options = {"combine": "mean", "task_chunk": TASKS, "num_steps": 2, **options}
    return platipus(quadratic_model(), quadratic_loss, optax.sgd(RATE), **options)


def params_of(mu, gamma_p=0.0, gamma_q=0.0, log_prior=-400.0, log_posterior=-400.0):
    def like(value):
        return jax.tree.map(
            lambda p: jnp.full_like(p, value), jax.tree.map(jnp.asarray, mu)
        )

    return {
        "model": mu,
        "prior_log_variance": like(log_prior),
        "posterior_log_variance": like(log_posterior),
        "prior_rate": like(gamma_p),
        "posterior_rate": like(gamma_q),
    }


@functools.cache  # it keeps what was compiled for it
def blob_learner(**options):
    options = {
        "combine": "probabilities",
        "num_samples": MEMBERS,
        "num_steps": 2,
        "task_chunk": 3,
        **options,
    }
    return platipus(plain(), CE, optax.sgd(0.3), **options)


# -- Reductions -------------------------------------------------------------------------


@x64
@pytest.mark.parametrize(
    "how",
    [
        "mixed",
        *(pytest.param(h, marks=pytest.mark.slow) for h in ("reverse", "first_order")),
    ],
)
def test_without_variances_and_shifts_it_is_maml(how):
    tasks = bench()[1]
    expected = model_grads(quadratic_maml(steps=2, differentiation=how), THETA, tasks)
    learner = quadratic(kl_weight=0.0, differentiation=how)
    found = grads_of(learner, params_of(THETA), tasks)
    close(found.grads["model"], expected.grads, rtol=1e-9)
    close(found.metrics["query/loss"], expected.metrics["query/loss"])
    variables = ml.Variables(params=params_of(jnp.asarray(THETA)), state={})
    (a, c, _, _), _ = bench()
    adapted = jax.jit(learner.adapt)(variables, one(tasks).support)
    assert adapted.params.shape == (10, DIM)
    close(adapted.params, np.tile(descend(a[0], c[0], THETA, 2), (10, 1)))


@x64
def test_points_are_shared_and_heads_are_drawn():
    learner = blob_learner(adapt_filter=lambda path, leaf: path.startswith("head"))
    variables = jax.jit(learner.init)(jax.random.key(0), one(wide_blobs()))
    assert jax.tree.leaves(variables.params["prior_rate"]["body"]) == []
    adapted = jax.jit(learner.adapt)(variables, one(wide_blobs()).support).params
    body = variables.params["model"]["body"]
    close(adapted["body"], jax.tree.map(lambda p: np.stack([p] * MEMBERS), body), rtol=0)
    assert np.ptp(adapted["head"]["w"], axis=0).min() > 0
    found = grads_of(learner, variables.params, wide_blobs())
    assert np.abs(found.grads["model"]["body"]["w"]).max() > 1e-3


# -- Its Gaussians ----------------------------------------------------------------------


@x64
def test_means_and_divergence_have_their_closed_forms():
    """Rates of their own; the samples of evaluation stand around the shifted mean."""
    (a, c, b, e), tasks = bench()
    gamma_p, gamma_q, log_prior, log_posterior = 0.3, 0.2, -1.0, -2.0
    params = params_of(THETA, gamma_p, gamma_q, log_prior, log_posterior)
    found = grads_of(quadratic(), params, tasks).metrics
    gaps = [
        gamma_p * m @ (THETA - y) - gamma_q * n @ (THETA - f)
        for m, y, n, f in zip(a, c, b, e)
    ]
    ratio = np.exp(log_posterior - log_prior)
    constant = DIM * (log_prior - log_posterior + ratio - 1)
    expected = [0.5 * (constant + g @ g / np.exp(log_prior)) for g in gaps]
    close(found["kl"], np.array(expected))

    variables = ml.Variables(params=jax.tree.map(jnp.asarray, params), state={})
    many = quadratic(num_samples=4000)
    ends = np.asarray(jax.jit(many.adapt)(variables, one(tasks).support).params)
    mean = descend(a[0], c[0], THETA, 1, gamma_p)
    map_of = np.linalg.matrix_power(np.eye(DIM) - RATE * a[0], 2)
    covariance = np.exp(log_prior) * map_of @ map_of.T
    std = np.sqrt(np.diag(covariance))
    expected_mean = descend(a[0], c[0], mean, 2)
    assert (np.abs(ends.mean(0) - expected_mean) < 5 * std / np.sqrt(4000)).all()
    np.testing.assert_allclose(np.cov(ends.T), covariance, atol=0.06 * std.max() ** 2)


@x64
def test_divergence_is_zero_only_where_the_two_agree():
    (_, _, _, _), tasks = bench(same=True)
    equal = params_of(THETA, 0.3, 0.3, -1.0, -1.0)
    close(grads_of(quadratic(), equal, tasks).metrics["kl"], np.zeros(TASKS), rtol=1e-12)
    for change in ({"gamma_q": 0.2}, {"log_posterior": -1.5}):
        values = {"gamma_p": 0.3, "gamma_q": 0.3, "log_prior": -1.0, "log_posterior": -1.0}
        other = params_of(THETA, **{**values, **change})
        assert grads_of(quadratic(), other, tasks).metrics["kl"].min() > 1e-3


@x64
def test_divergence_agrees_with_sampling():
    rng = np.random.default_rng(0)
    mean, other = ({"a": rng.normal(size=3), "b": rng.normal(size=(2, 2))} for _ in "pq")
    spread, wide = ({"a": rng.normal(size=3), "b": rng.normal(size=(2, 2))} for _ in "pq")
    keys = jax.random.split(jax.random.key(0), 100_000)
    x = jax.vmap(lambda k: draw(k, mean, spread))(keys)

    def log_density(mean, log_variance):
        def term(x, m, s):
            axes = tuple(range(1, x.ndim))
            gaps = (x - m[None]) ** 2 * np.exp(-s)[None]
            return -0.5 * (s.sum() + gaps.sum(axes))

        return sum(jax.tree.leaves(jax.tree.map(term, x, mean, log_variance)))

    values = np.asarray(log_density(mean, spread) - log_density(other, wide))
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - gaussian_kl(mean, spread, other, wide)) < 5 * error


@x64
def test_meta_gradient_by_finite_differences():
    """Of the whole objective, in a direction of every meta-parameter."""
    tasks, learner = wide_blobs(), blob_learner()
    params = params_of(network(), 0.2, 0.1, -4.0, -5.0)
    run = functools.partial(grads_of, learner, tasks=tasks)
    num = tasks.query.mask.shape[1]

    def objective(params):
        found = run(params).metrics
        return (found["query/loss"] + found["kl"] / num).mean()

    grads, rng = run(params).grads, np.random.default_rng(0)
    for part in params:
        direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params[part])

        def moved(scale, part=part, direction=direction):
            new = jax.tree.map(lambda p, d: p + scale * d, params[part], direction)
            return objective({**params, part: new})

        along = jax.tree.map(lambda g, d: jnp.sum(g * d), grads[part], direction)
        total = sum(jax.tree.leaves(along))
        assert abs(total) > 1e-4, part
        close(total, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-6)


@x64
def test_weight_of_the_divergence():
    tasks, params = bench()[1], params_of(THETA, 0.3, 0.1, -1.0, -2.0)
    none, bound, double = (
        grads_of(quadratic(**weight), params, tasks).grads
        for weight in ({"kl_weight": 0.0}, {}, {"kl_weight": 2.0})
    )
    # One query a task, so the bound has weight 1.
    close(
        jax.tree.map(lambda n, d: 0.5 * (n + d), none, double),
        bound,
    )
    assert not np.any(none["prior_log_variance"]) and np.any(bound["prior_log_variance"])


# -- Predictions ------------------------------------------------------------------------


@x64
def test_predictions_are_those_of_the_mixture():
    learner, task = blob_learner(), one(wide_blobs())
    params = params_of(network(), 0.2, 0.1, -2.0, -2.0)
    variables = ml.Variables(params=params, state={})
    adapt = jax.jit(learner.adapt)
    adapted = adapt(variables, task.support)
    outputs = learner.predict(adapted, task.query.x)
    each = members(learner, adapted, task.query.x)
    assert each.shape == (MEMBERS, *outputs.shape)
    close(np.exp(each).sum(-1), np.ones(each.shape[:2]))
    close(np.exp(outputs), np.exp(each).mean(0))
    assert np.ptp(each, axis=0).max() > 1e-2

    close(adapt(variables, task.support), adapted, rtol=0)
    other = adapt(variables, task.support, key=jax.random.key(5))
    assert differs(other.params, adapted.params)


@x64
def test_a_scalar_rate_is_a_constant_one():
    tasks = wide_blobs()
    wide = blob_learner()
    narrow = blob_learner(scalar_rates=True)
    params = params_of(network(), 0.2, 0.1, -4.0, -5.0)
    scalars = {**params, "prior_rate": jnp.array(0.2), "posterior_rate": jnp.array(0.1)}
    found = grads_of(wide, params, tasks)
    same = grads_of(narrow, scalars, tasks)
    close(same.metrics, found.metrics)
    close(same.grads["model"], found.grads["model"])
    total = sum(jnp.sum(g) for g in jax.tree.leaves(found.grads["prior_rate"]))
    close(same.grads["prior_rate"], total)


def test_absent_classes_are_masked():
    task = one(blob_batch())
    support = ml.Examples(
        x=task.support.x, y=task.support.y, mask=task.support.mask & (task.support.y != 2)
    )
    learner = blob_learner(mask_absent_classes=True)
    variables = jax.jit(learner.init)(jax.random.key(0), task)
    adapted = jax.jit(learner.adapt)(variables, support)
    outputs = learner.predict(adapted, task.query.x)
    assert outputs.shape[-1] == WAYS and (outputs[:, 2] < -1e6).all()


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"combine": "vote"}, "combine is 'vote'.*probabilities, mean"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": True}, "num_samples is True"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0"),
        ({"kl_weight": float("nan")}, "kl_weight is nan"),
        ({"initial_std": 0.0}, "initial_std is 0.0.*above 0"),
        ({"initial_std": True}, "initial_std is True"),
        ({"initial_rate": "0.1"}, "initial_rate is '0.1'"),
        ({"initial_rate": -0.1}, "initial_rate is -0.1.*0 or more"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"differentiation": ml.inner.Implicit()}, "platipus cannot learn"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        blob_learner(**options)
    if "combine" in options:
        with pytest.raises(ValueError, match="no finite derivative"):
            platipus(plain(), CE, optax.adam(0.1), combine="mean")


@pytest.mark.parametrize("scalar_rates", [False, True])
def test_no_array_stands_for_two_parameters(scalar_rates):
    """A compiled step may be given each of them to write into."""
    learner = blob_learner(scalar_rates=scalar_rates)
    leaves = jax.tree.leaves(learner.init(jax.random.key(0), one(blob_batch())))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@pytest.mark.slow  # a variant of what the registry checks
def test_keeps_the_contract(strict_dtypes):
    learner = platipus(
        linen(), CE, optax.sgd(0.1), combine="probabilities", num_samples=2, task_chunk=8
    )
    assert ml.describe(learner)["num_samples"] == 2
    check_learner(learner, blob_batch())
