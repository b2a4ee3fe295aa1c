"""Linear maps of gradients that are a product of one matrix a mode of a parameter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from metalearn.core import trees
from metalearn.core.types import Array, PyTree

# A gradient seen as [taps t, inputs i, outputs o] times a factor on one of the axes:
# (M G)[new] = sum over old of M[new, old] G[old].
_PRODUCTS = {
    "taps": "st,tio->sio",  # M_f
    "inputs": "ji,tio->tjo",  # M_i
    "outputs": "po,tio->tip",  # M_o
}


def curved_sgd(factors: PyTree, rate: Any) -> optax.GradientTransformation:
    """SGD along transformed gradients.

    Args:
      factors: Dictionary as in `meta_curvature` for every gradient.
      rate: A number or scalar array.
    """

    def step(gradient: Array, of: dict[str, Array]) -> Array:
        return -jnp.asarray(rate, gradient.dtype) * transform(gradient, of)

    return optax.stateless(lambda grads, _: jax.tree.map(step, grads, factors))


def transform(gradient: Array, factors: dict[str, Array]) -> Array:
    """`MC(G)` of one gradient.

    Args:
      gradient: `[]`, `[out]`, `[in, out]` or `[height, width, in, out]`.
      factors: Square matrices by the names of the modes; a mode left out keeps still.
    """
    shape = gradient.shape
    outputs = shape[-1] if shape else 1
    inputs = shape[-2] if len(shape) > 1 else 1
    # The axes of HWIO in this order: height and width become one, rows first.
    result = gradient.reshape((-1, inputs, outputs))
    for mode, product in _PRODUCTS.items():
        if mode in factors:
            result = jnp.einsum(product, factors[mode], result)
    return result.reshape(shape)


def check_axes(learner: str, path: Any, leaf: Array) -> None:
    """Refuses a parameter whose modes are unclear.

    Args:
      learner: Name of the learner, for the message.
      path: Key path of the parameter.
      leaf: The parameter.

    Raises:
      ValueError: the parameter has three axes, or more than four.
    """
    if len(leaf.shape) != 3 and len(leaf.shape) <= 4:
        return
    name = trees.path_string(path)
    raise ValueError(
        f"{learner} got the parameter {name!r} of shape {leaf.shape}; expected a vector "
        "[out], a dense kernel [in, out] or a convolution [height, width, in, out], for "
        "which it is clear what the axes are. Keep it out of the inner loop: "
        f"adapt_filter=lambda path, leaf: path != {name!r}, or store it as a matrix."
    )
