"""Networks with warp layers between the layers that adapt, for WarpGrad.

S. Flennerhag, A. Rusu, R. Pascanu, F. Visin, H. Yin, R. Hadsell. Meta-Learning with Warped
Gradient Descent. ICLR 2020. Warp layers are named `warp_0`, `warp_1`, ..., and the paths of
their parameters contain these names. `TNetMLP` and `TNetConv4` have a linear warp directly
behind each product, before the norm: `metalearn.warpgrad(..., warp=r"(^|/)transform$")`.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from metalearn.core.types import Array, Key
from metalearn.models.conv4 import pools
from metalearn.models.norm import Norm
from metalearn.models.sizes import check_sizes

KINDS = ("linear", "nonlinear")


class Warp(nn.Module):
    """A layer from C to C channels: dense over `[N, C]`, 3x3 over `[N, H, W, C]`.

    A "linear" warp is the map alone, which starts as the identity. A "nonlinear" warp is
    map, norm and ReLU, and its map starts at random. This order is one of the paper's
    options.

    Attributes:
      kind: Kind of the warp, "linear" or "nonlinear".
      norm: Kind of normalisation of a "nonlinear" warp, see `Norm`.
    """

    kind: str = "linear"
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        if self.kind not in KINDS:
            raise ValueError(f"warp is {self.kind!r}; expected 'linear' or 'nonlinear'.")
        if x.ndim not in (2, 4):
            raise ValueError(
                f"a warp layer got inputs of shape {x.shape}; expected [N, C] or "
                "[N, H, W, C]."
            )
        linear = self.kind == "linear"
        # A linear warp starts as if it were not there.
        start = _identity if linear else nn.initializers.lecun_normal()
        width = x.shape[-1]
        if x.ndim == 2:
            x = nn.Dense(width, kernel_init=start)(x)
        else:
            x = nn.Conv(width, (3, 3), kernel_init=start)(x)
        return x if linear else nn.relu(Norm(self.norm)(x, train, mask))


def _identity(key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """The identity as a dense layer `[C, C]` or as a convolution `[3, 3, C, C]`."""
    del key
    # The middle of the window, `[1, 1]`; nothing for a dense layer.
    middle = tuple(side // 2 for side in shape[:-2])
    return jnp.zeros(shape, dtype).at[middle].set(jnp.eye(*shape[-2:], dtype=dtype))


class WarpMLP(nn.Module):
    """`MLP` with a warp layer after every hidden layer.

    Attributes:
      num_outputs: Size of the output; `None` returns the last hidden layer.
      widths: Sizes of the hidden layers.
      norm: Kind of normalisation of the layers that adapt and of "nonlinear" warps, see
        `Norm`.
      warp: Kind of the warps, "linear" or "nonlinear", see `Warp`.
    """

    num_outputs: int | None = 1
    widths: Sequence[int] = (40, 40)
    norm: str = "none"
    warp: str = "linear"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        check_sizes(self)
        x = x.reshape((x.shape[0], -1))
        for i, width in enumerate(self.widths):
            x = nn.Dense(width)(x)
            x = nn.relu(Norm(self.norm)(x, train, mask))
            x = Warp(self.warp, self.norm, name=f"warp_{i}")(x, train, mask)
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)


class WarpConv4(nn.Module):
    """`Conv4` with a warp layer after every block, behind its pooling.

    Attributes:
      num_outputs: Number of logits from a linear head named `head`; `None` returns the
        features.
      width: Channels of every block.
      norm: Kind of normalisation of the layers that adapt and of "nonlinear" warps, see
        `Norm`.
      downsample: Way to halve the sides, "pool" or "stride", see `Conv4`.
      warp: Kind of the warps, "linear" or "nonlinear", see `Warp`.
    """

    num_outputs: int | None = None
    width: int = 64
    norm: str = "batch"
    downsample: str = "pool"
    warp: str = "linear"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        pool = pools(self, x)
        for i in range(4):
            x = nn.Conv(self.width, (3, 3), strides=1 if pool else 2)(x)
            x = nn.relu(Norm(self.norm)(x, train, mask))
            if pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = Warp(self.warp, self.norm, name=f"warp_{i}")(x, train, mask)
        x = x.reshape((x.shape[0], -1)) if pool else x.mean((1, 2))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)
