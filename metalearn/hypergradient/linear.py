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
from metalearn.hypergradient import checked
from metalearn.hypergradient.result import along, largest, norm
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
      max_steps: Largest number of steps, or of terms; 1 or more. For "gmres" it is rounded
        up to whole rounds of 20 or fewer.
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
        return Prepared(_checked(functools.partial(_solve, linear)), linear.method == "cg")
    if any(base.__module__.startswith("lineax.") for base in type(linear).__mro__):
        return _of_lineax(linear)
    if callable(linear) and not isinstance(linear, type):
        return Prepared(_checked(linear), symmetric=False)
    raise TypeError(
        f"linear is a {type(linear).__name__}; expected one of "
        f"{', '.join(get_args(Method))}, a hypergradient.Linear, a solver of lineax such "
        "as lineax.GMRES(rtol=1e-6, atol=0), or a function (product, right) -> solution."
    )


def _solve(settings: Linear, product: Product, right: PyTree) -> PyTree:
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(right)})
    if settings.method == "gmres" and not set(dtypes) <= {"float32", "float64"}:
        raise TypeError(
            f'linear "gmres" is given {", ".join(dtypes)}; expected float32 or float64. '
            'Use "bicgstab".'
        )
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
    # `gmres` counts restarts, of which the last has as many steps as the others.
    rounds = -(-most // 20)
    restart = min(size, -(-most // rounds))
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
        # A solve that ends early is told by its residual, also within `jit`.
        return lineax.linear_solve(matrix, right, solver, throw=False).value

    return Prepared(_checked(solve), positive)


def _checked(solve: Solve) -> Solve:
    """The solver at a right side of size 1, whose faults are not lost in its solution."""

    def checked_solve(product: Product, right: PyTree) -> PyTree:
        # Solvers square the right side, which is 0 or infinite far from 1.
        most = functools.reduce(jnp.maximum, map(largest, jax.tree.leaves(right)))
        unit = jnp.where((most > 0) & jnp.isfinite(most), most, 1)
        scaled = jax.tree.map(lambda leaf: leaf / unit.astype(leaf.dtype), right)
        found = solve(product, scaled)
        hint = "A function that returns more than the solution is wrapped: solve(...)[0]."
        checked.like("the result of linear", found, right, "the right side", hint)
        # A loop that waits for a small residual ends at once on NaN, with a solution of 0.
        factor = jnp.where(jnp.isfinite(most), unit, jnp.nan)
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), found)

    return checked_solve


def system(
    linear: Prepared, product: Product, right: PyTree, accept: float | None
) -> PyTree:
    """Solution of `product(x) = right`, whose derivatives are further solves.

    Args:
      linear: Solver.
      product: Function `v -> A v`, linear.
      right: Right side.
      accept: Largest relative residual. A solution with more is NaN; `None` takes any.
    """

    def solve(product: Product, right: PyTree) -> PyTree:
        found = linear.solve(product, right)
        if accept is None:
            return found
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(right)]
        most = max(accept, *(10 * float(jnp.finfo(dtype).eps) for dtype in dtypes))
        missing = norm(along(-1.0, right, product(found)))
        # Nobody is told of a linear solve inside of a derivative, so that a bad one has to
        # be seen in its result.
        good = missing <= most * norm(right)
        return jax.tree.map(lambda leaf: jnp.where(good, leaf, jnp.nan), found)

    # Never as symmetric, which would take the matrix for its transpose unasked.
    return jax.lax.custom_linear_solve(product, right, solve, solve)
