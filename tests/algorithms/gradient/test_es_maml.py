"""ES-MAML: the smoothed gradient and its error, objectives without a gradient, searches."""

import functools
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import (
    CE,
    DIM,
    INNER,
    RATE,
    TASKS,
    THETA,
    bench,
    close,
    descend,
    network,
    quadratic_loss,
    quadratic_model,
    wide_blobs,
)
from bench import of as nested
from jax.flatten_util import ravel_pytree
from tiny import WAYS, blob_batch, linen, one, plain

import metalearn as ml
from metalearn.algorithms.gradient.es_maml import _spread, es_maml
from metalearn.algorithms.gradient.evolution import climb, smoothed_gradient
from metalearn.testing import check_learner

x64 = pytest.mark.usefixtures("x64")


def error_rate(outputs, examples):
    return 1 - ml.metrics.accuracy(outputs, examples)


@functools.cache  # it keeps what was compiled for it
def quadratic(steps=2, **options):
    options = {"num_perturbations": 8, "num_queries": 2, "task_chunk": TASKS, **options}
    opt = options.pop("opt", optax.sgd(RATE))
    return es_maml(quadratic_model(), quadratic_loss, opt, num_steps=steps, **options)


@functools.cache  # it keeps what was compiled for it
def learner_of(adaptation="gradient", **options):
    opt = None if adaptation == "hill_climbing" else optax.sgd(INNER)
    options = {"num_perturbations": 2, "num_queries": 3, "task_chunk": 3, **options}
    return es_maml(plain(), CE, opt, adaptation=adaptation, **options)


def of(params):
    return ml.Variables(params=jax.tree.map(jnp.asarray, params), state={})


def estimates(learner, params, tasks, num=1):
    """Estimates for `num` keys, `[num, ...]`, at params or variables."""
    variables = params if isinstance(params, ml.Variables) else of(params)
    keys = jax.random.split(jax.random.key(1), num)
    return mapped(learner.estimate)(variables, tasks, keys)


@functools.cache
def mapped(estimate):
    return jax.jit(lambda v, t, keys: jax.lax.map(lambda k: estimate(v, t, key=k), keys))


@functools.cache
def exact():
    """MAML's gradient of each task, `[T, D]`, after two steps."""
    terms = []
    for m, y, n, f in zip(*bench()[0]):
        power = np.linalg.matrix_power(np.eye(DIM) - RATE * m, 2)
        terms.append(power @ n @ (descend(m, y, THETA, 2) - f))
    return np.stack(terms)


# -- The estimate -----------------------------------------------------------------------


@x64
@pytest.mark.parametrize("pairs", [4, 64])
def test_error_on_a_quadratic_falls_with_the_root_of_the_pairs(pairs):
    """Smoothing leaves the gradient of a quadratic as it is. A pair gives `e e' g`, whose
    variance is `(D + 1) |g|^2` in all, whatever the width."""
    repeats = 2000
    runs = estimates(quadratic(num_perturbations=pairs), THETA, bench()[1], repeats)
    gaps = np.asarray(runs.grads) - exact().mean(0)
    expected = (DIM + 1) * np.sum(exact() ** 2) / TASKS**2 / pairs
    squares = np.sum(gaps**2, -1)
    assert abs(squares.mean() / expected - 1) < 0.15
    assert np.abs(gaps.mean(0)).max() < 4 * np.sqrt(expected / repeats)


@x64
def test_width_of_the_smoothing_does_not_matter_on_a_quadratic():
    runs = [
        estimates(quadratic(sigma=sigma), THETA, bench()[1]).grads for sigma in (0.01, 1.0)
    ]
    close(*runs, rtol=1e-9)


@x64
def test_every_task_has_perturbations_of_its_own():
    """Two copies of a task: of shared ones the estimate would be that of one task."""
    task = jax.tree.map(lambda leaf: leaf[:1], bench()[1])
    twice = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), task)
    spread = [
        np.var(estimates(quadratic(num_perturbations=2), THETA, t, 500).grads, 0).sum()
        for t in (task, twice)
    ]
    assert 1.6 < spread[0] / spread[1] < 2.5


