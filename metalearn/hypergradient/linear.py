"""Linear systems of which only products with the matrix are known."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from jax.scipy.sparse import linalg

from metalearn.core import checks
from metalearn.core.types import Array, PyTree
from metalearn.hypergradient.result import along, norm
from metalearn.inner.conjugate import conjugate_gradients

Method = Literal["cg", "gmres", "bicgstab", "neumann"]
Product = Callable[[PyTree], PyTree]
Solve = Callable[[Product, PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class Linear:
    """Settings of the linear solve in an implicit derivative.

    The methods for any matrix are those of `jax.scipy.sparse.linalg`. "cg" is
    `metalearn.inner.conjugate`, which stops where a matrix is not positive definite. The
    Hessian of a network that is still in training is not.

    Attributes:
      method: Way to solve. "cg" needs a symmetric positive definite matrix, which the
        Hessian at a minimum is. "gmres" and "bicgstab" take any matrix, "gmres" in float32
        or float64. "neumann" sums
        `rate (I - rate A)^j b` over `j` (J. Lorraine, P. Vicol, D. Duvenaud, Optimizing
        Millions of Hyperparameters by Implicit Differentiation, AISTATS 2020). With a rate
        of 1 that is the natural series of a fixed point.
      max_steps: Largest number of steps, or of terms; 1 or more.
      tolerance: Relative residual that ends the solve. It should be no larger than that of
        the inner problem.
      damping: Number added to the diagonal of the matrix, 0 or more. It changes the
        answer; the adjoint residual is that of the matrix without it.
      rate: Factor of "neumann", above 0. The series of a positive matrix converges below
        `2 / largest eigenvalue`.
    """

    method: Method = "cg"
    max_steps: int = 100
    tolerance: float = 1e-6
    damping: float = 0.0
    rate: float = 1.0


class Prepared(NamedTuple):
    """What a derivative needs of a linear solver.

    Attributes:
      solve: Function `(product, right) -> solution`.
      symmetric: Whether the solver takes the matrix to be its own transpose.
    """

    solve: Solve
    symmetric: bool


def prepared(linear: Any) -> Prepared:
    """Makes a solver of what users give as `linear=`.

    Args:
      linear: Name of a method, a `Linear`, a solver of the package lineax, or a function
        `(product, right) -> solution` of trees.

    Raises:
      TypeError: it is none of these.
      ValueError: a setting is out of range.
    """
    if isinstance(linear, str):
        checks.one_of("linear", linear, get_args(Method))
        linear = Linear(cast(Method, linear))
    if isinstance(linear, Linear):
        checks.one_of("method", linear.method, get_args(Method))
        checks.whole_number("max_steps", linear.max_steps, least=1)
        checks.number("tolerance", linear.tolerance)
        checks.number("damping", linear.damping)
        checks.number("rate", linear.rate, positive=True)
        return Prepared(functools.partial(_solve, linear), linear.method == "cg")
    if any(base.__module__.startswith("lineax.") for base in type(linear).__mro__):
        return _of_lineax(linear)
    if callable(linear) and not isinstance(linear, type):
        return Prepared(linear, symmetric=False)
    raise TypeError(
        f"linear is a {type(linear).__name__}; expected one of "
        f"{', '.join(get_args(Method))}, a hypergradient.Linear, a solver of lineax such "
        "as lineax.GMRES(rtol=1e-6, atol=0), or a function (product, right) -> solution."
    )


def _solve(settings: Linear, product: Product, right: PyTree) -> PyTree:
    if settings.damping:
        undamped = product
        product = lambda v: along(settings.damping, v, undamped(v))
    most, tolerance = settings.max_steps, settings.tolerance
    if settings.method == "cg":
        return conjugate_gradients(
            product, right, max_steps=most, fallback="shortest", tolerance=tolerance
        ).x
    if settings.method == "neumann":
        return _neumann(settings, product, right)
    if settings.method == "bicgstab":
        return linalg.bicgstab(product, right, tol=tolerance, maxiter=most)[0]
    size = sum(leaf.size for leaf in jax.tree.leaves(right))
    restart = min(20, size, most)
    # `gmres` counts restarts.
    rounds = -(-most // restart)
    return linalg.gmres(product, right, tol=tolerance, restart=restart, maxiter=rounds)[0]


def _neumann(settings: Linear, product: Product, right: PyTree) -> PyTree:
    enough = settings.tolerance * norm(right)

    def unfinished(carry: tuple) -> Array:
        _, left, step = carry
        return (norm(left) > enough) & (step < settings.max_steps)

    def add_term(carry: tuple) -> tuple:
        x, left, step = carry
        # What is left of the right side is `(I - rate A)^j b`.
        x = along(settings.rate, left, x)
        return x, along(-settings.rate, product(left), left), step + 1

    start = (jax.tree.map(jnp.zeros_like, right), right, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, add_term, start)[0]


def _of_lineax(solver: Any) -> Prepared:
    # Whoever hands in a solver of lineax has it, so no installation needs it.
    lineax = importlib.import_module("lineax")
    positive = isinstance(solver, (lineax.CG, lineax.Cholesky))
    tags = (lineax.positive_semidefinite_tag,) if positive else ()

    def solve(product: Product, right: PyTree) -> PyTree:
        like = jax.eval_shape(lambda: right)
        matrix = lineax.FunctionLinearOperator(product, like, tags)
        # A solve that ends early is told by the adjoint residual, also within `jit`.
        return lineax.linear_solve(matrix, right, solver, throw=False).value

    return Prepared(solve, positive)


def system(linear: Prepared, product: Product, right: PyTree) -> PyTree:
    """Solution of `product(x) = right`, whose derivatives are further solves."""
    return jax.lax.custom_linear_solve(
        product, right, linear.solve, linear.solve, symmetric=linear.symmetric
    )
