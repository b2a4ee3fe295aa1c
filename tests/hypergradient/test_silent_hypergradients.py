"""What would pass as a hypergradient and is none: it has to be NaN, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metalearn import hypergradient as hg
from metalearn.inner.conjugate import conjugate_gradients

METHODS = ("cg", "gmres", "bicgstab", "neumann")
DIAGONAL = jnp.array([1.0, 0.5])


def linear_problem(matrix):
    """`matrix @ y = x`, solved exactly: only its derivative needs a linear solve."""
    return lambda y, x: matrix @ y - x, lambda start, x: jnp.linalg.solve(matrix, x)


def gradient(matrix, x, slope, **options):
    solve = hg.implicit(*linear_problem(matrix), **options)
    loss = lambda x: jnp.vdot(slope, solve(jnp.zeros_like(x), x).value)
    return jax.jit(jax.grad(loss))(x)


@pytest.mark.parametrize("method", [*METHODS, lambda product, right: right])
def test_a_slope_that_is_no_number_is_no_gradient_of_zero(method):
    optimality = lambda y, x: DIAGONAL * y - x
    outer = lambda y, x: jnp.sum(jnp.sqrt(y - 1))  # infinite slope at 1, NaN below
    for y in (jnp.array([1.0, 2.0]), jnp.array([0.0, 2.0])):
        x = DIAGONAL * y
        found = hg.implicit_gradient(optimality, outer, y, x, linear=method)
        assert not np.isfinite(found.gradient).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_slopes_of_any_scale(method, scale):
    """Their squares are 0 or infinite in float32."""
    y = jnp.ones(2)
    found = hg.implicit_gradient(
        lambda y, x: DIAGONAL * y - x, lambda y, x: scale * jnp.sum(y), y, y, linear=method
    )
    np.testing.assert_allclose(found.gradient, scale / DIAGONAL, rtol=1e-4)
    assert found.adjoint_residual < 1e-4


def test_conjugate_gradients_show_what_is_not_finite():
    for bad in (jnp.nan, jnp.inf):
        for tolerance in (None, 1e-6):
            found = conjugate_gradients(
                lambda v: v, jnp.array([1.0, bad]), max_steps=3, tolerance=tolerance
            )
            assert np.isnan(found.x).any()


@pytest.mark.parametrize(
    ("matrix", "method"),
    [
        ([[2.0, 0.0], [0.0, -1.0]], "cg"),  # a saddle
        ([[1.0, 0.9], [-0.9, 1.0]], "cg"),  # no symmetric matrix
        ([[3.0, 0.0], [0.0, 1.0]], "neumann"),  # the series diverges
        ([[1.0, 0.0], [0.0, 100.0]], hg.Linear("cg", max_steps=1)),
    ],
)
def test_a_failed_linear_solve_is_no_derivative(matrix, method):
    matrix, x, slope = jnp.array(matrix), jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0])
    right = np.linalg.solve(np.asarray(matrix).T, slope)
    np.testing.assert_allclose(gradient(matrix, x, slope, linear="gmres"), right, rtol=1e-4)
    assert np.isnan(gradient(matrix, x, slope, linear=method)).all()
    taken = gradient(matrix, x, slope, linear=method, accept=None)
    assert np.isfinite(taken).all() and np.abs(taken - right).max() > 0.01


def test_a_symmetric_solver_has_no_part_in_the_transposed_matrix():
    """A solver that is exact, in name symmetric: its transpose is that of the matrix."""
    lineax = pytest.importorskip("lineax")
    matrix, x, slope = jnp.array([[1.0, 0.3], [0.0, 1.0]]), jnp.ones(2), jnp.array([1.0, 2])
    found = gradient(matrix, x, slope, linear=lineax.CG(rtol=1e-6, atol=0), accept=1e-3)
    right = np.linalg.solve(np.asarray(matrix).T, slope)
    assert np.isnan(found).all() or np.allclose(found, right, rtol=1e-3)


def test_more_than_a_solution_is_refused():
    with pytest.raises(ValueError, match=r"the result of linear has .* solve\(...\)\[0\]"):
        gradient(jnp.eye(2), jnp.ones(2), jnp.ones(2), linear=jax.scipy.sparse.linalg.cg)


def test_a_mapping_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"the result of mapping is float32\[2\]"):
        hg.fixed_point(lambda y, x: x)(jnp.zeros((2, 2)), jnp.zeros(2))


# -- Rates -----------------------------------------------------------------------------

INNER = lambda w, h, step: jnp.sum((w - 3.0) ** 2) / 2
OUTER = lambda w, h: jnp.sum(w)
START = jnp.array([1.0, 2.0])


def test_a_rate_in_the_state_of_the_optimiser_has_its_derivative():
    def found(opt, **options):
        return hg.unrolled(INNER, OUTER, START, 0.1, opt, **options)

    inject = lambda h: optax.inject_hyperparams(optax.sgd)(learning_rate=h)
    plain = found(optax.sgd, num_steps=2)
    np.testing.assert_allclose(found(inject, num_steps=2).gradient, plain.gradient)
    assert abs(plain.gradient) > 1
    state = inject(0.1).init(START)
    for options in ({"opt_state": state}, {"truncate": 1}):
        with pytest.raises(ValueError, match="the state of inner_opt holds hyper-param"):
            found(inject, num_steps=2, **options)


@pytest.mark.parametrize(
    "rate", [jnp.ones(2), jnp.float32(-1), jnp.float32(0), jnp.float32("nan"), True, 1j]
)
def test_rates_of_a_virtual_step_that_are_none(rate):
    with pytest.raises(ValueError, match="rate is"):
        hg.lookahead(lambda w: w**2, OUTER, START, jnp.ones(2), rate=rate)


def test_scalars_of_all_kinds_are_rates():
    look = lambda rate: (
        hg.lookahead(lambda w: w**2, OUTER, START, jnp.ones(2), rate=rate).gradient
    )
    for rate in (np.float32(0.1), np.array(0.1, np.float32), jnp.array(0.1)):
        np.testing.assert_allclose(look(rate), look(0.1), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(look)(0.1), look(0.1), rtol=1e-6)


# -- SAMA ------------------------------------------------------------------------------


def sama(alpha, outer=OUTER, start=START, **options):
    inner = lambda w, s: jnp.sum((w - 3.0) ** 2 + s * w**2)
    return hg.sama(inner, outer, start, 2.0, optax.sgd(0.1), alpha=alpha, **options)


def test_a_perturbation_that_rounding_takes_is_no_gradient():
    exact = sama(None).gradient
    np.testing.assert_allclose(sama(1e-2).gradient, exact, rtol=1e-2)
    for alpha in (1e-7, 1e-9):
        assert np.isnan(sama(alpha).gradient)


def test_a_slope_without_a_number_is_not_taken_for_one_that_adam_lacks():
    inner = lambda w, h: jnp.sum((w - h) ** 2) / 2
    outer = lambda w, h: jnp.sum(jnp.sqrt(w))
    found = hg.sama(inner, outer, jnp.zeros(2), jnp.array([0.0, 1.0]), optax.sgd(0.5))
    assert not np.isfinite(found.gradient).all()


def test_words_are_no_flags():
    with pytest.raises(TypeError, match="multitask is 'no'; expected True or False"):
        sama(1.0, multitask="no")
    with pytest.raises(TypeError, match="has_aux is 'no'; expected True or False"):
        hg.implicit(*linear_problem(jnp.eye(2)), has_aux="no")


# -- Weights ---------------------------------------------------------------------------


def test_sums_that_overflow_leave_weights():
    for scores in (
        np.array([4e4, 3e4, 0], np.float16),
        np.ones(70_000, np.float16),
        np.full(9, 5e37, np.float32),
        np.array([1e-37, 1e-37], np.float32),
    ):
        weights = np.asarray(hg.normalised(scores), np.float64)
        np.testing.assert_allclose(weights.sum(), 1, rtol=3e-2)
    for bad in (jnp.nan, jnp.inf):
        assert np.isnan(hg.normalised(jnp.array([bad, 1.0]))).all()


def test_groups_of_small_integers_and_lists():
    values = jnp.arange(200.0)
    for groups in (np.array([1, 2], np.int8), [1, 2]):
        assert hg.by_group(values, groups).tolist() == [1.0, 2.0]
    with pytest.raises(TypeError, match="values are of the dtype int32"):
        jax.jit(hg.by_group)(jnp.array([1, 2]), jnp.array([0, 5]))
    with pytest.raises(TypeError, match="groups are of the dtype float"):
        hg.by_group(values, [0.0])


# -- What is given ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hparams": "f"}, "hparams is of the dtype str"),
        ({"params": jnp.zeros((0,))}, "params holds no array of numbers"),
        ({"outer_loss": lambda w: w}, "outer_loss cannot be called with 2 arguments"),
    ],
)
def test_what_is_none_is_named(change, message):
    given = {"outer_loss": OUTER, "params": START, "hparams": 1.0, **change}
    optimality = lambda w, h: w - h
    with pytest.raises((TypeError, ValueError), match=message):
        hg.implicit_gradient(optimality, **given)
