"""Networks of nodes of a graph: linear over propagated features, or convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax

from metalearn.core.types import Array
from metalearn.models.sizes import check_sizes


class SGC(nn.Module):
    """Linear layers over propagated features `S^k X` (F. Wu et al., ICML 2019).

    No ReLU stands between them, so that the function is linear in its inputs. The layers
    still matter to learners that adapt by gradients: a product of matrices learns in
    another way than one matrix.

    Attributes:
      num_outputs: Size of a linear head named `head`; `None` returns the last layer.
      widths: Sizes of the layers before it; none for the inputs as they are.
    """

    num_outputs: int | None = None
    widths: Sequence[int] = (16,)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        check_sizes(self)
        x = x.reshape((x.shape[0], -1))
        for width in self.widths:
            x = nn.Dense(width)(x)
        return x if self.num_outputs is None else nn.Dense(self.num_outputs, name="head")(x)


class GCN(nn.Module):
    """Graph convolutions over the subgraphs of nodes (T. Kipf, M. Welling, ICLR 2017).

    `h_1 = S X W_1 + b_1`, `h_{l+1} = S relu(h_l) W_{l+1} + b_{l+1}`; the output is the row
    of the node that the subgraph is around. Inputs hold `features`, `S X` `[N, M, D]`, and
    `links`, S `[N, M, M]`, as `metalearn.data.graphs.node_tasks` makes them.

    Attributes:
      num_outputs: Size of a linear head named `head`, after a ReLU; `None` returns the last
        layer.
      widths: Sizes of the layers, as many as the subgraph has hops.
    """

    num_outputs: int | None = None
    widths: Sequence[int] = (16, 16)

    @nn.compact
    def __call__(self, x: dict[str, Array]) -> Array:
        check_sizes(self)
        if not self.widths:
            raise ValueError("widths is empty; expected a layer or more.")
        hidden, links = x["features"], x["links"]
        for layer, width in enumerate(self.widths):
            if layer:
                # Of the last layer, the row of the node alone is read.
                rows = links[:, :1] if layer == len(self.widths) - 1 else links
                hidden = rows @ jax.nn.relu(hidden)
            hidden = nn.Dense(width)(hidden)
        hidden = hidden[:, 0]
        if self.num_outputs is None:
            return hidden
        return nn.Dense(self.num_outputs, name="head")(jax.nn.relu(hidden))
