"""The support vector machine: closed forms, duality, a solver of SciPy, derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from bench import close

from metalearn.algorithms.closed_form.svm import crammer_singer

x64 = pytest.mark.usefixtures("x64")
WAYS, ROWS = 5, 10


@functools.cache
def solver(iterations=60, ways=WAYS):
    """One program for all problems of `ROWS` rows."""
    options = {"num_ways": ways, "iterations": iterations}

    def solve(gram, y, mask, cost):
        return crammer_singer(gram, y, mask, cost=cost, **options)

    return jax.jit(solve)


def solved(gram, y, cost, mask=None, **options):
    """Solution as NumPy arrays, of a problem that is filled up with masked rows."""
    mask = np.ones(len(y), bool) if mask is None else np.asarray(mask)
    more = ROWS - len(y)
    # What stands in masked rows is finite and wrong.
    gram = np.pad(gram, (0, more), constant_values=7.0)
    y, mask = np.pad(y, (0, more)), np.pad(mask, (0, more))
    arrays = [
        jnp.asarray(a) for a in (gram, y.astype(np.int32), mask, gram.dtype.type(cost))
    ]
    dual = solver(**options)(*arrays)
    assert (np.asarray(dual.alpha)[~mask] == 0).all()
    return np.asarray(dual.alpha), float(dual.residual)


def problem(seed=0, rows=ROWS, width=4):
    """Embeddings whose solution touches bounds of all kinds at a cost of 0.2."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % WAYS
    centres = rng.normal(size=(WAYS, width))
    return centres[y] + 0.6 * rng.normal(size=(rows, width)), y


def objectives(x, y, alpha, cost, diagonal):
    """Primal less dual objective: 0 at the solution and positive elsewhere."""
    gram = x @ x.T + diagonal * np.eye(len(y))
    scores, rows = gram @ alpha, np.arange(len(y))
    margins = scores + 1 - np.eye(alpha.shape[1])[y]
    slack = margins.max(1) - scores[rows, y]
    return (alpha * scores).sum() + cost * slack.sum() - alpha[rows, y].sum()


def check_feasible(alpha, y, cost):
    bounds = cost * np.eye(alpha.shape[1])[y]
    assert (alpha <= bounds + 1e-9).all()
    assert np.abs(alpha.sum(1)).max() < 1e-9


@x64
@pytest.mark.parametrize(
    ("diagonal", "cost", "own"), [(0.0, 10.0, 0.8), (1.0, 10.0, 0.4), (0.0, 0.1, 0.1)]
)
def test_orthonormal_examples_have_a_closed_form(diagonal, cost, own):
    alpha, residual = solved((1 + diagonal) * np.eye(WAYS), np.arange(WAYS), cost)
    expected = np.full((WAYS, WAYS), -own / (WAYS - 1))
    np.fill_diagonal(expected, own)
    close(alpha[:WAYS], expected)
    assert residual < 1e-9


