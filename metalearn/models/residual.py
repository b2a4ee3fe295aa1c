"""A network over vectors that begins as the identity, for features that already serve."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from metalearn.core import checks
from metalearn.core.types import Array
from metalearn.models.sizes import check_sizes


class ResidualMLP(nn.Module):
    """Residual blocks of two layers over flattened inputs `[N, ...]`.

    A block is `h <- h + W2 dropout(relu(W1 h + b1))` with `W2 = 0` at the start. The
    embeddings of an untrained network are therefore its inputs, and a learner that compares
    embeddings starts where it would be without a network. The head is zero at the start
    too: one inner step of MAML then classifies by products with the means of the classes.

    Attributes:
      num_outputs: Size of a linear head named `head`; `None` returns the embeddings
        `[N, D]`, as long as the inputs.
      widths: Hidden units of each block; none for the inputs as they are.
      dropout: Share of hidden units that are dropped in training, 0 to below 1.
    """

    num_outputs: int | None = None
    widths: Sequence[int] = (256,)
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False):
        check_sizes(self)
        checks.number("dropout", self.dropout)
        if self.dropout >= 1:
            raise ValueError(f"dropout is {self.dropout!r}; expected a share below 1.")
        x = x.reshape((x.shape[0], -1))
        num = x.shape[-1]
        for block, width in enumerate(self.widths):
            hidden = jax.nn.relu(nn.Dense(width, name=f"in_{block}")(x))
            # A layer that drops nothing would be asked for a key in vain.
            if self.dropout:
                hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
            # Without an offset, which would move all embeddings alike.
            x = x + nn.Dense(
                num, use_bias=False, kernel_init=nn.initializers.zeros, name=f"out_{block}"
            )(hidden)
        if self.num_outputs is None:
            return x
        head = nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name="head")
        return head(x)
