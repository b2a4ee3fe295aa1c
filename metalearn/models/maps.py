"""A convolutional encoder that keeps where things are, for learners that compare maps."""

from __future__ import annotations

import flax.linen as nn

from metalearn.core import checks
from metalearn.core.types import Array
from metalearn.models.conv4 import pools
from metalearn.models.norm import Norm


class ConvMaps(nn.Module):
    """`Conv4` that returns maps `[N, H, W, width]` and halves the sides in early blocks.

    With two halvings 28x28 images give 7x7 maps. The encoder of Relation Networks (Sung et
    al., CVPR 2018) is this one without the border of zeros in the first two blocks, which
    gives 5x5.

    Attributes:
      num_outputs: Only `None`: maps have no head.
      width: Channels of every block.
      norm: Kind of normalisation, see `Norm`.
      downsample: Way to halve the sides, "pool" or "stride", see `Conv4`.
      halvings: Number of blocks, 0 to 4, that halve the sides: the first ones.
    """

    num_outputs: int | None = None
    width: int = 64
    norm: str = "batch"
    downsample: str = "pool"
    halvings: int = 2

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        if self.num_outputs is not None:
            raise ValueError(
                f"num_outputs is {self.num_outputs!r}; expected None: maps have no head."
            )
        checks.whole_number("halvings", self.halvings, least=0)
        if self.halvings > 4:
            raise ValueError(
                f"halvings is {self.halvings}; expected 0 to 4, as many as blocks."
            )
        pool = pools(self, x, self.halvings)
        for block in range(4):
            halve = block < self.halvings
            x = nn.Conv(self.width, (3, 3), strides=2 if halve and not pool else 1)(x)
            x = nn.relu(Norm(self.norm)(x, train, mask))
            if halve and pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return x