@x64
def test_chunks_of_tasks_and_of_perturbations_change_nothing():
    expected = estimates(quadratic(), THETA, bench()[1])
    for options in ({"perturbation_chunk": 2}, {"task_chunk": 1}, {"task_chunk": 3}):
        found = estimates(quadratic(**options), THETA, bench()[1])
        close(found.grads, expected.grads, rtol=1e-12)
        close(found.metrics, expected.metrics, rtol=1e-12)


@x64
@pytest.mark.parametrize("where", [-0.5, 0.0, 0.8])
def test_step_function_has_the_slope_of_its_smoothing(where):
    """`E [theta + sigma e > c]` is a normal distribution function of `theta`."""
    model = ml.from_apply_fn(
        lambda key, x: jnp.zeros(1), lambda params, x: jnp.broadcast_to(params, x.shape)
    )
    rows = ml.Examples.of(jnp.zeros((1, 1)), jnp.full((1, 1), 0.3))
    tasks = ml.stack_tasks([ml.Task(support=rows, query=rows)])
    num, sigma = 40_000, 0.5
    learner = es_maml(
        model,
        ml.losses.mse,
        optax.sgd(0.1),
        objective_fn=lambda outputs, examples: jnp.all(outputs > examples.y),
        num_steps=0,
        num_perturbations=num,
        sigma=sigma,
    )
    found = estimates(learner, jnp.array([where]), tasks)
    normal = NormalDist()
    place = (where - 0.3) / sigma
    error = np.abs(found.grads[0, 0] - normal.pdf(place) / sigma)
    assert error < 4 * np.sqrt(1 / num) / (2 * sigma)
    mean = found.metrics["smoothed/objective"][0, 0]
    assert abs(mean - normal.cdf(place)) < 4 * np.sqrt(0.25 / num)
    assert found.metrics["query/objective"][0, 0] == (where > 0.3)


@x64
def test_network_estimate_is_near_the_meta_gradient_of_maml():
    tasks, theta = wide_blobs(), network()
    options = dict(num_perturbations=50, sigma=1e-3)
    found = estimates(learner_of(**options), theta, tasks, 100)
    maml = ml.maml(plain(), CE, optax.sgd(INNER), task_chunk=3)
    expected = estimates(maml, nested(theta), tasks)
    mean = ravel_pytree(jax.tree.map(lambda g: g.mean(0), found.grads))[0]
    wanted = ravel_pytree(jax.tree.map(lambda g: g[0], expected.grads["model"]))[0]
    assert np.linalg.norm(mean - wanted) < 0.1 * np.linalg.norm(wanted)
    for name in ("query/loss", "query/accuracy", "support/loss"):
        close(found.metrics[name][0], expected.metrics[name][0], rtol=1e-12)


@x64
def test_normalised_estimate_does_not_see_the_scale():
    def loud(outputs, examples):
        return 100 * quadratic_loss(outputs, examples)

    runs = {}
    for normalise in (False, True):
        for factor, criterion in ((1, None), (100, loud)):
            learner = quadratic(objective_fn=criterion, normalise=normalise)
            runs[normalise, factor] = estimates(learner, THETA, bench()[1]).grads
    close(runs[True, 100], runs[True, 1])
    close(runs[False, 100], 100 * runs[False, 1])
    ratio = runs[True, 1] / runs[False, 1]
    close(ratio, np.full_like(ratio, ratio[0, 0]))

    still = quadratic(normalise=True, objective_fn=lambda outputs, examples: 0)
    assert not np.any(estimates(still, THETA, bench()[1]).grads)


