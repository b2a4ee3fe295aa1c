"""The small convolutional network of digits."""

from __future__ import annotations

import flax.linen as nn

from metalearn.core.types import Array
from metalearn.models.sizes import check_sizes


class LeNet(nn.Module):
    """Twice [5x5 convolution, ReLU, 2x2 max-pooling], a hidden layer, a head.

    After LeNet-5 (LeCun et al. 1998), with ReLU and max-pooling, as most use it today.

    Attributes:
      num_outputs: Number of logits from a linear head named `head`; `None` returns the
        hidden layer.
      width: Channels of the first convolution; the second has twice as many.
      hidden: Units of the hidden layer.
    """

    num_outputs: int | None = None
    width: int = 8
    hidden: int = 64

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        del train, mask
        check_sizes(self)
        if x.ndim != 4 or min(x.shape[1:3]) < 4:
            raise ValueError(
                f"LeNet got inputs {x.shape}; expected images [N, H, W, C] with sides of 4 "
                "or more."
            )
        for channels in (self.width, 2 * self.width):
            x = nn.relu(nn.Conv(channels, (5, 5))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape((x.shape[0], -1))))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)
