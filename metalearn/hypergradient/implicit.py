"""Derivatives of the solution of an inner problem, by the implicit function theorem.

Let `G(y, x) = 0` be the optimality condition, with the solution `y(x)`, and `F(x, y)` the
outer loss. With `u` from `(dG/dy)' u = dF/dy` the hypergradient is `dF/dx - (dG/dx)' u`.
How `y` was found does not enter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, given
from metalearn.core.types import Array, PyTree
from metalearn.hypergradient import checked
from metalearn.hypergradient.linear import Prepared, prepared, system
from metalearn.hypergradient.result import Hypergradient, along, norm
from metalearn.inner.hoist import explicit

Optimality = Callable[..., PyTree]


class Solved(NamedTuple):
    """The result of a solver that `implicit` made differentiable.

    Attributes:
      value: Solution, a tree like the start.
      residual: Norm of the optimality condition at the solution, a scalar without a
        derivative. Derivatives are wrong where it is not near 0. It says nothing of the
        linear system behind them, see `accept` of `implicit`.
      aux: Second result of the solver, without a derivative; `None` if there is none.
    """

    value: PyTree
    residual: Array
    aux: PyTree = None


def fixed_point(mapping: Callable[..., PyTree]) -> Optimality:
    """The optimality condition `y - mapping(y, *args)` of a fixed point.

    Use it with `Linear("neumann")`, whose terms are then powers of the derivative of the
    mapping, or with "gmres".

    Args:
      mapping: Function `(y, *args) -> y`, a contraction near its fixed point.

    Example:
      >>> float(fixed_point(lambda y, x: 0.5 * y + x)(2.0, 1.0))
      0.0
    """

    _functions(mapping=mapping)

    def optimality(value: PyTree, *args: PyTree) -> PyTree:
        mapped = mapping(value, *args)
        hint = "A fixed point is mapped to itself."
        checked.like("the result of mapping", mapped, value, "its first argument", hint)
        return jax.tree.map(jnp.subtract, value, mapped)

    return optimality


def implicit(
    optimality: Optimality,
    solver: Callable[..., PyTree],
    *,
    linear: Any = "cg",
    accept: float | None = 1e-2,
    has_aux: bool = False,
) -> Callable[..., Solved]:
    """Makes a solver of jax differentiable, without a look into it.

    The derivative of the solution solves a linear system, in forward and in reverse mode
    and to any order. The solver may therefore have loops of any kind. The arguments have
    derivatives, and so have arrays that `optimality` closes over; the start has none. A
    solver outside of jax, such as one of scipy, needs `jax.pure_callback`.

    Args:
      optimality: Function `(y, *args) -> tree like y`, zero at a solution, such as
        `jax.grad(inner_loss)` or a `fixed_point`.
      solver: Function `(start, *args) -> y`, such as one that calls
        `optimistix.root_find(...).value`.
      linear: Way to solve the linear system: "cg" (for symmetric positive matrices, such
        as the Hessian of a loss), "gmres", "bicgstab" or "neumann"; a `Linear` with their
        settings; a solver of lineax; or a function `(product, right) -> solution`, which
        may not close over what is differentiated. A `fixed_point` seldom has a symmetric
        matrix: give it "neumann", "gmres" or "bicgstab".
      accept: Largest relative residual of the linear system. Derivatives are NaN above it,
        for there is no place to report them; `None` takes any, such as that of a series
        that is cut short on purpose. It is at least ten times the rounding of the dtype.
      has_aux: Whether the solver returns a pair of the solution and a tree of arrays.

    Returns:
      A function `(start, *args) -> Solved`, which works under `jit` and `vmap`.

    Raises:
      TypeError: a function is none, or `linear` is unknown.
      ValueError: a setting of `linear` is out of range. The returned function raises it for
        trees that differ.

    Example:
      >>> solve = ml.hypergradient.implicit(
      ...     lambda w, strength: (1.0 + strength) * w - 3.0,
      ...     lambda start, strength: 3.0 / (1.0 + strength),
      ... )
      >>> float(jax.grad(lambda strength: solve(jnp.zeros(()), strength).value)(1.0))
      -0.75
    """
    _functions(optimality=optimality, solver=solver)
    given.flag("has_aux", has_aux)
    if accept is not None:
        checks.number("accept", accept, positive=True)
    how = prepared(linear)

    def solve(start: PyTree, *args: PyTree) -> Solved:
        start = checked.real("the start", start)
        args = jax.tree.map(jnp.asarray, args)
        like = jax.eval_shape(solver, start, *args)
        if has_aux and not (isinstance(like, tuple) and len(like) == 2):
            raise ValueError(
                f"solver returns a {type(like).__name__}; expected a pair (solution, aux), "
                "because has_aux is set."
            )
        hint = "With a second result of the solver, set has_aux=True."
        like = like[0] if has_aux else like
        checked.like("the solution", like, start, "the start", hint)
        _condition(optimality, start, *args)
        value, aux = _run(optimality, solver, how, accept, has_aux, start, args)
        return Solved(value, norm(optimality(value, *args)), aux)

    return solve


def _run(
    optimality: Optimality,
    solver: Callable,
    how: Prepared,
    accept: float | None,
    has_aux: bool,
    start: PyTree,
    args: tuple,
) -> tuple:
    # A rule may not close over traced arrays, so they are arguments.
    condition, real, others = explicit(optimality, start, *args)
    solution, *held = explicit(solver, start, *args)

    # A rule for forward mode whose linear solve can be transposed: it serves reverse mode
    # and, since it calls `run` again, higher derivatives.
    @jax.custom_jvp
    def run(start: PyTree, held: list, others: list, real: list, args: tuple) -> tuple:
        found = solution(*held, start, *args)
        return found if has_aux else (found, None)

    @run.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple:
        *_, others, real, args = primals
        value, aux = run(*primals)

        def in_args(real: list, args: tuple) -> PyTree:
            return condition(real, others, value, *args)

        _, right = jax.jvp(in_args, (real, args), tangents[-2:])
        _, product = jax.linearize(lambda v: condition(real, others, v, *args), value)
        change = jax.tree.map(jnp.negative, system(how, product, right, accept))
        return (value, aux), (change, jax.tree.map(_no_change, aux))

    return run(start, held, others, real, args)


def _no_change(leaf: Array) -> Any:
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0)


def implicit_gradient(
    optimality: Optimality,
    outer_loss: Callable,
    params: PyTree,
    hparams: PyTree,
    *,
    linear: Any = "cg",
) -> Hypergradient:
    """Hypergradient at the present parameters of an inner model, taken to be a solution.

    The inner model may have been trained in any way. `residual` says how far it is from a
    solution, and `adjoint_residual` how well the linear system was solved. The latter is
    measured with the transposed matrix, so it also shows a matrix that is not symmetric
    under "cg".

    Args:
      optimality: Function `(params, hparams) -> tree like params`, zero at a solution, such
        as `jax.grad(inner_loss)`.
      outer_loss: Function `(params, hparams)` to a scalar, or to a pair of a scalar and
        a tree of arrays.
      params: Parameters of the inner model.
      hparams: Hyper-parameters, a tree of floating numbers.
      linear: Way to solve the linear system, as in `implicit`.

    Returns:
      A `Hypergradient`; its `state` is `params`, and its `residual` is measured there.

    Raises:
      TypeError: hyper-parameters are not floating numbers, or a function is none.
      ValueError: the outer loss is no scalar, or trees differ.

    Example:
      >>> inner = lambda w, strength: (w - 3.0) ** 2 + strength * w**2
      >>> found = ml.hypergradient.implicit_gradient(
      ...     jax.grad(inner), lambda w, strength: w, params=1.5, hparams=1.0
      ... )
      >>> float(found.gradient), float(found.residual)
      (-0.75, 0.0)
    """
    _functions(optimality=optimality, outer_loss=outer_loss)
    how = prepared(linear)
    params = checked.real("params", params)
    hparams = checked.real("hparams", hparams)
    _condition(optimality, params, hparams)
    outer = checked.loss("outer_loss", outer_loss, params, hparams)

    (value, aux), slopes = jax.value_and_grad(outer, (0, 1), has_aux=True)(params, hparams)
    slope, direct = slopes
    condition, pull = jax.vjp(optimality, params, hparams)
    if how.symmetric:
        # A forward derivative of the gradient takes less than a second backward pass.
        _, product = jax.linearize(lambda p: optimality(p, hparams), params)
    else:
        product = lambda v: pull(v)[0]
    adjoint = how.solve(product, slope)
    image, through = pull(adjoint)
    size = norm(slope)
    missing = norm(along(-1.0, slope, image)) / jnp.where(size > 0, size, 1)
    return Hypergradient(
        value=value,
        gradient=along(-1.0, through, direct),
        residual=norm(condition),
        state=params,
        outer_aux=aux,
        adjoint_residual=missing,
    )


def _functions(**functions: Any) -> None:
    for name, fn in functions.items():
        if not callable(fn):
            raise TypeError(f"{name} is a {type(fn).__name__}; expected a function.")


def _condition(optimality: Optimality, params: PyTree, *args: PyTree) -> None:
    found = jax.eval_shape(optimality, params, *args)
    hint = (
        "An optimality condition has an equation for each unknown; that of a loss is "
        "jax.grad(inner_loss)."
    )
    checked.like("the result of optimality", found, params, "its first argument", hint)
