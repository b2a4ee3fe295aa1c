"""Networks with small linear adapters beside their layers, for TSA.

W.-H. Li, X. Liu, H. Bilen. Cross-domain Few-shot Learning with Task-specific Adapters. CVPR
2022. Adapters are named `adapter_0`, `adapter_1`, ..., and the paths of their parameters
contain these names. They start at zero, where a network is the one without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn

from metalearn.core.types import Array
from metalearn.models.conv4 import pools
from metalearn.models.norm import Norm
from metalearn.models.sizes import check_sizes

_ZERO = nn.initializers.zeros_init()


class AdapterMLP(nn.Module):
    """`MLP` with a linear adapter in parallel to every hidden layer: `x W + b + x A`.

    Attributes:
      num_outputs: Size of the output; `None` returns the last hidden layer.
      widths: Sizes of the hidden layers.
      norm: Kind of normalisation between a layer and its ReLU, see `Norm`.
    """

    num_outputs: int | None = 1
    widths: Sequence[int] = (40, 40)
    norm: str = "none"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        check_sizes(self)
        x = x.reshape((x.shape[0], -1))
        for i, width in enumerate(self.widths):
            adapter = nn.Dense(
                width, use_bias=False, kernel_init=_ZERO, name=f"adapter_{i}"
            )
            x = nn.Dense(width)(x) + adapter(x)
            x = nn.relu(Norm(self.norm)(x, train, mask))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)


class AdapterConv4(nn.Module):
    """`Conv4` with a 1x1 adapter in parallel to every 3x3 convolution, with its stride.

    Attributes:
      num_outputs: Number of logits from a linear head named `head`; `None` returns the
        features.
      width: Channels of every block.
      norm: Kind of normalisation, see `Norm`.
      downsample: Way to halve the sides, "pool" or "stride", see `Conv4`.
    """

    num_outputs: int | None = None
    width: int = 64
    norm: str = "batch"
    downsample: str = "pool"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        pool = pools(self, x)
        for i in range(4):
            strides = 1 if pool else 2
            adapter = nn.Conv(
                self.width,
                (1, 1),
                strides=strides,
                use_bias=False,
                kernel_init=_ZERO,
                name=f"adapter_{i}",
            )
            x = nn.Conv(self.width, (3, 3), strides=strides)(x) + adapter(x)
            x = nn.relu(Norm(self.norm)(x, train, mask))
            if pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1)) if pool else x.mean((1, 2))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)
