"""BMG: where it is MAML, the steps of the target, what is not differentiated."""

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
    descend,
    differs,
    grads_of,
    model_grads,
    network,
    of,
    quadratic_loss,
    quadratic_maml,
    quadratic_model,
    wide_blobs,
)
from jax.flatten_util import ravel_pytree
from tiny import blob_batch, linen, one, plain, sine_batch, tanh_net

import metalearn as ml
from metalearn.algorithms.gradient.bmg import bmg, divergence
from metalearn.inner import Implicit
from metalearn.testing import check_learner

x64 = pytest.mark.usefixtures("x64")
BETA = 0.3  # target_rate


@functools.cache  # it keeps what was compiled for it
def quadratic(opt=None, steps=2, **options):
    options = {
        "match": "l2",
        "target_rate": BETA,
        "num_steps": steps,
        "task_chunk": TASKS,
        **options,
    }
    opt = optax.sgd(RATE) if opt is None else opt
    return bmg(quadratic_model(), quadratic_loss, opt, **options)


@functools.cache  # it keeps what was compiled for it
def learner_of(**options):
    options = {"num_steps": 2, "target_rate": BETA, "task_chunk": 3, **options}
    return bmg(plain(), CE, optax.sgd(INNER), **options)


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


# -- Reductions -------------------------------------------------------------------------


@x64
@pytest.mark.parametrize("mode", ["reverse", "first_order"])
@pytest.mark.parametrize("keep", [None, "head"])
def test_one_target_step_and_squared_distance_are_maml(mode, keep):
    """Exactly `target_rate` times its meta-gradient, of what does not adapt as well."""
    select = None if keep is None else lambda path, leaf: keep in path
    options = dict(adapt_filter=select, differentiation=mode)
    found = model_grads(learner_of(match="l2", **options), network(), wide_blobs())
    plain_maml = ml.maml(
        plain(), CE, optax.sgd(INNER), num_steps=2, task_chunk=3, **options
    )
    expected = model_grads(plain_maml, network(), wide_blobs())
    close(found.grads, scaled(expected.grads, BETA), rtol=1e-12)
    for name in ("query/loss", "query/accuracy", "support/loss"):
        close(found.metrics[name], expected.metrics[name], rtol=1e-12)
    close(found.metrics["target/loss"], expected.metrics["query/loss"], rtol=1e-12)


def test_it_is_maml_with_batch_norm_too():
    """The target's query step sees how the statistics of the support set move."""
    tasks = blob_batch()
    maml = ml.maml(linen(), CE, optax.sgd(0.1), num_steps=1, task_chunk=3)
    variables = jax.jit(maml.init)(jax.random.key(0), one(tasks))
    learner = bmg(linen(), CE, optax.sgd(0.1), match="l2", target_rate=BETA, task_chunk=3)
    run = {
        m: jax.jit(lambda v, t, m=m: m.estimate(v, t, key=jax.random.key(0)).grads)
        for m in (maml, learner)
    }
    expected = scaled(run[maml](variables, tasks), BETA)
    # One vector, for the biases before the batch norm have no gradient.
    pair = [ravel_pytree(g)[0] for g in (run[learner](variables, tasks), expected)]
    close(*pair, rtol=1e-4)


@x64
@pytest.mark.parametrize("match", ["kl", "l2"])
def test_no_target_step_is_nothing_to_learn(match):
    learner = learner_of(match=match, target_rate=0.0)
    found = model_grads(learner, network(), wide_blobs())
    assert np.abs(found.metrics["match/loss"]).max() < 1e-15
    assert max(np.abs(g).max() for g in jax.tree.leaves(found.grads)) < 1e-14


@x64
def test_adaptation_is_that_of_maml():
    tasks = bench()[1]
    variables, support = of(THETA), one(tasks).support
    found = jax.jit(quadratic(target_steps=3).adapt)(variables, support).params
    expected = jax.jit(quadratic_maml(2).adapt)(variables, support).params
    close(found, expected, rtol=1e-14)


# -- The target -------------------------------------------------------------------------


