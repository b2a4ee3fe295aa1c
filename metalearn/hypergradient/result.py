"""The result that all hypergradients share, and the norm that they report."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metalearn.core import trees
from metalearn.core.types import Array, PyTree


class Hypergradient(NamedTuple):
    """An outer loss, its gradient in the hyper-parameters, and what the gradient rests on.

    Attributes:
      value: Outer loss, a scalar.
      gradient: Derivative of the outer loss, a tree like the hyper-parameters.
      residual: Norm of the inner optimality condition, a scalar; 0 at a solution. It is the
        norm of the inner gradient where the condition is that of a minimum. Each function
        says at which parameters it is measured.
      state: Inner state after the call, from which training goes on.
      inner_aux: Second result of the inner loss; `None` if there is none.
      outer_aux: Second result of the outer loss; `None` if there is none.
      adjoint_residual: Relative residual of the linear system that the gradient solves, a
        scalar; `None` if it solves none.
    """

    value: Array
    gradient: PyTree
    residual: Array
    state: PyTree
    inner_aux: PyTree = None
    outer_aux: PyTree = None
    adjoint_residual: Array | None = None


def norm(tree: PyTree) -> Array:
    """Euclidean norm of all numbers of a tree, without a derivative.

    It is for reports and scales. Its derivative would be NaN at zero, and a report that is
    added to a loss by mistake should not change the gradient.
    """
    leaves = [trees.widened(leaf) for leaf in jax.tree.leaves(jax.lax.stop_gradient(tree))]
    # Divided by the largest number before the squares, which could be infinite or 0.
    most = functools.reduce(jnp.maximum, map(largest, leaves))
    unit = jnp.where((most > 0) & jnp.isfinite(most), most, 1)
    return unit * jnp.sqrt(sum(jnp.sum(jnp.square(leaf / unit)) for leaf in leaves))


def largest(leaf: Array) -> Array:
    """Largest absolute value of an array; 0 of an empty one, NaN if one is NaN."""
    return jnp.max(jnp.abs(leaf), initial=0)


def along(length: Array | float, direction: PyTree, start: PyTree) -> PyTree:
    """`start + length * direction`, in the dtypes of `start`."""

    def one(d: Array, s: Array) -> Array:
        return s + (jnp.asarray(length, d.dtype) * d).astype(s.dtype)

    return jax.tree.map(one, direction, start)
