"""Diagonal Gaussians over trees of parameters: samples and their divergence."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metalearn.core.types import Array, Key, PyTree


def draw(key: Key, mean: PyTree, log_variance: PyTree) -> PyTree:
    """A sample of a diagonal Gaussian, differentiable in both (reparametrised)."""
    leaves, treedef = jax.tree.flatten(mean)
    keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))
    return jax.tree.map(
        lambda k, m, s: m + jnp.exp(0.5 * s) * jax.random.normal(k, m.shape, m.dtype),
        keys,
        mean,
        log_variance,
    )


def gaussian_kl(
    mean: PyTree, log_variance: PyTree, other_mean: PyTree, other_log_variance: PyTree
) -> Array:
    """`KL(N(mean, variance) | N(other ...))` of diagonal Gaussians, summed over leaves.

    `1/2 sum [log s^2 - log v + v / s^2 + (m - n)^2 / s^2 - 1]` for N(m, v) and N(n, s^2).
    """

    def one(m: Array, v: Array, n: Array, s: Array) -> Array:
        squares = jnp.square(m - n) * jnp.exp(-s)
        return 0.5 * jnp.sum(s - v + jnp.exp(v - s) + squares - 1)

    terms = jax.tree.map(one, mean, log_variance, other_mean, other_log_variance)
    return sum(jax.tree.leaves(terms))
