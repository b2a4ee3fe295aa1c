"""The support vector machine of several classes, as a function that can be differentiated.

K. Crammer, Y. Singer. On the Algorithmic Implementation of Multiclass Kernel-based Vector
Machines. JMLR 2001: the problem, by its dual.

S. Boyd, N. Parikh, E. Chu, B. Peleato, J. Eckstein. Distributed Optimization and
Statistical Learning via the Alternating Direction Method of Multipliers. Foundations and
Trends in Machine Learning 2011: the iterations, ADMM.

B. Amos, J. Z. Kolter. OptNet: Differentiable Optimization as a Layer in Neural Networks.
ICML 2017: derivatives of the solution from the conditions of optimality.

ADMM finds which bounds the solution touches. With these known the conditions of optimality
are linear equations. One solve of them makes the solution exact, and the derivative of
that solve is the derivative of the solution. So the iterations are not differentiated, and
derivatives of any order are further solves. Nothing has a derivative with respect to which
bounds are touched: where one is about to change, the solution has a kink.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metalearn.core import loops
from metalearn.core.types import Array

# Of ADMM. For 5 and 20 Gaussian classes of 5 examples these find the bounds within 47
# iterations; a penalty of 1 or 0.3 takes up to 77.
RELAXATION = 1.7
PENALTY = 0.5  # over the mean curvature
MOST_STEPS = 200  # of conjugate gradients


class Dual(NamedTuple):
    """Solution of the dual problem.

    Attributes:
      alpha: Dual variables, `[N, W]`; zero for masked rows and absent classes.
      residual: Largest violation of the conditions of optimality, a scalar, where 1 is the
        margin. It has no derivative.
    """

    alpha: Array
    residual: Array


def crammer_singer(
    gram: Array,
    labels: Array,
    mask: Array,
    *,
    num_ways: int,
    cost: float = 0.1,
    iterations: int = 60,
) -> Dual:
    """Dual solution of the support vector machine of several classes.

    With the Gram matrix G it is the `alpha` that minimises
    `sum_k alpha_k' G alpha_k / 2 - sum_i alpha_i^{y_i}` where for each example i
    `sum_k alpha_i^k = 0`, `alpha_i^{y_i} <= cost` and `alpha_i^k <= 0` for other k. Classes
    without an example take no part, so room for more classes changes nothing.

    Args:
      gram: Symmetric and positive semi-definite, `[N, N]`; the only argument with a
        derivative.
      labels: Classes, int32 `[N]`.
      mask: Mask of the valid rows, bool `[N]`.
      num_ways: W.
      cost: C, the price of an example that misses its margin by 1.
      iterations: Number of iterations that look for the bounds that the solution touches.

    Returns:
      A `Dual`.
    """
    dtype = gram.dtype
    own = jax.nn.one_hot(labels, num_ways, axis=0, dtype=bool) & mask[None]  # [W, N]
    problem = _Problem(
        gram=jnp.where(mask[:, None] & mask[None], gram, 0),
        linear=own.astype(dtype),
        upper=cost * own.astype(dtype),
        allowed=own.any(1, keepdims=True) & mask[None],
        cost=jnp.where(mask, jnp.asarray(cost, dtype), 0),
    )
    still = jax.lax.stop_gradient(problem)
    rate = _mean_curvature(still)
    found = _admm(still, PENALTY * rate, iterations)
    # Compared with the bound, to which the projection sets what touches it.
    free = still.allowed & (found < still.upper)
    exact = found + _correction(problem, rate, free, found)
    before = _residual(still, rate, found)
    after = _residual(still, rate, jax.lax.stop_gradient(exact))
    # Where the iterations have not found the bounds, the solution of the linear equations
    # may lie beyond some. The derivative is that of the equations in both cases.
    better = after <= before
    value = jnp.where(better, jax.lax.stop_gradient(exact), found)
    slope = exact - jax.lax.stop_gradient(exact)
    residual = jnp.where(better, after, before)
    return Dual(alpha=(value + slope).T, residual=residual)


class _Problem(NamedTuple):
    """The problem, with classes before examples: its variables are `[W, N]`.

    Attributes:
      gram: Gram matrix, `[N, N]`.
      linear: 1 for the class of an example, `[W, N]`.
      upper: Upper bounds, `[W, N]`.
      allowed: Whether a variable takes part; others are 0, bool `[W, N]`.
      cost: Sum of the upper bounds of each example, `[N]`.
    """

    gram: Array
    linear: Array
    upper: Array
    allowed: Array
    cost: Array

    def gradient(self, alpha: Array) -> Array:
        """Gradient of the objective, `[W, N]`."""
        return alpha @ self.gram - self.linear

    def project(self, point: Array) -> Array:
        """The nearest point that keeps the constraints.

        For each example it is `min(point - shift, upper)` with the shift that makes the sum
        zero. With gaps `t = point - upper`, which are what falls below the shift? For any
        set of classes `shift <= (cost + sum of their t) / their number`, with equality for
        the right one, which are those with t up to some t_j. So the shift is the least of
        these numbers over j.
        """
        gaps = jnp.where(self.allowed, point - self.upper, jnp.inf)
        below = gaps[:, None] <= gaps[None]  # [W, W, N], classes up to each class
        # A compiler may compute both sides apart, with other rounding.
        below = below | jnp.eye(gaps.shape[0], dtype=bool)[:, :, None]
        sums = jnp.sum(jnp.where(below, gaps[:, None], 0), 0)
        counts = jnp.sum(below, 0).astype(gaps.dtype)
        shift = jnp.min((self.cost[None] + sums) / counts, 0)
        moved = self.upper + jnp.minimum(gaps - shift[None], 0)
        return jnp.where(self.allowed, moved, 0)


def _mean_curvature(problem: _Problem) -> Array:
    """Mean of the diagonal of the Gram matrix over valid rows; 1 where it is 0."""
    num = jnp.maximum(jnp.sum(problem.allowed.any(0)), 1).astype(problem.gram.dtype)
    mean = jnp.trace(problem.gram) / num
    return jnp.where(mean > 0, mean, 1)


def _admm(problem: _Problem, penalty: Array, iterations: int) -> Array:
    """A point near the solution that keeps the constraints, `[W, N]`."""
    eye = jnp.eye(problem.gram.shape[0], dtype=problem.gram.dtype)
    factor = jnp.linalg.cholesky(problem.gram + penalty * eye)
    inverse = jax.scipy.linalg.cho_solve((factor, True), eye)

    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, dual = carry
        alpha = (problem.linear + penalty * (kept - dual)) @ inverse
        alpha = RELAXATION * alpha + (1 - RELAXATION) * kept
        new = problem.project(alpha + dual)
        return new, dual + alpha - new

    zero = jnp.zeros_like(problem.linear)
    return loops.repeat(step, (zero, zero), iterations)[0]


def _correction(problem: _Problem, rate: Array, free: Array, found: Array) -> Array:
    """What leads from a point to the solution that touches the same bounds, `[W, N]`.

    The solution makes the gradient equal over the free classes of each example. A change of
    the free variables whose sum is zero for each example is a point of a linear space;
    `tangent` projects to it.
    """
    counts = jnp.maximum(jnp.sum(free, 0, keepdims=True), 1).astype(found.dtype)

    def tangent(change: Array) -> Array:
        change = jnp.where(free, change, 0)
        mean = jnp.sum(change, 0, keepdims=True) / counts
        return jnp.where(free, change - mean, 0)

    eps = float(jnp.finfo(found.dtype).eps)

    def product(change: Array) -> Array:
        # Multiples of the mean curvature: a little everywhere, for a Gram matrix that is
        # singular, and one outside of the linear space, so that what rounding leaves there
        # does not grow.
        inside = tangent(change)
        outside = change - inside
        return tangent(inside @ problem.gram) + rate * (4 * eps * inside + outside)

    def solve(product: Callable[[Array], Array], right: Array) -> Array:
        # Steps end early, for nothing differentiates them.
        steps = min(found.size, MOST_STEPS)
        change = jax.scipy.sparse.linalg.cg(product, right, tol=100 * eps, maxiter=steps)[0]
        # NaN times a derivative of zero is NaN: where there is no solution, no correction.
        return jnp.where(jnp.all(jnp.isfinite(change)), change, 0)

    right = -tangent(problem.gradient(found))
    return tangent(jax.lax.custom_linear_solve(product, right, solve, symmetric=True))


def _residual(problem: _Problem, rate: Array, alpha: Array) -> Array:
    """Length of a projected gradient step, over its rate: zero at the solution alone."""
    moved = problem.project(alpha - problem.gradient(alpha) / rate)
    return rate * jnp.max(jnp.abs(alpha - moved))
