"""iMAML: closed forms on quadratics, finite differences, memory, bad curvature."""

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
    grads_of,
    network,
    of,
    quadratic_loss,
    quadratic_maml,
    quadratic_model,
    wide_blobs,
)
from tiny import blob_batch, one, plain

import metalearn as ml
from metalearn.algorithms.gradient.imaml import imaml
from metalearn.inner import Implicit, unroll

x64 = pytest.mark.usefixtures("x64")
LAM = 2.0
EYE = np.eye(DIM)


def quadratic(opt=None, steps=300, **options):
    options = {"lam": LAM, "cg_steps": DIM, "task_chunk": TASKS, **options}
    opt = optax.sgd(0.2) if opt is None else opt
    return imaml(quadratic_model(), quadratic_loss, opt, num_steps=steps, **options)


def minima(a, c, lam=LAM):
    """`(A + lam I)^-1 (A c + lam theta)` of each task."""
    return np.stack(
        [np.linalg.solve(m + lam * EYE, m @ y + lam * THETA) for m, y in zip(a, c)]
    )


def closed_form(damping=0.0, lam=LAM):
    (a, c, b, e), _ = bench()
    terms = [
        np.linalg.solve(EYE + (m + damping * EYE) / lam, n @ (p - f))
        for m, n, p, f in zip(a, b, minima(a, c, lam), e)
    ]
    return np.mean(terms, 0)


@x64
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_meta_gradient_has_its_closed_form(damping):
    found = grads_of(quadratic(damping=damping), THETA, bench()[1])
    close(found.grads, closed_form(damping), rtol=1e-8)
    assert found.metrics["inner/residual"].max() < 1e-8
    assert found.metrics["solve/residual"].max() < 1e-8
    assert not found.metrics["solve/negative_curvature"].any()


@x64
def test_adaptation_finds_the_proximal_minimum_in_evaluation_too():
    (a, c, _, _), tasks = bench()
    learner, variables = quadratic(), ml.Variables(params=jnp.asarray(THETA), state={})
    adapted = jax.jit(jax.vmap(lambda s: learner.adapt(variables, s).params))(tasks.support)
    close(adapted, minima(a, c), rtol=1e-8)


@x64
def test_inner_optimiser_does_not_matter_at_the_minimum():
    (a, _, _, _), tasks = bench()
    first = jax.tree.map(lambda leaf: leaf[:1], tasks)
    hessian = jnp.asarray(a[0] + LAM * EYE)
    newton = optax.stateless(lambda g, _: -jnp.linalg.solve(hessian, g))
    by_newton = grads_of(quadratic(newton, steps=1), THETA, first).grads
    momentum = quadratic(optax.sgd(0.1, momentum=0.5))
    for other in (quadratic(), momentum):
        close(grads_of(other, THETA, first).grads, by_newton, rtol=1e-8)


@x64
def test_stiff_spring_is_first_order_maml_at_the_start():
    """`lam -> inf`: phi = theta and the meta-gradient is the query gradient there."""
    (_, _, b, e), tasks = bench()
    lam = 1e7
    found = grads_of(quadratic(optax.sgd(1 / lam), steps=5, lam=lam), THETA, tasks).grads
    close(found, np.mean([n @ (THETA - f) for n, f in zip(b, e)], 0), rtol=1e-6)


@x64
def test_every_step_of_the_solve_helps_and_as_many_as_dimensions_are_exact():
    _, tasks = bench()
    first = jax.tree.map(lambda leaf: leaf[:1], tasks)
    runs = {s: grads_of(quadratic(cg_steps=s), THETA, first) for s in (1, 2, DIM)}
    exact = runs[DIM].grads
    (a, c, b, e), _ = bench()
    residual_of_phi = b[0] @ (minima(a, c)[0] - e[0])
    close(exact, np.linalg.solve(EYE + a[0] / LAM, residual_of_phi), rtol=1e-8)

    def error(found):
        gap = np.asarray(found.grads - exact)
        return gap @ (EYE + a[0] / LAM) @ gap

    assert error(runs[1]) > 10 * error(runs[2]) > 0
    left = [float(runs[s].metrics["solve/residual"][0]) for s in runs]
    assert left[2] < 1e-8 < min(left[:2])


