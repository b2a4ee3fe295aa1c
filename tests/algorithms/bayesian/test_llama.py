"""LLAMA: evidence in closed form, curvature against autodiff, samples, MAML."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import CE, close, differs, model_grads, network, of, wide_blobs
from jax.flatten_util import ravel_pytree
from tiny import WAYS, blob_batch, linen, one, plain, sine_batch, tanh_net

import metalearn as ml
from metalearn.algorithms.bayesian.laplace import CURVATURES, laplace, output_hessian
from metalearn.algorithms.bayesian.llama import llama
from metalearn.testing import check_learner

x64 = pytest.mark.usefixtures("x64")
TAU = 0.7


def blob_learner(**options):
    options = {"num_steps": 2, "eta": 0.3, "prior_precision": TAU, **options}
    return llama(plain(), CE, optax.sgd(0.3), task_chunk=3, **options)


def blob_maml(**options):
    return ml.maml(plain(), CE, optax.sgd(0.3), num_steps=2, task_chunk=3, **options)


def per_example(params, x):
    """Outputs and their derivatives in all parameters as matrices `[N, W, P]`."""
    flat, unravel = ravel_pytree(params)

    def outputs(flat):
        return tanh_net(unravel(flat), x)

    found = jax.jit(lambda f: (outputs(f), jax.jacobian(outputs)(f)))(flat)
    return tuple(map(np.asarray, found))


def full_matrix(params, support):
    """The generalised Gauss-Newton matrix in NumPy, from the Fisher of a softmax."""
    outputs, jacobian = per_example(params, support.x)
    p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    fisher = np.einsum("ni,ij->nij", p, np.eye(WAYS)) - np.einsum("ni,nj->nij", p, p)
    return np.einsum("nip,nij,njq->pq", jacobian, fisher, jacobian)


# -- The evidence -----------------------------------------------------------------------


@x64
@pytest.mark.parametrize("curvature", ["last_layer", "kronecker"])
def test_linear_gaussian_task_gives_its_evidence(curvature):
    """`y ~ N(X theta, s^2 + X X' / tau)`; one Newton step is the mode of the posterior."""
    rng, num, dim, std = np.random.default_rng(0), 6, 3, 0.4
    x, y, theta = rng.normal(size=(num, dim)), rng.normal(size=num), rng.normal(size=dim)
    precision = x.T @ x / std**2 + TAU * np.eye(dim)

    def loss(outputs, examples):
        gaps = (outputs - examples.y) / std
        each = 0.5 * (gaps**2 + np.log(2 * np.pi * std**2))
        return ml.masked_mean(each, examples.mask)

    # `grad` is of the mean; the pull of the prior is zero where the step starts.
    newton = optax.stateless(
        lambda grad, _: {
            "head": -num * jnp.asarray(np.linalg.inv(precision)) @ grad["head"]
        }
    )
    model = ml.from_apply_fn(
        lambda key, x: {"head": jnp.zeros(dim)}, lambda params, x: x @ params["head"]
    )
    learner = llama(
        model,
        loss,
        newton,
        eta=1 / num,
        prior_precision=TAU,
        curvature=curvature,
        task_chunk=1,
    )
    part = ml.Examples.of(jnp.asarray(x), jnp.asarray(y))
    tasks = ml.stack_tasks([ml.Task(support=part, query=part)])
    found = model_grads(learner, {"head": theta}, tasks).metrics
    phi = theta + np.linalg.solve(precision, x.T @ (y - x @ theta)) / std**2
    close(found["laplace/log_det"], np.linalg.slogdet(precision)[1][None])
    objective = num * (found["query/loss"][0] + 0.5 / num * found["laplace/log_det"][0])
    prior = 0.5 * TAU * np.sum((phi - theta) ** 2) - 0.5 * dim * np.log(TAU)
    covariance = std**2 * np.eye(num) + x @ x.T / TAU
    gap = y - x @ theta
    evidence = -0.5 * (
        gap @ np.linalg.solve(covariance, gap)
        + np.linalg.slogdet(covariance)[1]
        + num * np.log(2 * np.pi)
    )
    close(objective + prior, -evidence)


@x64
@pytest.mark.parametrize("how", ["reverse", "first_order"])
def test_no_weight_is_maml(how):
    params, tasks = network(), wide_blobs()
    learner = blob_learner(eta=0.0, differentiation=how)
    expected = model_grads(blob_maml(differentiation=how), params, tasks)
    found = model_grads(learner, params, tasks)
    close(found.grads, expected.grads, rtol=0)
    close(found.metrics, expected.metrics, rtol=0)
    task = one(tasks)
    pair = [
        made.predict(jax.jit(made.adapt)(of(params), task.support), task.query.x)
        for made in (learner, blob_maml())
    ]
    close(*pair, rtol=0)


# -- Curvature --------------------------------------------------------------------------


@functools.cache
def adapted_blobs():
    with jax.enable_x64(True):
        support = one(wide_blobs()).support
        params = jax.jit(blob_maml().adapt)(of(network()), support).params
        return params, support, full_matrix(params, support)


def log_det_of(curvature, **options):
    task = jax.tree.map(lambda leaf: leaf[:1], wide_blobs())
    learner = blob_learner(curvature=curvature, **options)
    return model_grads(learner, network(), task).metrics["laplace/log_det"][0]


def test_a_diagonal_of_no_convex_loss_is_the_prior():
    """What is below zero would have no logarithm, and no square root to draw by."""
    found = laplace([jnp.ones((1, 2, 3))], -jnp.eye(2)[None], TAU, "diagonal")
    close(found.log_det, 3 * np.log(TAU), 1e-6)
    assert jnp.isfinite(found.draw(jax.random.key(0))[0]).all()


@x64
def test_diagonal_and_head_are_those_of_the_exact_matrix():
    params, _, matrix = adapted_blobs()
    close(log_det_of("diagonal"), np.log(np.diag(matrix) + TAU).sum())
    size = params["head"]["b"].size + params["head"]["w"].size
    head = matrix[-size:, -size:]
    close(log_det_of("last_layer"), np.linalg.slogdet(head + TAU * np.eye(size))[1])
    whole = np.linalg.slogdet(matrix + TAU * np.eye(len(matrix)))[1]
    close(log_det_of("last_layer", head=""), whole)
    scaled = np.log(3.0 * np.diag(matrix) + TAU).sum()
    close(log_det_of("diagonal", likelihood_weight=3.0), scaled)


@x64
def test_kronecker_keeps_partial_traces_and_exact_biases():
    params, _, matrix = adapted_blobs()
    total, start = 0.0, 0
    for leaf in jax.tree.leaves(params):
        block = matrix[start : start + leaf.size, start : start + leaf.size]
        start += leaf.size
        if leaf.ndim == 2:
            four = block.reshape(*leaf.shape, *leaf.shape)
            a, b = np.einsum("iojo->ij", four), np.einsum("ioip->op", four)
            block = np.kron(a, b) / np.trace(block)
        total += np.linalg.slogdet(block + TAU * np.eye(leaf.size))[1]
    close(log_det_of("kronecker"), total)


@x64
def test_kronecker_is_exact_for_one_example_of_a_dense_layer():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 4)), rng.normal(size=(4, WAYS))
    jacobian = jnp.asarray(jax.jacobian(lambda w: x @ w)(w))
    examples = ml.Examples.of(jnp.asarray(x), jnp.zeros(1, jnp.int32))
    hessian = output_hessian(CE, jnp.asarray(x @ w), examples)
    found = laplace(jacobian, hessian, TAU, "kronecker").log_det
    close(found, laplace(jacobian, hessian, TAU, "last_layer").log_det)


@x64
@pytest.mark.parametrize(
    "curvature",
    [
        c if c == "kronecker" else pytest.param(c, marks=pytest.mark.slow)
        for c in CURVATURES
    ],
)
def test_meta_gradient_by_finite_differences(curvature):
    tasks, params = wide_blobs(), network()
    learner = blob_learner(curvature=curvature)
    run = jax.jit(lambda p: learner.estimate(of(p), tasks, key=jax.random.key(0)))
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)

    def objective(scale):
        found = run(jax.tree.map(lambda p, d: p + scale * d, params, direction)).metrics
        return (found["query/loss"] + 0.15 * found["laplace/log_det"]).mean()

    grads = run(params).grads["model"]
    along = jax.tree.map(lambda g, d: jnp.sum(g * d), grads, direction)
    difference = (objective(1e-5) - objective(-1e-5)) / 2e-5
    close(sum(jax.tree.leaves(along)), difference, rtol=1e-6)


@x64
def test_layers_without_curvature_have_that_of_the_prior():
    jacobian = {"dead": jnp.zeros((2, WAYS, 3, 4)), "bias": jnp.zeros((2, WAYS, 5))}
    hessian = jnp.stack([jnp.eye(WAYS)] * 2)

    @jax.jit
    def log_det(jacobian):
        return laplace(jacobian, hessian, TAU, "kronecker").log_det

    close(log_det(jacobian), 17 * np.log(TAU))
    slopes = jax.jit(jax.grad(log_det))(jacobian)
    assert all(np.isfinite(s).all() for s in jax.tree.leaves(slopes))


@pytest.mark.parametrize("curvature", ["kronecker", "last_layer"])
def test_large_curvature_keeps_its_determinant_in_single_precision(curvature):
    """Features of a norm of some hundred: rounding outweighs a prior of 1e-3."""
    rng = np.random.default_rng(0)
    x, p = 30 * np.abs(rng.normal(size=(25, 64))), rng.dirichlet(np.ones(5), size=25)
    hessian = np.einsum("ni,ij->nij", p, np.eye(5)) - np.einsum("ni,nj->nij", p, p)
    jacobian = np.einsum("nf,io->nifo", x, np.eye(5))

    def around(dtype, precision=1e-3):
        leaves = {"w": jnp.asarray(jacobian, dtype)}
        return laplace(leaves, jnp.asarray(hessian, dtype), precision, curvature)

    single = around(jnp.float32)
    assert np.isfinite(single.draw(jax.random.key(0))["w"]).all()
    half = around(jnp.bfloat16, precision=100.0)
    assert half.draw(jax.random.key(0))["w"].dtype == jnp.bfloat16
    close(half.log_det, around(jnp.float32, precision=100.0).log_det, rtol=0.02)
    with jax.enable_x64(True):
        close(single.log_det, around(jnp.float64).log_det, rtol=5e-3)


# -- Samples ----------------------------------------------------------------------------


@x64
@pytest.mark.parametrize("curvature", CURVATURES)
def test_draws_have_the_covariance_of_the_posterior(curvature):
    """Seen through the quadratic form of a whitened draw: `d' H d` has P degrees."""
    rng, num, count = np.random.default_rng(1), 4, 4000
    jacobian = {
        "b": rng.normal(size=(num, WAYS, 2)),
        "w": rng.normal(size=(num, WAYS, 3, 2)),
    }
    jacobian = jax.tree.map(jnp.asarray, jacobian)
    hessian = jnp.stack([jnp.eye(WAYS) + 0.3] * num)
    around = laplace(jacobian, hessian, TAU, curvature)
    keys = jax.random.split(jax.random.key(0), count)
    flat = jax.vmap(lambda key: ravel_pytree(around.draw(key))[0])(keys)
    covariance = np.cov(np.asarray(flat).T)
    error = 4 * 8 * np.sqrt(2 / count) / 2  # of a log-determinant, generously
    assert abs(np.linalg.slogdet(covariance)[1] + around.log_det) < error
    both = np.asarray(jacobian["b"]), np.asarray(jacobian["w"]).reshape(num, WAYS, 6)
    full = np.concatenate(both, -1)
    matrix = np.einsum("nip,nij,njq->pq", full, hessian, full) + TAU * np.eye(8)
    if curvature == "last_layer":
        close(covariance, np.linalg.inv(matrix), rtol=0.1)
    if curvature == "diagonal":
        close(np.diag(covariance), 1 / np.diag(matrix), rtol=0.1)


@x64
def test_samples_of_evaluation():
    params, support, matrix = adapted_blobs()
    task, variables = one(wide_blobs()), of(network())
    learner = blob_learner(num_samples=2000, curvature="diagonal")
    adapt = jax.jit(learner.adapt)
    adapted = adapt(variables, support)
    flat = np.asarray(jax.vmap(lambda p: ravel_pytree(p)[0])(adapted.params))
    std = 1 / np.sqrt(np.diag(matrix) + TAU)
    gaps = (flat.mean(0) - ravel_pytree(params)[0]) / std
    assert np.abs(gaps).max() < 5 / np.sqrt(2000)
    np.testing.assert_allclose(flat.std(0), std, rtol=0.1)

    outputs = learner.predict(adapted, task.query.x)
    logits = jax.vmap(lambda p: tanh_net(p, task.query.x))(adapted.params)
    close(np.exp(outputs), np.asarray(jax.nn.softmax(logits, -1)).mean(0))
    close(adapt(variables, support), adapted, rtol=0)
    other = adapt(variables, support, key=jax.random.key(5))
    assert differs(other.params, adapted.params)


@x64
def test_only_what_adapts_is_uncertain():
    learner = blob_learner(
        num_samples=3, adapt_filter=lambda path, leaf: path.startswith("head")
    )
    adapted = jax.jit(learner.adapt)(of(network()), adapted_blobs()[1]).params
    assert np.ptp(adapted["body"]["w"], axis=0).max() == 0
    assert np.ptp(adapted["head"]["w"], axis=0).min() > 0


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eta": -1.0}, "eta is -1.0.*0 or more"),
        ({"eta": True}, "eta is True"),
        ({"prior_precision": 0.0}, "prior_precision is 0.0.*above 0"),
        ({"prior_precision": float("nan")}, "prior_precision is nan"),
        ({"likelihood_weight": "1"}, "likelihood_weight is '1'"),
        ({"num_samples": -1}, "num_samples is -1"),
        ({"curvature": "kfac"}, "curvature is 'kfac'.*kronecker"),
        ({"combine": "vote"}, "combine is 'vote'"),
        ({"norm": "batch"}, "norm='batch'.*'support'"),
        ({"differentiation": ml.inner.Implicit()}, "llama cannot learn"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        blob_learner(**options)


def test_predictions_of_numbers_are_means():
    learner = llama(plain(1), ml.losses.mse, optax.sgd(0.1), num_samples=3)
    task = one(sine_batch())
    variables = learner.init(jax.random.key(0), task)
    adapted = jax.jit(learner.adapt)(variables, task.support)
    outputs = jax.vmap(lambda p: tanh_net(p, task.query.x))(adapted.params)
    close(learner.predict(adapted, task.query.x), outputs.mean(0), rtol=1e-5)


def test_blocks_that_are_too_large_are_refused_by_name():
    wide = ml.from_apply_fn(
        lambda key, x: {"head": {"w": jnp.zeros((x.shape[-1], 3000))}},
        lambda params, x: x @ params["head"]["w"],
    )
    task = one(blob_batch())
    for curvature, words in (
        ("kronecker", r"3000 x 3000 for head/w.*diagonal"),
        ("last_layer", r"12000 x 12000 for the head"),
    ):
        learner = llama(wide, CE, optax.sgd(0.1), curvature=curvature)
        with pytest.raises(ValueError, match=words):
            learner.init(jax.random.key(0), task)
    llama(wide, CE, optax.sgd(0.1), curvature="diagonal").init(jax.random.key(0), task)
    with pytest.raises(ValueError, match=r"'tail' occurs in no path.*body/b"):
        blob_learner(curvature="last_layer", head="tail").init(jax.random.key(0), task)


@pytest.mark.slow  # a variant of what the registry checks
def test_keeps_the_contract(strict_dtypes):
    learner = llama(
        linen(),
        CE,
        optax.sgd(0.1),
        eta=0.1,
        prior_precision=1.0,
        num_samples=2,
        task_chunk=8,
    )
    assert ml.describe(learner)["curvature"] == "kronecker"
    check_learner(learner, blob_batch(), tolerance=1e-3)
