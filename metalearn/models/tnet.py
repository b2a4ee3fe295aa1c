"""Networks with a square matrix after every layer, for T-net and MT-net.

Y. Lee, S. Choi. Gradient-Based Meta-Learning with Learned Layerwise Metric and Subspace.
ICML 2018. The layers are `TDense` and `TConv`. Use them in networks of your own, and give
the paths of their kernels to `metalearn.t_net`.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.types import Array, Key
from metalearn.models.conv4 import pools
from metalearn.models.norm import Norm
from metalearn.models.sizes import check_sizes


def _identity(key: Key, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    del key
    return jnp.eye(*shape, dtype=dtype)


class TDense(nn.Module):
    """`(x W + b) T` over inputs `[N, in]`: a dense layer, then a square matrix.

    The parameters are `kernel` `[in, out]`, `bias` `[out]` and `transform` `[out, out]`,
    which starts as the identity. The matrix stands on the right because examples are rows.
    The paper writes `T W x`; its T is the transpose of `transform`.

    Attributes:
      features: Size of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x, kernel, bias, transform = _parameters(self, x, (x.shape[-1], self.features))
        return (x @ kernel + bias[None]) @ transform


class TConv(nn.Module):
    """A convolution without change of size, then a 1x1 convolution, over `[N, H, W, in]`.

    The parameters are `kernel` `[height, width, in, out]` (HWIO), `bias` `[out]` and
    `transform` `[out, out]`, which starts as the identity. The matrix acts on the channels
    of every pixel. To save a second convolution, the matrix is multiplied into the kernel,
    which gives the same values.

    Attributes:
      features: Channels of the output.
      sides: Height and width of the kernel.
      strides: Stride along both sides.
    """

    features: int
    sides: tuple[int, int] = (3, 3)
    strides: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.sides, x.shape[-1], self.features)
        x, kernel, bias, transform = _parameters(self, x, shape)
        x = jax.lax.conv_general_dilated(
            x,
            jnp.einsum("hwio,op->hwip", kernel, transform),
            window_strides=(self.strides, self.strides),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        # The matrix acts on the bias too: (x W + b) T = x (W T) + b T.
        return x + (bias[None] @ transform)[:, None, None]


def _parameters(layer: nn.Module, x: Array, shape: tuple[int, ...]) -> list[Array]:
    """The input, then kernel, bias and matrix; all of one dtype."""
    outputs = shape[-1]
    kernel = layer.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
    bias = layer.param("bias", nn.initializers.zeros, (outputs,), jnp.float32)
    transform = layer.param("transform", _identity, (outputs, outputs), jnp.float32)
    return nn.dtypes.promote_dtype(x, kernel, bias, transform)


class TNetMLP(nn.Module):
    """`MLP` of `TDense` layers over flattened inputs `[N, ...]`, the head included.

    Attributes:
      num_outputs: Size of the output; `None` returns the last hidden layer.
      widths: Sizes of the hidden layers.
      norm: Kind of normalisation between the matrix of a layer and its ReLU, see `Norm`.
    """

    num_outputs: int | None = 1
    widths: Sequence[int] = (40, 40)
    norm: str = "none"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        check_sizes(self)
        x = x.reshape((x.shape[0], -1))
        for width in self.widths:
            x = TDense(width)(x)
            x = nn.relu(Norm(self.norm)(x, train, mask))
        if self.num_outputs is None:
            return x
        return TDense(self.num_outputs, name="head")(x)


class TNetConv4(nn.Module):
    """`Conv4` of `TConv` layers and, as a head, `TDense`.

    Attributes:
      num_outputs: Number of logits from a head named `head`; `None` returns the features.
      width: Channels of every block; the paper uses 32 for mini-ImageNet.
      norm: Kind of normalisation between the matrix of a layer and its ReLU, see `Norm`.
      downsample: Way to halve the sides, "pool" or "stride", see `Conv4`.
    """

    num_outputs: int | None = None
    width: int = 64
    norm: str = "batch"
    downsample: str = "pool"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        pool = pools(self, x)
        for _ in range(4):
            x = TConv(self.width, strides=1 if pool else 2)(x)
            x = nn.relu(Norm(self.norm)(x, train, mask))
            if pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1)) if pool else x.mean((1, 2))
        if self.num_outputs is None:
            return x
        return TDense(self.num_outputs, name="head")(x)