@x64
def test_solution_is_that_of_a_general_solver():
    x, y = problem()
    gram, linear = x @ x.T + np.eye(ROWS), np.eye(WAYS)[y]
    alpha, residual = solved(gram, y, 0.2)

    def objective(flat):
        point = flat.reshape(ROWS, WAYS)
        image = gram @ point
        return (point * (image / 2 - linear)).sum(), (image - linear).ravel()

    found = scipy.optimize.minimize(
        objective,
        np.zeros(ROWS * WAYS),
        jac=True,
        method="SLSQP",
        bounds=[(None, bound) for bound in 0.2 * linear.ravel()],
        constraints={
            "type": "eq",
            "fun": lambda flat: flat.reshape(ROWS, WAYS).sum(1),
            "jac": lambda flat: np.kron(np.eye(ROWS), np.ones(WAYS)),
        },
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(alpha, found.x.reshape(ROWS, WAYS), rtol=0, atol=1e-5)
    own = alpha[np.arange(ROWS), y]
    others = alpha[linear == 0]
    # The problem has bounds of all kinds, and none that is touched by chance.
    for values, bound in ((own, 0.2), (others, 0.0)):
        touched = values > bound - 1e-9
        assert 0 < touched.sum() < len(values)
        assert values[~touched].max() < bound - 1e-3
    assert residual < 1e-10


@x64
@pytest.mark.parametrize("diagonal", [0.0, 1.0])
def test_no_gap_is_left_between_the_two_problems(diagonal):
    """A Gram matrix of lower rank than its size has many solutions of the dual problem."""
    for seed in range(4):
        x, y = problem(seed)
        alpha, residual = solved(x @ x.T + diagonal * np.eye(ROWS), y, 0.2)
        check_feasible(alpha, y, 0.2)
        assert objectives(x, y, alpha, 0.2, diagonal) < 1e-9
        assert residual < 1e-5


@x64
def test_the_residual_shows_too_few_iterations():
    """Beside the gap between both problems, for a point that keeps the bounds."""
    found = {2: [], 60: []}
    for seed in range(6):
        x, y = problem(seed)
        for iterations, residuals in found.items():
            gram = x @ x.T + np.eye(ROWS)
            alpha, residual = solved(gram, y, 0.2, iterations=iterations)
            beyond = (alpha - 0.2 * np.eye(WAYS)[y]).max()
            gap = abs(objectives(x, y, alpha, 0.2, 1.0))
            assert (residual < 1e-7) == (max(beyond, gap) < 1e-7)
            residuals.append(residual)
    assert min(found[2]) > 1e-3 and max(found[60]) < 1e-9


@x64
@pytest.mark.parametrize("wrong", [1e9, np.nan])
def test_where_the_equations_fail_the_iterations_answer(monkeypatch, wrong):
    x, y = problem(0)
    gram, apart = x @ x.T + np.eye(ROWS), np.random.default_rng(1).normal(size=(ROWS, WAYS))
    alpha, residual = solved(gram, y, 0.2)
    failed = lambda product, right, **options: (wrong * jnp.ones_like(right), None)
    monkeypatch.setattr(jax.scipy.sparse.linalg, "cg", failed)
    rows = jnp.asarray(y, jnp.int32), jnp.ones(ROWS, bool)

    def told(gram):
        dual = crammer_singer(gram, *rows, num_ways=WAYS, cost=0.2)
        return jnp.sum(apart * dual.alpha), dual

    slope, dual = jax.jit(jax.grad(told, has_aux=True))(gram)
    assert np.abs(dual.alpha - alpha).max() < 1e-3 and residual < dual.residual < 1e-2
    assert np.isfinite(slope).all()


@x64
def test_masked_rows_and_absent_classes_take_no_part():
    x, y = problem()
    gram, mask = x @ x.T + np.eye(ROWS), (y != 3) & (np.arange(ROWS) != 1)
    alpha, residual = solved(gram, y, 0.2, mask)
    alone, _ = solved(gram[np.ix_(mask, mask)], y[mask], 0.2)
    close(alpha[mask], alone[: mask.sum()])
    assert (alpha[:, 3] == 0).all() and residual < 1e-9
    wider, _ = solved(gram, y, 0.2, mask, ways=WAYS + 2)
    close(wider[:, :WAYS], alpha)
    assert (wider[:, WAYS:] == 0).all()
    nothing, residual = solved(gram, y, 0.2, np.zeros(ROWS, bool))
    assert (nothing == 0).all() and residual == 0


@x64
def test_derivatives_of_first_and_second_order():
    x, y = problem()
    rng = np.random.default_rng(3)
    way, apart = rng.normal(size=x.shape), rng.normal(size=(ROWS, WAYS))
    mask = jnp.ones(ROWS, bool).at[2].set(False)

    def along(t):
        rows = jnp.asarray(x) + t * way
        gram = rows @ rows.T + jnp.eye(ROWS)
        dual = crammer_singer(
            gram, jnp.asarray(y, jnp.int32), mask, num_ways=WAYS, cost=0.2
        )
        return jnp.sum(apart * dual.alpha)

    run = jax.jit(lambda t: jax.jvp(jax.value_and_grad(along), (t,), (jnp.ones_like(t),)))
    h = 1e-5
    (_, first), (_, second) = run(jnp.zeros(()))
    (more, more_slope), (less, less_slope) = (run(jnp.asarray(t))[0] for t in (h, -h))
    close(first, (more - less) / (2 * h), rtol=1e-6)
    close(second, (more_slope - less_slope) / (2 * h), rtol=1e-6)


def test_single_precision():
    """A batch of problems against double precision, and their derivatives."""
    rng = np.random.default_rng(0)
    y = np.arange(ROWS) % WAYS
    x = rng.normal(size=(3, WAYS, 64))[:, y] + 0.5 * rng.normal(size=(3, ROWS, 64))
    way, apart = rng.normal(size=x.shape), rng.normal(size=(ROWS, WAYS))

    def measured(x):
        gram = x @ x.T + jnp.eye(ROWS)
        options = {"num_ways": WAYS, "cost": 0.01}
        dual = crammer_singer(
            gram, jnp.asarray(y, jnp.int32), jnp.ones(ROWS, bool), **options
        )
        return jnp.sum(jnp.asarray(apart, jnp.float32) * dual.alpha), dual

    run = jax.jit(jax.vmap(jax.grad(measured, has_aux=True)))
    slope, dual = run(jnp.asarray(x, jnp.float32))
    assert dual.alpha.dtype == slope.dtype == jnp.float32
    assert dual.residual.max() < 1e-5
    h = 1e-5
    with jax.enable_x64(True):
        here, more, less = (
            np.stack([solved(r @ r.T + np.eye(ROWS), y, 0.01)[0] for r in x + t * way])
            for t in (0, h, -h)
        )
    close(dual.alpha, here, rtol=1e-4)
    difference = (apart * (more - less)).sum((1, 2)) / (2 * h)
    close((np.asarray(slope) * way).sum((1, 2)), difference, rtol=1e-3)
