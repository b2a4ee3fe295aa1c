"""Implicit derivatives against closed forms, finite differences and unrolled descent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bench import close

import metalearn as ml
from metalearn.hypergradient.result import norm

hg = ml.hypergradient
pytestmark = pytest.mark.usefixtures("x64")
N, D = 12, 4
RNG = np.random.default_rng(0)
X, Y, C = RNG.normal(size=(N, D)), RNG.normal(size=N), RNG.normal(size=D)
X_VAL, Y_VAL = RNG.normal(size=(N, D)), RNG.normal(size=N)
STRENGTHS = np.array([0.5, 1.0, 4.0])
START = {"w": np.zeros(D)}


def hessian(strength):
    return X.T @ X + strength * np.eye(D)


def ridge(strength):
    return np.linalg.solve(hessian(strength), X.T @ Y)


def ridge_loss(params, strength, y=Y):
    w = params["w"]
    return 0.5 * jnp.sum((X @ w - y) ** 2) + 0.5 * strength * jnp.sum(w**2)


VALUES, VECTORS = np.linalg.eigh(X.T @ X)


def ridge_solver(start, strength, y=Y):
    return {"w": VECTORS @ ((VECTORS.T @ (X.T @ y)) / (VALUES + strength))}


def outer_loss(params, hparams):
    del hparams
    return 0.5 * jnp.sum((X_VAL @ params["w"] - Y_VAL) ** 2)


def lineax(name, **options):
    return getattr(pytest.importorskip("lineax"), name)(rtol=1e-12, atol=0.0, **options)


TIGHT = functools.partial(hg.Linear, tolerance=1e-12)
METHODS = {
    "cg": lambda: TIGHT("cg"),
    "gmres": lambda: TIGHT("gmres"),
    "bicgstab": lambda: TIGHT("bicgstab"),
    "neumann": lambda: TIGHT("neumann", max_steps=3000, rate=1 / 20),
    "of lineax": lambda: lineax("BiCGStab"),
    "CG of lineax": lambda: lineax("CG"),
}


@pytest.mark.parametrize("method", METHODS)
def test_ridge_has_its_closed_form_under_jit_and_vmap(method):
    solve = hg.implicit(jax.grad(ridge_loss), ridge_solver, linear=METHODS[method]())

    def one(strength):
        backward = jax.grad(lambda s: jnp.dot(C, solve(START, s).value["w"]))(strength)
        if method not in ("cg", "bicgstab"):
            return backward, None
        return backward, jax.jvp(lambda s: solve(START, s).value, (strength,), (1.0,))[1]

    backward, forward = jax.jit(jax.vmap(one))(STRENGTHS)
    exact = np.stack([-np.linalg.solve(hessian(s), ridge(s)) for s in STRENGTHS])
    close(backward, exact @ C, rtol=1e-8)
    if forward is not None:
        close(forward["w"], exact, rtol=1e-8)


def test_second_derivatives_arguments_of_all_kinds_and_closures():
    """`d2w/ds2 = 2 H^-2 w` and `dw/dy = H^-1 X'`, with the targets `y` in three places."""

    def optimality(params, strength, y, label, key):
        del key
        return jax.grad(ridge_loss)(params, strength, y * label)

    solve = hg.implicit(optimality, lambda start, s, y, *_: ridge_solver(start, s, y))

    def run(strength, y, label, key):
        def of(strength, y, start=START):
            return jnp.dot(C, solve(start, strength, y, label, key).value["w"])

        def closed(y):
            gradient = lambda params, s: jax.grad(ridge_loss)(params, s, y)
            found = hg.implicit(gradient, lambda start, s: ridge_solver(start, s, y))
            return jnp.dot(C, found(START, strength).value["w"])

        in_start = jax.grad(lambda start: of(strength, y, start))(START)
        second = jax.grad(jax.grad(of))(strength, y)
        return second, jax.grad(of, 1)(strength, y), jax.grad(closed)(y), in_start

    second, in_targets, closed, in_start = jax.jit(run)(2.0, Y, 1, jax.random.key(0))
    inverse = np.linalg.inv(hessian(2.0))
    close(second, 2 * C @ inverse @ inverse @ ridge(2.0), rtol=1e-6)
    close(in_targets, C @ inverse @ X.T, rtol=1e-6)
    close(closed, C @ inverse @ X.T, rtol=1e-6)
    assert not in_start["w"].any()


def test_residuals_are_honest_where_a_solver_stops_early():
    """One step of descent, and one of conjugate gradients, each with the norm it leaves."""
    rate = 0.01
    step = lambda start, s: {"w": start["w"] - rate * jax.grad(ridge_loss)(start, s)["w"]}
    solve = hg.implicit(jax.grad(ridge_loss), step)
    linear = hg.Linear(max_steps=1)

    @jax.jit
    def run(strength):
        solved = solve(START, strength)
        gradient = hg.implicit_gradient(
            jax.grad(ridge_loss), outer_loss, solved.value, strength, linear=linear
        )
        return solved, gradient

    solved, found = run(2.0)
    w = rate * X.T @ Y
    left = np.linalg.norm(hessian(2.0) @ w - X.T @ Y)
    close(solved.residual, left)
    close(found.residual, left)
    assert left > 1
    slope = X_VAL.T @ (X_VAL @ w - Y_VAL)
    u = slope * (slope @ slope) / (slope @ hessian(2.0) @ slope)
    lost = np.linalg.norm(hessian(2.0) @ u - slope) / np.linalg.norm(slope)
    close(found.adjoint_residual, lost)
    close(found.gradient, -w @ u)
    close(found.value, 0.5 * np.sum((X_VAL @ w - Y_VAL) ** 2))
    close(found.state["w"], w)


def test_a_report_has_no_derivative():
    np.testing.assert_array_equal(jax.grad(norm)(jnp.ones(2)), np.zeros(2))
    np.testing.assert_array_equal(jax.grad(norm)(jnp.zeros(2)), np.zeros(2))


def test_damping_changes_the_answer_and_the_residual_says_so():
    linear = TIGHT("gmres", damping=3.0)

    @jax.jit
    def run(strength):
        params = ridge_solver(START, strength)
        return hg.implicit_gradient(
            jax.grad(ridge_loss), outer_loss, params, strength, linear=linear
        )

    found, w = run(2.0), ridge(2.0)
    slope = X_VAL.T @ (X_VAL @ w - Y_VAL)
    u = np.linalg.solve(hessian(2.0) + 3 * np.eye(D), slope)
    close(found.gradient, -w @ u)
    close(found.adjoint_residual, 3 * np.linalg.norm(u) / np.linalg.norm(slope))


def test_a_matrix_that_is_not_symmetric_needs_a_method_for_any():
    """The fixed point of `y = M y + x` has `dy/dx = (I - M)^-1`; "cg" is told apart.

    It solves the system of `I - M` in one step where that of the transpose was asked for.
    """
    m = np.array([[0.0, -1.0], [0.0, 0.0]])
    mapping = lambda y, x: m @ y + x
    inverse = np.linalg.inv(np.eye(2) - m)
    optimality = hg.fixed_point(mapping)
    outer = lambda y, x: 2 * y[0] + x[0]

    @jax.jit
    def run(x):
        y = inverse @ x
        return [
            hg.implicit_gradient(optimality, outer, y, x, linear=linear)
            for linear in (TIGHT("neumann"), TIGHT("bicgstab"), TIGHT("cg"))
        ]

    series, any_matrix, symmetric = run(np.array([1.0, 3.0]))
    exact = np.array([2.0, 0.0]) @ inverse + [1.0, 0.0]
    close(series.gradient, exact)
    close(any_matrix.gradient, exact)
    assert max(series.adjoint_residual, any_matrix.adjoint_residual, series.residual) < 1e-9
    close(symmetric.adjoint_residual, 1.0)


def test_a_saddle_stops_conjugate_gradients_within_bounds():
    """Where the first direction curves down, its image has the length of the direction."""
    curvature = 100 * np.array([2.0, -1.0, 1e-3])

    @jax.jit
    def run(scale):
        inner = lambda p, h: 0.5 * jnp.sum(curvature * (p - h) ** 2)
        outer = lambda p, h: scale * (p[1] + 0.1 * p[0])
        return hg.implicit_gradient(jax.grad(inner), outer, np.ones(3), np.zeros(3))

    found = run(1.0)
    close(np.linalg.norm(found.gradient), np.linalg.norm([0.1, 1.0]))
    assert found.adjoint_residual > 0.1
    still = run(0.0)  # no derivative of the outer loss: 0 / 1 and not 0 / 0
    assert not still.gradient.any()
    assert still.adjoint_residual == 0


def newton(loss, start, *args, steps=12):
    def step(_, w):
        return w - jnp.linalg.solve(jax.hessian(loss)(w, *args), jax.grad(loss)(w, *args))

    return jax.lax.fori_loop(0, steps, step, start)


LABELS = np.where(RNG.random(N) < 0.5, 1.0, -1.0)


def logistic_loss(w, strength):
    logits = jnp.asarray(X) @ w
    return jnp.sum(jnp.logaddexp(0.0, -LABELS * logits)) + 0.5 * strength * jnp.sum(w**2)


def test_strength_of_logistic_regression_against_finite_differences():
    """The outer loss has a direct term, and the solver a loop without reverse mode."""
    solve = hg.implicit(
        jax.grad(logistic_loss), lambda w, s: newton(logistic_loss, w, s), linear=TIGHT()
    )

    def outer(w, s):
        return jnp.mean(jnp.logaddexp(0.0, -Y_VAL * (X_VAL @ w))) + 0.1 * s**2

    @jax.jit
    def run(s):
        solved = solve(np.zeros(D), s)
        value, slope = jax.value_and_grad(lambda s: outer(solve(np.zeros(D), s).value, s))(
            s
        )
        found = hg.implicit_gradient(
            jax.grad(logistic_loss), outer, solved.value, s, linear=TIGHT()
        )
        return value, slope, found

    (ahead, *_), (behind, *_) = run(0.7 + 1e-4), run(0.7 - 1e-4)
    _, slope, found = run(0.7)
    close(slope, (ahead - behind) / 2e-4, rtol=1e-6)
    close(found.gradient, slope, rtol=1e-8)
    assert max(found.residual, found.adjoint_residual) < 1e-9


def cleaning_loss(w, logits):
    each = 0.5 * (X @ w - Y) ** 2
    return jnp.sum(jax.nn.sigmoid(logits) * each) + 0.5 * jnp.sum(w**2)


def clean_loss(w, logits):
    del logits
    return 0.5 * jnp.sum((X_VAL @ w - Y_VAL) ** 2)


LOGITS = RNG.normal(size=N)
KEEP = 1 / (1 + np.exp(-LOGITS))
CLEANED = np.linalg.solve(X.T @ (KEEP[:, None] * X) + np.eye(D), X.T @ (KEEP * Y))


@functools.cache
def cleaning_gradient():
    """`-sigma'(l_i) grad l_i' H^-1 grad L`."""
    h = X.T @ (KEEP[:, None] * X) + np.eye(D)
    each = (X @ CLEANED - Y)[:, None] * X
    slope = X_VAL.T @ (X_VAL @ CLEANED - Y_VAL)
    return -KEEP * (1 - KEEP) * (each @ np.linalg.solve(h, slope))


def test_data_cleaning_has_its_closed_form():
    found = jax.jit(
        lambda w, logits: hg.implicit_gradient(
            jax.grad(cleaning_loss), clean_loss, w, logits, linear=TIGHT()
        )
    )(CLEANED, LOGITS)
    close(found.gradient, cleaning_gradient())
    assert found.residual < 1e-9


def test_unrolled_descent_comes_to_the_implicit_gradient():
    """From the solution, where the error falls by the contraction of each step."""

    @functools.partial(jax.jit, static_argnums=1)
    def run(logits, num):
        return hg.unrolled(
            lambda w, logits, step: cleaning_loss(w, logits),
            clean_loss,
            CLEANED,
            logits,
            optax.sgd(0.1),
            num_steps=num,
        )

    exact = cleaning_gradient()
    errors = []
    for num in (4, 16, 64):
        found = run(LOGITS, num)
        assert found.residual < 1e-9
        errors.append(np.abs(found.gradient - exact).max() / np.abs(exact).max())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-4


def test_solvers_of_optimistix_under_jit_and_vmap():
    """A root finder and a minimiser, whose own derivatives are never asked for."""
    optimistix = pytest.importorskip("optimistix")
    gradient = jax.grad(logistic_loss)

    def root(start, s):
        method = optimistix.Newton(rtol=1e-10, atol=1e-10)
        return optimistix.root_find(gradient, method, start, args=s, throw=False).value

    def least(start, s):
        method = optimistix.BFGS(rtol=1e-10, atol=1e-10)
        found = optimistix.minimise(logistic_loss, method, start, args=s, throw=False)
        return found.value, found.stats["num_steps"]

    roots = hg.implicit(gradient, root, linear=TIGHT())
    minima = hg.implicit(gradient, least, linear=TIGHT(), has_aux=True)

    def one(s):
        of = lambda solve: lambda s: (jnp.dot(C, (f := solve(np.zeros(D), s)).value), f)
        return [jax.value_and_grad(of(solve), has_aux=True)(s) for solve in (roots, minima)]

    ((_, root_found), by_root), ((_, least_found), by_least) = jax.jit(jax.vmap(one))(
        STRENGTHS
    )
    close(by_root, by_least, rtol=1e-6)
    close(root_found.value, least_found.value, rtol=1e-7)
    assert max(root_found.residual.max(), least_found.residual.max()) < 1e-6
    assert (least_found.aux > 2).all()


W = np.zeros(D)
GRADIENT = jax.grad(ridge_loss)
MISTAKES = {
    "expected one of cg": lambda: hg.implicit(GRADIENT, ridge_solver, linear="lu"),
    "linear is a int": lambda: hg.implicit(GRADIENT, ridge_solver, linear=3),
    "max_steps is 0": lambda: hg.implicit(
        GRADIENT, ridge_solver, linear=hg.Linear(max_steps=0)
    ),
    "rate is 0": lambda: hg.implicit(GRADIENT, ridge_solver, linear=hg.Linear(rate=0)),
    "damping is -1": lambda: hg.implicit(
        GRADIENT, ridge_solver, linear=hg.Linear(damping=-1)
    ),
    "solver is a float": lambda: hg.implicit(GRADIENT, 0.1),
    "the start at w is of the dtype int": lambda: hg.implicit(GRADIENT, ridge_solver)(
        {"w": np.zeros(D, int)}, 1.0
    ),
    "the solution has the structure": lambda: hg.implicit(
        GRADIENT, lambda start, s: (start, 1)
    )(START, 1.0),
    "expected a pair": lambda: hg.implicit(GRADIENT, lambda start, s: start, has_aux=True)(
        START, 1.0
    ),
    "the solution at w is float64\\[2\\]": lambda: hg.implicit(
        GRADIENT, lambda start, s: {"w": start["w"][:2]}
    )(START, 1.0),
    "jax.grad\\(inner_loss\\)": lambda: hg.implicit_gradient(
        ridge_loss, outer_loss, START, 1.0
    ),
    "hparams is of the dtype int": lambda: hg.implicit_gradient(
        GRADIENT, outer_loss, START, 1
    ),
    "hparams holds no array": lambda: hg.implicit_gradient(GRADIENT, outer_loss, START, {}),
    "outer_loss returns an array \\[4\\]": lambda: hg.implicit_gradient(
        GRADIENT, lambda p, s: p["w"], START, 1.0
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told_before_anything_is_computed(message, count_compilations):
    jax.tree.map(jnp.asarray, (START, 1.0))  # arrays of what is given
    count_compilations()
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message]()
    assert count_compilations() == 0
