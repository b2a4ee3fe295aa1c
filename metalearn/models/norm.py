"""Normalisation layers under one name."""

from __future__ import annotations

import flax.linen as nn
import jax

from metalearn.core.types import Array
from metalearn.models.renorm import BatchRenorm

NORMS = ("batch", "renorm", "group", "layer", "none")


class Norm(nn.Module):
    """Batch, group, layer or no normalisation over inputs `[N, ..., C]`.

    The learner's `norm` policy (`metalearn.inner.norm`) chooses the statistics that batch
    norm uses in a task. Batch renormalisation trains by its running averages, so its policy
    is "running". Group and layer norm look at one example at a time, keep no state and need
    no policy.

    Attributes:
      kind: Kind of normalisation: "batch", "renorm" (see `BatchRenorm`), "group", "layer"
        or "none".
      groups: Number of groups of group norm.
      momentum: Decay of the running averages of batch norm.
    """

    kind: str = "batch"
    groups: int = 8
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        if self.kind in ("batch", "renorm"):
            rows = None
            if mask is not None:
                rows = mask.reshape(mask.shape + (1,) * (x.ndim - 1))
                # The mask of flax has the shape of x: True for each number of a valid
                # example.
                rows = jax.numpy.broadcast_to(rows, x.shape)
            layer = nn.BatchNorm if self.kind == "batch" else BatchRenorm
            return layer(momentum=self.momentum)(x, not train, mask=rows)
        if self.kind == "group":
            return nn.GroupNorm(num_groups=self.groups)(x)
        if self.kind == "layer":
            # Over space as well, so that the statistics of an image are one mean and one
            # variance.
            axes = tuple(range(1, x.ndim))
            return nn.LayerNorm(reduction_axes=axes)(x)
        if self.kind == "none":
            return x
        raise ValueError(f"norm is {self.kind!r}; expected one of {', '.join(NORMS)}.")