def test_spread_is_the_standard_deviation_of_all_values():
    values = np.random.default_rng(0).normal(size=(3, 4, 2)) + 50
    close(_spread(jnp.asarray(values)), np.std(values), rtol=1e-4)
    assert _spread(jnp.full((3, 4, 2), 7.0)) == 1


# -- Adaptation -------------------------------------------------------------------------


@x64
def test_gradient_adaptation_is_that_of_maml():
    (a, c, _, _), tasks = bench()
    found = quadratic(3).adapt(of(THETA), one(tasks).support).params
    close(found, descend(a[0], c[0], THETA, 3), rtol=1e-12)


@x64
def test_evolved_steps_approach_gradient_steps():
    (a, c, _, _), tasks = bench()
    support = one(tasks).support
    expected = descend(a[0], c[0], THETA, 2)
    errors = []
    for num in (100, 10_000):
        learner = quadratic(adaptation="es", num_queries=num, query_sigma=0.3)
        adapt = jax.jit(lambda k, a=learner.adapt: a(of(THETA), support, key=k).params)
        ends = jax.vmap(adapt)(jax.random.split(jax.random.key(0), 16))
        errors.append(np.sqrt(np.mean(np.square(np.asarray(ends) - expected))))
    assert errors[1] < 0.03
    assert 6 < errors[0] / errors[1] < 16  # ten, on average


@x64
def test_hill_climbing_never_goes_up():
    tasks, theta = wide_blobs(), network()

    def losses(steps):
        learner = learner_of(
            "hill_climbing", num_steps=steps, objective_fn=error_rate, query_sigma=0.5
        )

        def one_task(support, key):
            adapted = learner.adapt(of(theta), support, key=key)
            return error_rate(learner.predict(adapted, support.x), support)

        keys = jax.random.split(jax.random.key(0), 3)
        return jax.jit(jax.vmap(one_task))(tasks.support, keys)

    start, end = losses(0), losses(30)
    assert np.all(end <= start) and np.mean(end) < np.mean(start) - 0.1


def test_a_search_moves_chosen_parameters_by_its_own_width():
    """No move is longer than a few widths; the smoothing outside is a wide one."""
    task, width = one(blob_batch()), 1e-3
    options = dict(num_steps=1, num_queries=20, query_sigma=width, sigma=10.0)
    in_head = lambda path, leaf: path.startswith("head")
    learner = learner_of("hill_climbing", adapt_filter=in_head, **options)
    variables = learner.init(jax.random.key(0), task)
    adapt = jax.jit(lambda k: learner.adapt(variables, task.support, key=k).params)
    after = adapt(jax.random.key(1))
    close(after["body"], variables.params["body"], rtol=0)
    gaps = [np.abs(after["head"][n] - variables.params["head"][n]).max() for n in "wb"]
    assert 0.1 * width < max(gaps) < 6 * width


def test_climbing_takes_the_best_of_a_round_and_avoids_nan():
    """Against a plain loop over the same draws, on a function that is NaN below zero."""

    def value(x):
        return jnp.where(x[0] < 0, jnp.nan, jnp.sum((x - 0.2) ** 2))

    keys = jax.random.split(jax.random.key(3), (6, 4))
    found = climb(value, jnp.array([1.0, 2.0]), keys, 0.5)
    away = climb(value, jnp.array([-0.2, 0.2]), keys, 0.5)
    assert value(away) < 1
    place = np.array([1.0, 2.0])
    for row in keys:
        moves = [jax.random.normal(k, (2,)) for k in row]
        tried = [place + 0.5 * np.asarray(m) for m in moves]
        best = min(tried, key=lambda x: np.nan_to_num(value(x), nan=np.inf))
        if value(best) < value(place):
            place = best
    close(found, place, rtol=1e-6)
    assert value(found) < 0.5


def test_both_ends_of_a_pair_get_the_same_draws():
    def value(params, key):
        return jax.random.normal(key, ()) + 0 * params

    grads, values = smoothed_gradient(
        value, jnp.array(1.0), jax.random.split(jax.random.key(0), 5), 0.1
    )
    assert grads == 0 and len(np.unique(values)) == 5


