"""The four-block convolutional network of the few-shot literature."""

from __future__ import annotations

import flax.linen as nn

from metalearn.core.types import Array
from metalearn.models.norm import Norm
from metalearn.models.sizes import check_sizes


class Conv4(nn.Module):
    """Four times [3x3 convolution, normalisation, ReLU, halving of the sides].

    With max-pooling, 28x28 images give `width` features and 84x84 images give `25 * width`
    features (Vinyals et al. 2016; Snell et al. 2017). With strides, 28x28 images give the
    mean over the last 2x2 pixels. That is the network of Finn et al. 2017 for Omniglot, at
    a quarter of the cost.

    Features behind a ReLU are 0 or more, so no two directions are more than a right angle
    apart. Matching networks and R2-D2 gained points when the last block had none
    (`last_relu=False`).

    Attributes:
      num_outputs: Number of logits from a linear head named `head`; `None` returns the
        features.
      width: Channels of every block.
      norm: Kind of normalisation, see `Norm`.
      downsample: Way to halve the sides: "pool" (2x2 max-pooling after the ReLU) or
        "stride" (strided convolutions, and a spatial mean at the end).
      last_relu: Whether the last block has its ReLU.
    """

    num_outputs: int | None = None
    width: int = 64
    norm: str = "batch"
    downsample: str = "pool"
    last_relu: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        pool = pools(self, x)
        for block in range(4):
            x = nn.Conv(self.width, (3, 3), strides=1 if pool else 2)(x)
            x = Norm(self.norm)(x, train, mask)
            if block < 3 or self.last_relu:
                x = nn.relu(x)
            if pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        # Strides round odd sides up, so the mean fits any size of image.
        x = x.reshape((x.shape[0], -1)) if pool else x.mean((1, 2))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)


def pools(network: nn.Module, x: Array, times: int = 4) -> bool:
    """Whether the blocks of a four-block network pool rather than stride.

    Args:
      network: The network, with `downsample`.
      x: Images `[N, H, W, C]`.
      times: Number of blocks that halve the sides.

    Raises:
      ValueError: `downsample` is unknown, a size is no count, or the images cannot be
        halved so often.
    """
    check_sizes(network)
    if network.downsample not in ("pool", "stride"):
        raise ValueError(
            f"downsample is {network.downsample!r}; expected 'pool' or 'stride'."
        )
    pool = network.downsample == "pool"
    if x.ndim != 4 or (pool and min(x.shape[1:3]) < 2**times):
        raise ValueError(
            f"{type(network).__name__} got inputs {x.shape}; expected images [N, H, W, C], "
            f"with sides of {2**times} or more when {times} poolings halve them."
        )
    return pool
