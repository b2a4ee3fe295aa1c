"""Stein variational gradient descent: particles that move as samples of a density.

Q. Liu, D. Wang. Stein Variational Gradient Descent: A General Purpose Bayesian Inference
Algorithm. NeurIPS 2016.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metalearn.core import checks
from metalearn.core.types import Array, PyTree


def squared_distances(particles: PyTree) -> Array:
    """`[M, M]`, `|theta_j - theta_m|^2` over all leaves `[M, ...]` together.

    From the differences themselves, so that equal particles are exactly 0 apart.
    """

    def of_leaf(leaf: Array) -> Array:
        rows = leaf.reshape(leaf.shape[0], -1)
        return jnp.sum(jnp.square(rows[:, None] - rows[None]), axis=-1)

    return sum(of_leaf(leaf) for leaf in jax.tree.leaves(particles))


def median_bandwidth(distances: Array, *, floor: float = 1e-6) -> Array:
    """`h = median(d^2) / log M` over the pairs of different particles; a constant.

    With it a particle and its `M - 1` neighbours at the median distance have weights of
    1 and `1 / M` each. No derivative passes through it.

    Args:
      distances: Squared ones `[M, M]`, `M >= 2`.
      floor: Least h, for particles that (nearly) coincide: derivatives of the repulsion
        are of the order of `1 / h`.
    """
    num = distances.shape[0]
    pairs = distances[np.triu_indices(num, 1)]
    # A heuristic of the sampler: the initialisation is not to be learned by its means.
    return jax.lax.stop_gradient(jnp.maximum(jnp.median(pairs) / math.log(num), floor))


def rbf_kernel(distances: Array, bandwidth: Array) -> Array:
    """`k = exp(-d^2 / h)`, `[M, M]`."""
    return jnp.exp(-distances / bandwidth)


def svgd(*, repulsion: float = 1.0, floor: float = 1e-6) -> optax.GradientTransformation:
    """Turns gradients of `-log p` of every particle into the steps of SVGD.

    `g_m <- -(1/M) sum_j [k(theta_j, theta_m) grad log p(theta_j) + grad_j k(theta_j,
    theta_m)]` with the kernel `exp(-d^2 / h)`: an optimiser that descends after this,
    such as `optax.sgd`, ascends the density and keeps the particles apart. The first
    term shares gradients among neighbours; the second, the derivative of the kernel by its
    first argument, is `(2/h) sum_j k(theta_j, theta_m) (theta_m - theta_j)`.

    The factor `1/M` stays where particles are too far apart to share anything: then each
    takes about `1/M` of the step it would take alone. A single particle takes all of it
    (k = 1, no repulsion), which is ascent to the mode.

    Args:
      repulsion: Factor of the second term; 0 for none. The derivative leaves a 2 that
        implementations often drop: 0.5 is theirs.
      floor: Least bandwidth, see `median_bandwidth`.

    Returns:
      An optax transformation of trees with leaves `[M, ...]`; it needs the params.

    Raises:
      ValueError: `repulsion` is negative or no number, or `floor` is not positive; in
        `update`: the params are not given.

    Example:
      >>> optimiser = optax.chain(svgd(), optax.sgd(0.1))
    """
    checks.number("repulsion", repulsion)
    checks.number("floor", floor, positive=True)

    def update(grads: PyTree, params: PyTree) -> PyTree:
        if params is None:
            raise ValueError(
                "svgd moves particles by their distances, but update got no params. Call "
                "update(grads, state, params)."
            )
        num = jax.tree.leaves(params)[0].shape[0]
        if num == 1:  # log M = 0 leaves no bandwidth
            return grads
        distances = squared_distances(params)
        bandwidth = median_bandwidth(distances, floor=floor)
        kernel = rbf_kernel(distances, bandwidth)

        def mixed(leaf: Array) -> Array:
            return jnp.tensordot(kernel, leaf, 1, precision="highest")

        def one(grad: Array, leaf: Array) -> Array:
            # Relative to the first, so that the terms of equal particles cancel exactly.
            leaf = leaf - leaf[:1]
            weights = kernel.sum(1).reshape(num, *[1] * (leaf.ndim - 1))
            apart = (2 / bandwidth) * (weights * leaf - mixed(leaf))
            # Leaves of several dtypes share one kernel; each step has that of its own.
            return ((mixed(grad) - repulsion * apart) / num).astype(grad.dtype)

        return jax.tree.map(one, grads, params)

    return optax.stateless(update)