@x64
@pytest.mark.parametrize("further", [1, 4])
def test_quadratic_has_its_closed_form(further):
    """`-((I - alpha A)^K)' (t - x_K)`, which for L > 1 is no gradient of MAML's."""
    (a, c, b, e), tasks = bench()
    terms, losses = [], []
    for m, y, n, f in zip(a, c, b, e):
        x = descend(m, y, THETA, 2)
        on = descend(m, y, x, further - 1)
        target = on - BETA * n @ (on - f)
        power = np.linalg.matrix_power(np.eye(len(x)) - RATE * m, 2)
        terms.append(-power @ (target - x))
        losses.append(0.5 * np.sum((target - x) ** 2))
    found = model_grads(quadratic(target_steps=further), THETA, tasks)
    close(found.grads, np.mean(terms, 0), rtol=1e-12)
    close(found.metrics["match/loss"], np.stack(losses), rtol=1e-12)
    maml = scaled(model_grads(quadratic_maml(2), THETA, tasks).grads, BETA)
    assert differs(found.grads, maml) == (further > 1)


@x64
def test_target_continues_the_inner_optimiser():
    """With momentum the K + 1st step depends on the K before it."""
    tasks, opt = bench()[1], optax.sgd(RATE, momentum=0.9)
    found = model_grads(quadratic(opt, target_steps=3, target_rate=0.0), THETA, tasks)
    variables = of(THETA)

    def after(steps):
        learner = quadratic(opt, steps=steps)
        adapt = jax.vmap(lambda s: learner.adapt(variables, s).params)
        return jax.jit(adapt)(tasks.support)

    apart = after(4) - after(2)
    close(found.metrics["match/loss"], 0.5 * np.sum(apart**2, -1), rtol=1e-10)