@x64
def test_agrees_with_the_implicit_rule_of_unroll_and_with_its_path():
    """Two other ways to the same gradient, for a network with a non-linear loss."""
    task = one(wide_blobs())
    steps, lam, options = 300, 2.0, dict(cg_steps=40)
    learner = imaml(plain(), CE, optax.sgd(0.3), num_steps=steps, lam=lam, **options)
    tasks = jax.tree.map(lambda leaf: leaf[None], task)
    found = grads_of(learner, network(), tasks)
    assert found.metrics["inner/residual"].max() < 1e-9

    def objective(theta, how):
        def loss(phi, step):
            del step
            gaps = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), phi, theta)
            outputs = plain().apply(ml.Variables(params=phi, state={}), task.support.x)[0]
            spring = 0.5 * lam * sum(jax.tree.leaves(gaps))
            return CE(outputs, task.support) + spring, {}

        phi = unroll(
            loss, theta, optax.sgd(0.3), num_steps=steps, differentiation=how
        ).params
        outputs = plain().apply(ml.Variables(params=phi, state={}), task.query.x)[0]
        return CE(outputs, task.query)

    for how in (Implicit(cg_steps=40), "reverse"):
        expected = jax.jit(jax.grad(lambda t, how=how: objective(t, how)))(network())
        close(found.grads, expected, rtol=1e-4 if how != "reverse" else 1e-7)


@x64
def test_meta_gradient_of_parameters_that_do_not_adapt():
    """By finite differences of the query loss, in a direction of every parameter."""
    learner = imaml(
        plain(),
        CE,
        optax.sgd(0.3),
        num_steps=200,
        cg_steps=20,
        adapt_filter=lambda path, leaf: "head" in path,
        task_chunk=3,
    )
    tasks, params = wide_blobs(), network()
    run = jax.jit(lambda p: learner.estimate(_state_free(p), tasks, key=jax.random.key(0)))
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)

    def loss(scale):
        moved = jax.tree.map(lambda p, d: p + scale * d, params, direction)
        return run(moved).metrics["query/loss"].mean()

    found = run(params)
    assert found.metrics["inner/residual"].max() < 1e-9
    for part in ("body", "head"):
        assert np.abs(found.grads[part]["w"]).max() > 1e-3
    along = jax.tree.map(lambda g, d: jnp.sum(g * d), found.grads, direction)
    difference = (loss(1e-5) - loss(-1e-5)) / 2e-5
    close(sum(jax.tree.leaves(along)), difference, rtol=1e-6)


def _state_free(params):
    return ml.Variables(params=params, state={})


@x64
def test_residual_tells_that_the_minimum_was_not_reached():
    tasks = bench()[1]
    short, long = (grads_of(quadratic(steps=s), THETA, tasks) for s in (2, 20))
    for found, steps in ((short, 2), (long, 20)):
        (a, c, _, _), _ = bench()
        phi = [
            descend(m + LAM * EYE, y, THETA, steps, rate=0.2)
            for m, y in zip(a, minima(a, c))
        ]
        slopes = [m @ (p - y) + LAM * (p - THETA) for m, y, p in zip(a, c, phi)]
        close(found.metrics["inner/residual"], np.linalg.norm(slopes, axis=-1), rtol=1e-8)
    assert short.metrics["inner/residual"].min() > long.metrics["inner/residual"].max()


@x64
def test_negative_curvature_gives_first_order_maml_and_is_reported():
    (a, c, b, e), tasks = bench()
    hollow = ml.Examples(
        x=-5 * tasks.support.x - 10 * EYE[None, None],
        y=tasks.support.y,
        mask=tasks.support.mask,
    )
    bent = ml.Task(support=hollow, query=tasks.query)
    found = grads_of(quadratic(steps=1), THETA, bent)
    assert found.metrics["solve/negative_curvature"].tolist() == [1.0] * TASKS
    phi = [THETA - 0.2 * (-5 * m - 10 * EYE) @ (THETA - y) for m, y in zip(a, c)]
    slopes = [n @ (p - f) for n, p, f in zip(b, phi, e)]
    close(found.grads, np.mean(slopes, 0))

    damped = grads_of(quadratic(steps=1, damping=100.0), THETA, bent)
    assert not damped.metrics["solve/negative_curvature"].any()


@x64
def test_pull_back_is_plain_descent_and_one_proximal_step():
    (a, c, b, e), tasks = bench()
    learner = quadratic(optax.sgd(RATE), steps=3, pull_back=True)
    ends = [descend(m, y, THETA, 3) for m, y in zip(a, c)]
    ends = [p - RATE * LAM * (p - THETA) for p in ends]
    variables = _state_free(jnp.asarray(THETA))
    close(
        jax.jit(jax.vmap(lambda s: learner.adapt(variables, s).params))(tasks.support),
        np.stack(ends),
    )
    terms = [
        np.linalg.solve(EYE + m / LAM, n @ (p - f)) for m, n, p, f in zip(a, b, ends, e)
    ]
    found = grads_of(learner, THETA, tasks)
    close(found.grads, np.mean(terms, 0))
    assert found.metrics["inner/residual"].min() > 1e-2


