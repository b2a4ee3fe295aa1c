"""Max-pooling over disjoint windows as element-wise selections."""

import functools
import math

import jax
from jax import lax

# Each element of a window is a slice in the program.
MAX_WINDOW = 128


def max_pool_rule(eqn):
    window, strides = eqn.params["window_dimensions"], eqn.params["window_strides"]
    (images,), (out,) = eqn.invars, eqn.outvars
    if (
        window != strides
        or any(pad != (0, 0) for pad in eqn.params["padding"])
        or any(d != 1 for d in eqn.params["base_dilation"])
        or any(d != 1 for d in eqn.params["window_dilation"])
        or not 1 < math.prod(window) <= MAX_WINDOW
        or 0 in (*images.aval.shape, *out.aval.shape)
    ):
        return None
    return functools.partial(_max_pool, window=window)


@functools.partial(jax.jit, static_argnames="window")
def _max_pool(images, *, window):
    """Maximum over disjoint windows; trailing rows that fill no window are left out.

    Args:
      images: Array of any rank.
      window: Window size along each axis of `images`.
    Returns:
      Array of shape `images.shape[i] // window[i]`.
    """

    def first_maximum(left, right):
        # `lax.max` would halve the gradient of a tie, select-and-scatter gives all
        # of it to the first.  The second condition keeps NaN, as `lax.max` does.
        return lax.select((left >= right) | (left != left), left, right)

    # Axis by axis from the last: the winner of a tie is still the first maximum in
    # row-major order of the window, with fewer slices than one per window element.
    for axis in reversed(range(images.ndim)):
        size = window[axis]
        limit = images.shape[axis] // size * size
        slices = (
            lax.slice_in_dim(images, start, limit, size, axis) for start in range(size)
        )
        images = functools.reduce(first_maximum, slices)
    return images