@x64
@pytest.mark.parametrize(("match", "temperature"), [("kl", 2.0), ("l2", 1.0)])
def test_meta_gradient_is_that_of_the_match_with_the_target_held(match, temperature):
    """By finite differences; the target is computed here without the library."""
    task, theta = one(wide_blobs()), network()
    rows = {"support": task.support, "query": task.query}

    def loss(params, part):
        return CE(tanh_net(params, rows[part].x), rows[part])

    def step(params, part, rate):
        slope = jax.grad(loss)(params, part)
        return jax.tree.map(lambda p, g: p - rate * g, params, slope)

    def learner(params):
        for _ in range(2):
            params = step(params, "support", INNER)
        return params

    @jax.jit
    def target_of(theta):
        target = learner(theta)
        for _ in range(2):
            target = step(target, "support", INNER)
        return step(target, "query", BETA)

    target = target_of(theta)

    def objective(params):
        params = learner(params)
        if match == "l2":
            gaps = jax.tree.map(lambda t, p: jnp.sum((t - p) ** 2) / 2, target, params)
            return sum(jax.tree.leaves(gaps))
        p, q = (
            jax.nn.softmax(tanh_net(w, task.query.x) / temperature)
            for w in (target, params)
        )
        return jnp.mean(jnp.sum(p * (jnp.log(p) - jnp.log(q)), -1))

    batch = jax.tree.map(lambda leaf: leaf[None], task)
    options = dict(match=match, temperature=temperature, target_steps=3, task_chunk=1)
    found = model_grads(learner_of(**options), theta, batch)
    objective = jax.jit(objective)
    close(found.metrics["match/loss"][0], objective(theta), rtol=1e-10)
    rng = np.random.default_rng(0)
    along = jax.tree.map(lambda p: rng.normal(size=p.shape), theta)
    ends = [
        objective(jax.tree.map(lambda p, d, h=h: p + h * d, theta, along))
        for h in (1e-5, -1e-5)
    ]
    slope = jax.tree.map(lambda g, d: jnp.sum(g * d), found.grads, along)
    close(sum(jax.tree.leaves(slope)), (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


@x64
def test_divergence_is_of_the_target_from_the_learner():
    """Target first; masked rows do not count; the target has no derivative."""
    rng = np.random.default_rng(0)
    target, logits = 5 * rng.normal(size=(2, 3, 4))
    mask = jnp.array([True, True, False])
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (target / 3, logits / 3))
    expected = np.sum(p * np.log(p / q), -1)[:2].mean()
    slope = jax.jit(jax.value_and_grad(divergence, argnums=(0, 1)))
    found, slopes = slope(jnp.asarray(target), jnp.asarray(logits), mask, 3.0)
    close(found, expected)
    assert abs(found - np.sum(q * np.log(q / p), -1)[:2].mean()) > 1e-2
    assert not np.any(slopes[0])
    close(slopes[1], np.where(mask[:, None], (q - p) / 3 / 2, 0))


def test_masked_classes_at_minus_infinity_do_no_harm():
    """Where a logit that never wins is beyond the numbers of the dtype."""
    target = jnp.asarray([[1.0, 2.0, -jnp.inf]])
    logits = jnp.asarray([[2.0, 1.0, -jnp.inf]])
    run = jax.jit(jax.value_and_grad(lambda z, t: divergence(t, z, jnp.ones(1, bool), 1.0)))
    found, slope = run(logits, target)
    expected, part = run(logits[:, :2], target[:, :2])
    close(found, expected, rtol=1e-6)
    close(slope, jnp.pad(part, ((0, 0), (0, 1))), rtol=1e-6)


@x64
def test_small_target_step_with_kl_is_preconditioned_by_the_fisher_matrix():
    task, theta = one(wide_blobs()), network()
    flat, back = ravel_pytree(theta)

    def logits(v):
        return tanh_net(back(v), task.query.x)

    def inner(v):
        slope = jax.grad(lambda v: CE(tanh_net(back(v), task.support.x), task.support))
        return v - INNER * slope(v)

    @jax.jit
    def preconditioned(v):
        x, jacobian = inner(v), jax.jacobian(inner)(v)
        probs, outward = jax.nn.softmax(logits(x)), jax.jacobian(logits)(x)
        hessian = jax.vmap(lambda p: jnp.diag(p) - p[:, None] * p[None])(probs)
        fisher = jnp.einsum("qwd,qwv,qve->de", outward, hessian, outward) / len(probs)
        return jacobian.T @ fisher @ jax.grad(lambda v: CE(logits(v), task.query))(x)

    expected = preconditioned(flat)
    rate = 1e-6
    batch = jax.tree.map(lambda leaf: leaf[None], task)
    learner = learner_of(num_steps=1, target_rate=rate, task_chunk=1)
    found = ravel_pytree(model_grads(learner, theta, batch).grads)[0]
    close(found / rate, expected, rtol=1e-5)


# -- Learned inner rates ----------------------------------------------------------------


@x64
def test_inner_rate_is_learned_by_matching():
    """`d x_K / d alpha = -A (theta - c)` for one step."""
    (a, c, b, e), tasks = bench()
    learner = quadratic(optax.sgd, steps=1, inner_hparams=RATE, target_steps=2)
    params = of(THETA, inner=RATE)
    found = grads_of(learner, params, tasks).grads
    terms = []
    for m, y, n, f in zip(a, c, b, e):
        x = descend(m, y, THETA, 1)
        on = descend(m, y, x, 1)
        terms.append((on - BETA * n @ (on - f) - x) @ (m @ (THETA - y)))
    close(found["inner"], np.mean(terms), rtol=1e-10)
    fixed = model_grads(quadratic(steps=1, target_steps=2), THETA, tasks).grads
    close(found["model"], fixed, rtol=1e-12)


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"target_steps": 0}, "target_steps is 0"),
        ({"target_steps": True}, "target_steps is True"),
        ({"target_rate": -0.1}, r"target_rate is -0\.1"),
        ({"target_rate": float("nan")}, "target_rate is nan"),
        ({"target_rate": True}, "target_rate is True; expected a finite number of 0 or"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"match": "mse"}, "match is 'mse'; expected one of kl, l2"),
        ({"norm": "per_step"}, "per_step.*'support'"),
        ({"differentiation": Implicit()}, "bmg cannot learn"),
        ({"task_chunk": 0}, "task_chunk is 0"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        learner_of(**options)


def test_kl_needs_classes():
    tasks = sine_batch()
    learner = bmg(plain(1), ml.losses.mse, optax.sgd(0.01))
    params = {"body": {"w": jnp.ones((1, 2)), "b": jnp.zeros(2)}}
    params["head"] = {"w": jnp.ones((2, 1)), "b": jnp.zeros(1)}
    with pytest.raises(ValueError, match=r"match='kl' got outputs.*match='l2'"):
        model_grads(learner, params, tasks)


def test_absent_classes_do_no_harm():
    tasks = blob_batch()
    keep = tasks.support.mask & (tasks.support.y != 2)
    support = ml.Examples(x=tasks.support.x, y=tasks.support.y, mask=keep)
    query = ml.Examples(x=tasks.query.x, y=tasks.query.y, mask=tasks.query.y != 2)
    learner = learner_of(mask_absent_classes=True, target_steps=2)
    cut = ml.Task(support=support, query=query)
    params = plain().init(jax.random.key(0), tasks.support.x).params
    found = model_grads(learner, params, cut)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(found.grads))
    assert np.all(found.metrics["match/loss"] > 0)


@pytest.mark.slow  # built by `bilevel`, as maml is
def test_keeps_the_contract(strict_dtypes):
    learner = bmg(linen(), CE, optax.sgd(0.1), target_steps=2, task_chunk=8)
    assert ml.describe(learner)["match"] == "kl"
    check_learner(learner, blob_batch())