@x64
def test_damping_that_gives_the_direction_of_the_released_code():
    """`(2 I + H / 12)^-1` for lam = 2; see the docstring."""
    (a, c, b, e), tasks = bench()
    found = grads_of(quadratic(damping=22.0), THETA, tasks).grads
    slopes = [n @ (p - f) for n, p, f in zip(b, minima(a, c), e)]
    released = [np.linalg.solve(2 * EYE + m / 12, s) for m, s in zip(a, slopes)]
    close(6 * found, np.mean(released, 0), rtol=1e-8)


@x64
def test_without_a_spring_evaluation_is_that_of_first_order_maml():
    """Its params are those of the model, as the docstring says."""
    tasks, params = bench()[1], jnp.asarray(THETA)
    plain_steps = quadratic_maml(steps=3, differentiation="first_order")
    variables = jax.eval_shape(quadratic().init, jax.random.key(0), one(tasks))
    assert variables.params.shape == THETA.shape
    (a, c, _, _), _ = bench()
    found = jax.jit(plain_steps.adapt)(of(params), one(tasks).support).params
    close(found, descend(a[0], c[0], THETA, 3))


def test_memory_does_not_depend_on_the_number_of_steps():
    network = ml.from_apply_fn(
        lambda key, x: {"w": jnp.ones((4, 64)), "v": jnp.ones((64, 3))},
        lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"],
    )

    def bytes_of(make, steps):
        learner = make(network, CE, optax.sgd(0.1), num_steps=steps, task_chunk=3)
        tasks = blob_batch()
        variables = jax.eval_shape(learner.init, jax.random.key(0), one(tasks))
        run = jax.jit(lambda v, t, k: learner.estimate(v, t, key=k))
        compiled = run.lower(variables, tasks, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = bytes_of(imaml, 8), bytes_of(imaml, 64)
    assert many <= 1.1 * few, (few, many)
    unrolled = bytes_of(ml.maml, 64)
    assert unrolled > 3 * many, "the measurement sees no difference where there is one"


@x64
def test_adam_inside_is_allowed():
    """Nothing is differentiated but the loss, so its square root does no harm."""
    found = grads_of(quadratic(optax.adam(0.05), steps=3), THETA, bench()[1])
    assert np.isfinite(found.grads).all()


def test_absent_classes_are_masked():
    task = one(blob_batch())
    support = ml.Examples(
        x=task.support.x, y=task.support.y, mask=task.support.mask & (task.support.y != 2)
    )
    learner = imaml(plain(), CE, optax.sgd(0.1), num_steps=2, mask_absent_classes=True)
    variables = learner.init(jax.random.key(0), task)
    adapted = jax.jit(learner.adapt)(variables, support)
    assert adapted.present.tolist() == [True, True, False]
    assert (learner.predict(adapted, task.query.x).argmax(-1) != 2).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lam": 0.0}, r"lam is 0\.0; expected a finite number above 0"),
        ({"lam": float("inf")}, "lam is inf"),
        ({"lam": "2"}, "lam is '2'"),
        ({"damping": -1.0}, r"damping is -1\.0; expected a finite number of 0 or more"),
        ({"damping": True}, "damping is True"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"cg_steps": 0}, "cg_steps is 0"),
        ({"norm": "per_step"}, "per_step.*'support'"),
        ({"norm": "layer"}, "norm is 'layer'"),
        ({"task_chunk": 0}, "task_chunk is 0"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        imaml(plain(), CE, optax.sgd(0.1), **options)


def test_numbers_of_numpy_do_not_widen_small_floats():
    """And `describe` has them as numbers."""
    numbers = {"lam": np.float32(2), "damping": np.float32(1)}
    learner = imaml(plain(), CE, optax.sgd(0.1), num_steps=2, **numbers)
    assert (ml.describe(learner)["lam"], ml.describe(learner)["damping"]) == (2.0, 1.0)

    def small(leaf):
        return leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf

    tasks = jax.tree.map(small, blob_batch())
    params = jax.tree.map(small, plain().init(jax.random.key(0), tasks.support.x[0]).params)
    found = jax.eval_shape(
        lambda p: learner.estimate(_state_free(p), tasks, key=jax.random.key(0)).grads,
        params,
    )
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found)} == {"bfloat16"}


def test_bad_inner_optimiser_is_refused():
    with pytest.raises(TypeError, match="inner_opt is a float"):
        imaml(plain(), CE, 0.1)
