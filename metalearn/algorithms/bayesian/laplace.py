"""Laplace's approximation: a Gaussian with the curvature of a posterior at its mode.

The precision of the Gaussian is `H = sum_n J_n' G_n J_n + tau I`. `J_n` are the derivatives
of the outputs of one example in the parameters, `G_n` is the Hessian of its loss in these
outputs, tau the precision of an isotropic prior. H is kept whole, in blocks or diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from metalearn.core import trees
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, LossFn, PyTree

Curvature = Literal["kronecker", "diagonal", "last_layer"]
CURVATURES: tuple[str, ...] = get_args(Curvature)
LARGEST = 2048  # parameters of a dense block


class Laplace(NamedTuple):
    """A Gaussian of precision H.

    Attributes:
      log_det: log det H, scalar.
      draw: `key -> deviations from the mean`, a tree like the parameters.
    """

    log_det: Array
    draw: Callable[[Key], PyTree]


def laplace(jacobian: PyTree, hessian: Array, precision: float, kind: Curvature) -> Laplace:
    """The posterior from the derivatives of a network.

    Args:
      jacobian: Derivatives of the outputs of each example, leaves `[N, D, ...]`.
      hessian: Second derivatives of the loss of each example in its outputs, `[N, D, D]`.
      precision: tau.
      kind: What is kept of H.

    Half precision is not enough for a determinant: it is found in single.
    """
    given = jax.tree.map(lambda leaf: leaf.dtype, jacobian)
    jacobian, hessian = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype.itemsize < 4 else leaf,
        (jacobian, hessian),
    )
    found = _laplace(jacobian, hessian, precision, kind)

    def draw(key: Key) -> PyTree:
        return jax.tree.map(lambda leaf, like: leaf.astype(like), found.draw(key), given)

    return Laplace(found.log_det, draw)


def _laplace(
    jacobian: PyTree, hessian: Array, precision: float, kind: Curvature
) -> Laplace:
    weighted = jax.tree.map(
        lambda leaf: jnp.einsum("nij,nj...->ni...", hessian, leaf), jacobian
    )
    if kind == "last_layer":
        flat = jax.vmap(jax.vmap(lambda tree: ravel_pytree(tree)[0]))
        _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0, 0], jacobian))
        whole = _dense(flat(jacobian), flat(weighted), precision)
        return Laplace(whole.log_det, lambda key: unravel(whole.draw(key)))
    leaves, treedef = jax.tree.flatten(jacobian)
    blocks = [
        (_diagonal if kind == "diagonal" else _dense if leaf.ndim <= 3 else _kronecker)(
            leaf, other, precision
        )
        for leaf, other in zip(leaves, jax.tree.leaves(weighted), strict=True)
    ]

    def draw(key: Key) -> PyTree:
        keys = jax.random.split(key, len(blocks))
        draws = [block.draw(k) for block, k in zip(blocks, keys, strict=True)]
        return jax.tree.unflatten(treedef, draws)

    return Laplace(sum(block.log_det for block in blocks), draw)


def _diagonal(jacobian: Array, weighted: Array, precision: float) -> Laplace:
    found = jnp.sum(jacobian * weighted, axis=(0, 1))
    # As `_clean` does: what is below zero belongs to a loss that is not convex.
    found = jnp.where(found > 0, found, 0) + precision

    def draw(key: Key) -> Array:
        return jax.random.normal(key, found.shape, found.dtype) / jnp.sqrt(found)

    return Laplace(jnp.sum(jnp.log(found)), draw)


def _dense(jacobian: Array, weighted: Array, precision: float) -> Laplace:
    shape, rows = jacobian.shape[2:], math.prod(jacobian.shape[:2])
    left, right = jacobian.reshape(rows, -1), weighted.reshape(rows, -1)
    matrix = left.T @ right

    def draw(key: Key) -> Array:
        found, vectors = jnp.linalg.eigh(matrix)
        noise = jax.random.normal(key, found.shape, found.dtype)
        return (vectors @ (noise / jnp.sqrt(_clean(found) + precision))).reshape(shape)

    values = _clean(jnp.linalg.eigvalsh(matrix)) + precision
    return Laplace(jnp.sum(jnp.log(values)), draw)


def _kronecker(jacobian: Array, weighted: Array, precision: float) -> Laplace:
    shape, rows = jacobian.shape[2:], math.prod(jacobian.shape[:2])
    left, right = (a.reshape(rows, -1, shape[-1]) for a in (jacobian, weighted))
    inputs = jnp.einsum("kio,kjo->ij", left, right)
    outputs = jnp.einsum("kio,kip->op", left, right)
    # An array that nothing depends on has no trace; its block is the prior alone.
    trace = jnp.trace(inputs)
    outputs = outputs / jnp.where(trace > 0, trace, 1)

    def together(a: Array, b: Array) -> Array:
        return _clean(a)[:, None] * _clean(b)[None] + precision

    values = together(jnp.linalg.eigvalsh(inputs), jnp.linalg.eigvalsh(outputs))

    def draw(key: Key) -> Array:
        (a, left), (b, right) = jnp.linalg.eigh(inputs), jnp.linalg.eigh(outputs)
        noise = jax.random.normal(key, (a.size, b.size), a.dtype)
        return (left @ (noise / jnp.sqrt(together(a, b))) @ right.T).reshape(shape)

    return Laplace(jnp.sum(jnp.log(values)), draw)


def _clean(values: Array) -> Array:
    """Ascending eigenvalues `[P]`, with zeros for what may be rounding of the largest.

    Of zeros that makes small numbers of either sign, which tau may not outweigh.
    """
    rounding = values.size * jnp.finfo(values.dtype).eps * values[-1]
    return jnp.where(values > rounding, values, 0)


def output_hessian(loss_fn: LossFn, outputs: Array, examples: Examples) -> Array:
    """Second derivative of the loss of each example in its own outputs.

    Args:
      loss_fn: Mean loss of one task.
      outputs: `[N, ...]`, of D numbers an example.
      examples: Targets of the examples, and the mask.

    Returns:
      `[N, D, D]`, zero for masked rows.
    """
    shape = outputs.shape[1:]

    def one(row: Array, x: PyTree, y: PyTree) -> Array:
        x, y = jax.tree.map(lambda leaf: leaf[None], (x, y))
        alone = Examples(x=x, y=y, mask=jnp.ones((1,), bool))
        return loss_fn(row.reshape(1, *shape), alone)

    rows = outputs.reshape(outputs.shape[0], -1)
    found = jax.vmap(jax.hessian(one))(rows, examples.x, examples.y)
    # Whatever a masked row holds, its example has no likelihood.
    return jnp.where(examples.mask[:, None, None], found, 0)


def check_blocks(params: PyTree, kind: Curvature) -> None:
    """Checks that what is to be factored is not too large.

    Args:
      params: Parameters that get a posterior.
      kind: What is kept of H.

    Raises:
      ValueError: a matrix of it is larger than `LARGEST`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sizes = {}
    if kind == "last_layer":
        sizes["the head"] = sum(leaf.size for _, leaf in leaves)
    elif kind == "kronecker":
        for path, leaf in leaves:
            last = leaf.shape[-1] if leaf.ndim else 1
            sides = max(last, leaf.size // max(last, 1) if leaf.ndim > 1 else 1)
            sizes[trees.path_string(path)] = sides
    for which, size in sizes.items():
        if size > LARGEST:
            raise ValueError(
                f"curvature={kind!r} would factor a matrix of {size} x {size} for "
                f"{which}; the largest is {LARGEST}. Use curvature='diagonal', or let "
                "adapt_filter leave it out."
            )
