"""Search by values alone: evolution strategies and hill climbing, for any function.

T. Salimans, J. Ho, X. Chen, S. Sidor, I. Sutskever. Evolution Strategies as a Scalable
Alternative to Reinforcement Learning. arXiv 1703.03864, 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from metalearn.core import loops
from metalearn.core.types import Array, Key, PyTree


def smoothed_gradient(
    value: Callable[[PyTree, Key], Array],
    params: PyTree,
    keys: Key,
    sigma: float,
    chunk: int | None = None,
) -> tuple[PyTree, Array]:
    """The gradient of a function smoothed by a Gaussian, estimated from its values.

    Args:
      value: `(params, key) -> scalar`; both ends of a pair get the same key.
      params: Where.
      keys: `[n]`, one a pair.
      sigma: Width of the Gaussian.
      chunk: Pairs evaluated at once, a divisor of n; all when `None`.

    Returns:
      The estimate, like `params`, and the values `[n, 2]`.
    """
    num = keys.shape[0]

    def pair(key: Key) -> tuple[PyTree, Array]:
        k_noise, k_value = jax.random.split(key)
        noise = _normal(k_noise, params)

        def end(sign: Array) -> Array:
            moved = jax.tree.map(
                lambda p, e: p + sigma * sign.astype(p.dtype) * e, params, noise
            )
            return value(moved, k_value)

        return noise, jax.vmap(end)(jnp.array([1.0, -1.0]))

    def pairs(keys: Key) -> tuple[PyTree, Array]:
        noise, values = jax.vmap(pair)(keys)
        weights = (values[:, 0] - values[:, 1]) / (2 * sigma * num)
        return jax.tree.map(
            lambda e: jnp.tensordot(weights.astype(e.dtype), e, 1), noise
        ), values

    if chunk is None or chunk == num:
        return pairs(keys)
    grads, values = jax.lax.map(pairs, keys.reshape(-1, chunk))
    return jax.tree.map(lambda g: g.sum(0), grads), values.reshape(num, 2)


def climb(
    value: Callable[[PyTree], Array], params: PyTree, keys: Key, sigma: float
) -> PyTree:
    """Hill climbing downwards: the best of some random moves, if it is one at all.

    Args:
      value: `params -> scalar`.
      params: Where to start.
      keys: `[S, m]`: rounds, and moves tried in each.
      sigma: Width of the moves.
    """

    def height(params: PyTree) -> Array:
        # Where there is no number nobody stays, nor goes.
        found = value(params)
        return jnp.where(jnp.isnan(found), jnp.inf, found)

    def round_of(carry: tuple[PyTree, Array], keys: Key) -> tuple[tuple, None]:
        params, lowest = carry
        moved = jax.vmap(
            lambda k: jax.tree.map(lambda p, e: p + sigma * e, params, _normal(k, params))
        )(keys)
        values = jax.vmap(height)(moved)
        best = jnp.argmin(values)
        better = values[best] < lowest
        params = jax.tree.map(lambda p, m: jnp.where(better, m[best], p), params, moved)
        return (params, jnp.where(better, values[best], lowest)), None

    return loops.scan(round_of, (params, height(params)), keys)[0][0]


def evolve(
    value: Callable[[PyTree], Array],
    params: PyTree,
    inner_opt: optax.GradientTransformation,
    keys: Key,
    sigma: float,
) -> PyTree:
    """Steps of an optimiser on the smoothed function.

    Args:
      value: `params -> scalar`.
      params: Where to start.
      inner_opt: Gets the estimates of `smoothed_gradient`.
      keys: `[S, m]`: steps, and pairs of each.
      sigma: Width of the smoothing.
    """

    def step(carry: tuple[PyTree, PyTree], keys: Key) -> tuple[tuple, None]:
        params, opt_state = carry
        grads, _ = smoothed_gradient(lambda p, key: value(p), params, keys, sigma)
        updates, opt_state = inner_opt.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return loops.scan(step, (params, inner_opt.init(params)), keys)[0][0]


def as_scalar(value: Any) -> Array:
    """The value of an objective, also of a count or a truth value, as a real number.

    Raises:
      ValueError: it is no scalar.
    """
    value = jnp.asarray(value)
    if value.shape:
        raise ValueError(
            f"the objective gave shape {value.shape}; expected a scalar for one task. Take "
            "the mean over its valid examples, as metalearn.core.losses do."
        )
    real = jnp.issubdtype(value.dtype, jnp.floating)
    return value if real else value.astype(jnp.result_type(float))


def _normal(key: Key, like: PyTree) -> PyTree:
    # One draw for all leaves compiles several times faster than one each.
    flat, unflatten = ravel_pytree(like)
    return unflatten(jax.random.normal(key, flat.shape, flat.dtype))
