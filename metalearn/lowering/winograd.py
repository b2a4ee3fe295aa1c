"""3x3 convolutions by Winograd's minimal filtering: 16 multiplications for four outputs.

Direct products take 36. What stands around them is linear, sums and halvings, so every
derivative, of whatever order, saves the same. The sums grow with the channels and the
products with their square, so this pays from some width on.

Reference: A. Lavin, S. Gray (2016), Fast Algorithms for Convolutional Neural Networks,
F(2x2, 3x3); the matrices B, G and A of its section 4.1 are written out below.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from metalearn.lowering.product import product

# Below, the sums cost more than the products save (measured: benchmarks/NOTES.md).
MIN_SIDE = 8
MIN_CHANNELS = 32


def pays(
    sides: Sequence[int],
    window: Sequence[int],
    channels: Sequence[int],
    steps: Sequence[int],
    dtypes: Sequence[Any],
) -> bool:
    """Whether this is the faster form of a convolution on the default backend.

    Args:
      sides: H and W of the output.
      window: Sides of the kernel.
      channels: Channels of the input and of the output, in one group.
      steps: Strides and dilations of all kinds.
      dtypes: Dtypes of images, kernels and the output.
    """
    return (
        # Elsewhere matrix units make products cheap and sixteen small ones dear.
        jax.default_backend() == "cpu"
        and list(window) == [3, 3]
        and all(step == 1 for step in steps)
        and min(channels) >= MIN_CHANNELS
        and min(sides) >= MIN_SIDE
        # Differences of neighbours cost digits that half precision does not have.
        and set(map(np.dtype, dtypes)) in ({np.dtype("float32")}, {np.dtype("float64")})
    )


def convolution(
    images: jax.Array, kernels: jax.Array, *, precision: Any = None
) -> jax.Array:
    """The correlation of padded images with 3x3 kernels.

    Args:
      images: `[N, H + 2, W + 2, D]`.
      kernels: `[3, 3, D, F]`.
      precision: Precision of the products, as in `lax.dot_general`.

    Returns:
      `[N, H, W, F]`; NaN where a direct product of an infinite input is infinite.
    """
    num, height, width, depth = images.shape
    height, width, features = height - 2, width - 2, kernels.shape[-1]
    rows, columns = -(-height // 2), -(-width // 2)
    odd = [(0, 0, 0), (0, height % 2, 0), (0, width % 2, 0), (0, 0, 0)]
    images = lax.pad(images, np.zeros((), images.dtype), odd)

    tiles = [_of_input(part, 2) for part in _of_input(images, 1)]
    filters = [_of_kernel(part, 0) for part in _of_kernel(kernels, 0)]
    # Sixteen products of two axes; stacked to one with three they are slower.
    products = [
        [
            product(tile.reshape(-1, depth), kernel, precision=precision)
            for tile, kernel in zip(*pair, strict=True)
        ]
        for pair in zip(tiles, filters, strict=True)
    ]
    by_row = [_of_output(column) for column in zip(*products, strict=True)]
    quarters = [_of_output(row) for row in zip(*by_row, strict=True)]

    out = jnp.stack(
        [
            jnp.stack([part.reshape(num, rows, columns, features) for part in row], 3)
            for row in quarters
        ],
        2,
    )
    return out.reshape(num, 2 * rows, 2 * columns, features)[:, :height, :width]


def _of_input(images: jax.Array, axis: int) -> list[jax.Array]:
    """Bᵀ d along one axis, for all tiles of four with a step of two."""
    count = images.shape[axis] // 2 - 1
    d0, d1, d2, d3 = (
        lax.slice_in_dim(images, start, start + 2 * count - 1, 2, axis)
        for start in range(4)
    )
    return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]


def _of_kernel(kernels: jax.Array, axis: int) -> list[jax.Array]:
    """G g along one axis."""
    g0, g1, g2 = (lax.index_in_dim(kernels, tap, axis, False) for tap in range(3))
    return [g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]


def _of_output(m: Any) -> list[jax.Array]:
    """Aᵀ m: two outputs of four products."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
