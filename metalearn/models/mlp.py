"""Fully connected network."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn

from metalearn.core.types import Array
from metalearn.models.norm import Norm
from metalearn.models.sizes import check_sizes


class MLP(nn.Module):
    """ReLU network over flattened inputs `[N, ...]`.

    The defaults are the sinusoid regressor of Finn et al. 2017 (section 5.1).

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
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = nn.relu(Norm(self.norm)(x, train, mask))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)
