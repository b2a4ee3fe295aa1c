"""Clips for inner optimisers, whose derivative at a gradient of zero is right.

The norm of a vector has no derivative at zero. The clips of optax are the identity there,
whose derivative is the identity, but they compute a quotient by the norm as well and drop
it: the value is dropped, the NaN of its derivative is not (0 times NaN is NaN). One task
with a gradient of zero, or one dead layer, then makes the meta-gradient NaN. Here the
argument of the root is replaced where it is not used.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from metalearn.core import checks
from metalearn.core.types import Array, PyTree


def _norm(square: Array) -> Array:
    """The root of a sum of squares, with the derivative 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _above(norm: Array, limit: Array | float) -> Array:
    """The factor that brings a norm down to a limit; 1 below it."""
    over = norm > limit
    return jnp.where(over, limit / jnp.where(over, norm, 1), 1)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, for inner optimisers.

    Gradients are scaled down to a norm of `max_norm`, taken over all leaves together.

    Args:
      max_norm: Largest norm, above 0.

    Raises:
      ValueError: `max_norm` is not a number above 0.

    Example:
      >>> inner_opt = optax.chain(ml.inner.clip_by_global_norm(10.0), optax.sgd(0.1))
    """
    _positive("max_norm", max_norm)

    def clip(grads: PyTree, params: PyTree) -> PyTree:
        del params
        factor = _above(_norm(optax.tree.norm(grads, squared=True)), max_norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return optax.stateless(clip)


def clip_by_block_rms(threshold: float) -> optax.GradientTransformation:
    """`optax.clip_by_block_rms`, for inner optimisers.

    Each leaf is scaled down to a root mean square of `threshold`.

    Args:
      threshold: Largest root mean square, above 0.

    Raises:
      ValueError: `threshold` is not a number above 0.
    """
    _positive("threshold", threshold)

    def one(grad: Array) -> Array:
        return grad * _above(_norm(jnp.mean(jnp.square(grad))), threshold)

    return optax.stateless(lambda grads, params: jax.tree.map(one, grads))


def adaptive_grad_clip(clipping: float, eps: float = 1e-3) -> optax.GradientTransformation:
    """`optax.adaptive_grad_clip`, for inner optimisers.

    The gradient of each unit is scaled down to `clipping` times the norm of its weights
    (A. Brock et al. High-Performance Large-Scale Image Recognition Without Normalization.
    ICML 2021). A unit is a column of a dense kernel, a filter of a convolution, a vector.

    Args:
      clipping: Largest ratio of the norms, above 0.
      eps: Least norm of weights, above 0.

    Raises:
      ValueError: a number is not above 0; in the update: a parameter has more than five
        axes.
    """
    _positive("clipping", clipping)
    _positive("eps", eps)

    def one(grad: Array, param: Array) -> Array:
        limit = clipping * jnp.maximum(_of_units(param), eps)
        return grad * _above(_of_units(grad), limit)

    return optax.stateless(lambda grads, params: jax.tree.map(one, grads, params))


def _of_units(leaf: Array) -> Array:
    """Norms of the units of a parameter, as `optax.adaptive_grad_clip` cuts them."""
    num = jnp.ndim(leaf)
    if num > 5:
        raise ValueError(
            f"adaptive_grad_clip got a parameter of shape {jnp.shape(leaf)}; expected at "
            "most five axes, as a convolution in three dimensions has them."
        )
    axes = 0 if num in (2, 3) else tuple(range(num - 1))
    if jnp.squeeze(leaf).ndim <= 1:  # a vector is a unit, also with axes of one
        axes = None
    return _norm(jnp.sum(jnp.square(leaf), axis=axes, keepdims=True))


def normalize_by_update_norm(
    scale_factor: float = 1.0, eps: float = 1e-6
) -> optax.GradientTransformation:
    """`optax.normalize_by_update_norm`, for inner optimisers.

    Gradients are divided by their norm plus `eps`, taken over all leaves together.

    Args:
      scale_factor: Norm of the result.
      eps: Number added to the norm, above 0.

    Raises:
      ValueError: `eps` is not a number above 0.
    """
    _positive("eps", eps)

    def divide(grads: PyTree, params: PyTree) -> PyTree:
        del params
        norm = _norm(optax.tree.norm(grads, squared=True)) + eps
        return jax.tree.map(lambda g: scale_factor * g / norm.astype(g.dtype), grads)

    return optax.stateless(divide)


def _positive(name: str, value: float) -> None:
    # A learned bound is an array, perhaps a traced one, and is not looked at.
    if not isinstance(value, jax.Array):
        checks.number(name, value, positive=True)
