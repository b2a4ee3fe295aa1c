"""Conjugate gradients: exact on positive matrices, bounded on indefinite ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close, matrices

from metalearn.inner.conjugate import conjugate_gradients

pytestmark = pytest.mark.usefixtures("x64")
B = np.array([1.0, -2.0, 0.5])


def solve(matrix, b=B, steps=3, **options):
    return _solve(jnp.asarray(matrix), jnp.asarray(b), steps, **options)


@functools.partial(jax.jit, static_argnames=("steps", "fallback", "tolerance"))
def _solve(matrix, b, steps, **options):
    return conjugate_gradients(lambda v: matrix @ v, b, max_steps=steps, **options)


def test_is_exact_after_as_many_steps_as_dimensions():
    a = matrices(3, 1)[0]
    for steps in (3, 20):  # the further ones change nothing
        found = solve(a, steps=steps)
        close(found.x, np.linalg.solve(a, B))
        assert found.residual < 1e-9
        assert not found.negative_curvature
        assert found.steps <= 5


def test_error_falls_with_every_step_in_the_norm_of_the_matrix():
    a = np.diag([1.0, 3.0, 10.0])
    exact = np.linalg.solve(a, B)
    errors = [
        (x - exact) @ a @ (x - exact) for x in (solve(a, steps=s).x for s in (1, 2, 3))
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-20


def test_reports_the_residual():
    a = np.diag([1.0, 3.0, 10.0])
    found = solve(a, steps=2)
    close(found.residual, np.linalg.norm(B - a @ found.x) / np.linalg.norm(B))
    assert found.steps == 2


def test_a_tolerance_ends_the_loop_early():
    a = np.diag([1.0, 3.0, 10.0])
    found = solve(a, steps=20, tolerance=0.5)
    assert found.residual <= 0.5
    assert 0 < found.steps < 3
    close(found.x, solve(a, steps=int(found.steps)).x)
    for matrix in (a, -a):  # down to rounding, or at a direction that curves down
        found = solve(matrix, steps=20, tolerance=0.0)
        close(found, solve(matrix, steps=20))


def test_negative_curvature_at_once_gives_the_right_side():
    found = solve(-np.eye(3))
    close(found.x, B, rtol=0)
    assert found.negative_curvature
    assert found.steps == 0


def test_negative_curvature_later_keeps_what_was_solved():
    a = np.diag([5.0, 4.0, -1.0])
    stopped = solve(a, steps=3)
    assert stopped.negative_curvature
    assert 0 < stopped.steps < 3
    close(stopped.x, solve(a, steps=int(stopped.steps)).x, rtol=0)
    assert np.abs(stopped.x).max() < 1


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), np.diag([1.0, -1.0, 0.0])])
def test_no_curvature_is_stopped_at(matrix):
    found = solve(matrix, b=[1.0, 1.0, 0.0])
    close(found.x, np.array([1.0, 1.0, 0.0]), rtol=0)
    assert found.negative_curvature


@pytest.mark.parametrize("scale", [1.0, 1e-3, 40.0])
@pytest.mark.parametrize(
    "matrix",
    [
        -np.eye(3),
        np.diag([1.0, -1.0, 0.2]),
        np.diag([0.5, -3.0, 2.0]),
        matrices(3, 1)[0] - 5 * np.eye(3),
    ],
)
def test_shortest_step_against_a_dense_solve(matrix, scale):
    """Along `b`, of the scale of the solution, and never longer than it."""
    a = scale * matrix
    assert B @ a @ B < 0
    found = solve(a, fallback="shortest")
    assert found.negative_curvature and found.steps == 0
    close(found.x, B * np.linalg.norm(B) / np.linalg.norm(a @ B))
    assert np.linalg.norm(found.x) <= np.linalg.norm(np.linalg.solve(a, B)) * (1 + 1e-9)


@pytest.mark.parametrize("fallback", ["right_side", "shortest"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_fallback_is_of_the_first_direction_alone(fallback, steps):
    for a in (matrices(3, 1)[0], np.diag([5.0, 4.0, -1.0]), np.diag([2.0, 3.0, 9.0])):
        close(solve(a, steps=steps, fallback=fallback).x, solve(a, steps=steps).x)


def test_without_a_solution_along_the_right_side_the_shortest_is_not_finite():
    assert not np.isfinite(solve(np.zeros((3, 3)), fallback="shortest").x).any()
    found = solve(np.zeros((3, 3)), b=np.zeros(3), fallback="shortest").x
    close(found, np.zeros(3), rtol=0)


def test_large_right_sides_are_no_negative_curvature():
    """In float32 the product of two squared lengths would be infinite."""
    b = jnp.full(3, 1e11, jnp.float32)
    found = conjugate_gradients(lambda v: 2 * v, b, max_steps=3)
    close(found.x, b / 2, rtol=1e-6)
    assert not found.negative_curvature


def test_nothing_to_solve():
    found = solve(np.eye(3), b=np.zeros(3))
    close(found.x, np.zeros(3), rtol=0)
    assert found.residual == 0
    assert not found.negative_curvature


def test_what_is_not_finite_comes_through():
    assert np.isnan(solve(np.full((3, 3), np.nan)).x).all()
    assert np.isnan(solve(np.eye(3), b=np.full(3, np.nan)).x).all()


def test_trees_under_vmap():
    """Each system ends by itself."""
    scales = jnp.asarray([2.0, -1.0, 4.0])

    def one(scale):
        b = {"u": jnp.ones(2), "v": jnp.full((1, 2), 3.0)}
        product = lambda v: {"u": scale * v["u"], "v": 2 * scale * v["v"]}
        return conjugate_gradients(product, b, max_steps=2)

    found = jax.jit(jax.vmap(one))(scales)
    close(found.x["u"][:, 0], np.array([0.5, 1, 0.25]))
    close(found.x["v"][:, 0, 1], np.array([0.75, 3, 0.375]))
    assert found.negative_curvature.tolist() == [False, True, False]


def test_a_derivative_passes_through():
    """`d(b' A^-1 b)/dA = -x x'`."""
    a = jnp.asarray(matrices(3, 1)[0])

    def value(a):
        return B @ conjugate_gradients(lambda v: a @ v, jnp.asarray(B), max_steps=3).x

    x = np.linalg.solve(a, B)
    found = jax.jit(jax.grad(value))(a)
    close(found + found.T, -2 * np.outer(x, x), rtol=1e-6)


def test_number_of_steps_is_checked():
    with pytest.raises(ValueError, match="max_steps is 0"):
        conjugate_gradients(lambda v: v, jnp.ones(2), max_steps=0)
    with pytest.raises(ValueError, match="fallback is 'none'; expected one of right_side"):
        conjugate_gradients(lambda v: v, jnp.ones(2), max_steps=1, fallback="none")