@pytest.mark.slow  # quick tests have its estimate against gradients
def test_it_learns_from_the_error_rate_alone():
    """Meta-training by hill climbing on what has no gradient anywhere."""
    tasks = blob_batch(8)
    learner = learner_of(
        "hill_climbing",
        num_steps=5,
        query_sigma=0.3,
        objective_fn=error_rate,
        num_perturbations=30,
        sigma=0.3,
        normalise=True,
        task_chunk=8,
    )
    variables = jax.jit(learner.init)(jax.random.key(0), one(tasks))

    @jax.jit
    def train(params, key):
        def step(params, key):
            found = learner.estimate(of(params), tasks, key=key)
            params = jax.tree.map(lambda p, g: p - 0.3 * g, params, found.grads)
            return params, found.metrics["query/objective"].mean()

        return jax.lax.scan(step, params, jax.random.split(key, 40))

    _, errors = train(variables.params, jax.random.key(1))
    assert errors[-8:].mean() < errors[:4].mean() - 0.1, errors


# -- Contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_perturbations": 0}, "num_perturbations is 0"),
        ({"num_perturbations": True}, "num_perturbations is True"),
        ({"num_queries": 0}, "num_queries is 0"),
        ({"num_steps": -1}, "num_steps is -1"),
        ({"sigma": 0.0}, r"sigma is 0\.0; expected a finite number above 0"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"query_sigma": True}, "query_sigma is True"),
        ({"adaptation": "cma"}, "adaptation is 'cma'; expected one of gradient, es"),
        ({"adaptation": "es", "norm": "per_step"}, "per_step.*adaptation='es'"),
        ({"perturbation_chunk": 3}, "perturbation_chunk is 3, which does not divide"),
        ({"perturbation_chunk": 0}, "perturbation_chunk is 0"),
        ({"task_chunk": 0}, "task_chunk is 0"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        learner_of(**options)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="inner_opt is a NoneType"):
        es_maml(plain(), CE)
    with pytest.raises(ValueError, match="uses no inner optimiser"):
        es_maml(plain(), CE, optax.sgd(0.1), adaptation="hill_climbing")
    task = one(blob_batch())
    learner = learner_of("es")
    variables = jax.jit(learner.init)(jax.random.key(0), task)
    with pytest.raises(ValueError, match=r"draws at random; give a key.*key="):
        learner.adapt(variables, task.support)
    each = learner_of("es", objective_fn=lambda outputs, examples: outputs[:, 0])
    with pytest.raises(ValueError, match=r"objective gave shape \(6,\).*scalar"):
        each.adapt(variables, task.support, key=jax.random.key(0))


def test_absent_classes_are_masked():
    task = one(blob_batch())
    keep = task.support.mask & (task.support.y != 2)
    support = ml.Examples(x=task.support.x, y=task.support.y, mask=keep)
    learner = learner_of("es", mask_absent_classes=True)
    variables = jax.jit(learner.init)(jax.random.key(0), task)
    found = jax.jit(learner.adapt)(variables, support, key=jax.random.key(1))
    assert found.present.tolist() == [True] * (WAYS - 1) + [False]
    assert (learner.predict(found, task.query.x).argmax(-1) != 2).all()


@pytest.mark.slow  # variants of what the registry checks
@pytest.mark.parametrize("adaptation", ["es", "hill_climbing"])
def test_keeps_the_contract(adaptation, strict_dtypes):
    opt = None if adaptation == "hill_climbing" else optax.sgd(0.1)
    model = linen() if adaptation == "es" else plain()
    learner = es_maml(
        model, CE, opt, adaptation=adaptation, num_perturbations=2, num_queries=2
    )
    assert ml.describe(learner)["adaptation"] == adaptation
    check_learner(learner, blob_batch())
