"""A network over codes of categories: an embedding a field, then hidden layers."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.types import Array
from metalearn.models.sizes import check_sizes


class FieldMLP(nn.Module):
    """Embeddings of what is known of a user and an item, and layers that decide.

    The network of MeLU (H. Lee et al., KDD 2019): the embeddings of all fields, each the
    mean over the values that a field has, go side by side through ReLU layers. A field
    without a value is a vector of zeros. Parameters of the embeddings have `embed` in their
    paths, the other layers are `decision_0`, ... and `head`.

    Inputs are codes, int `[N, P]`, or a dictionary with them under `content`: the places of
    the first field, then those of the second; -1 stands for no value. Outputs of a row with
    another code that no field has are NaN.

    Attributes:
      num_outputs: Size of the head.
      fields: Number of values and number of places of each field.
      dim: Length of the embedding of a field.
      widths: Sizes of the hidden layers.
      offset: Number that is added to the outputs, such as the mean rating.
    """

    num_outputs: int = 1
    fields: Sequence[tuple[int, int]] = ()
    dim: int = 32
    widths: Sequence[int] = (64, 64)
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Array | dict[str, Array]):
        check_sizes(self)
        checks.whole_number("dim", self.dim, least=1)
        codes = x.get("content") if isinstance(x, dict) else x
        if not jnp.issubdtype(getattr(codes, "dtype", float), jnp.integer):
            told = sorted(x) if isinstance(x, dict) else type(x).__name__
            raise TypeError(
                f"FieldMLP got {told}; expected codes, int [N, P], or a dictionary with "
                "them under 'content'."
            )
        places = sum(place for _, place in self.fields)
        if codes.ndim != 2 or codes.shape[1] != places or not self.fields:
            raise ValueError(
                f"FieldMLP got codes of shape {codes.shape} for {len(self.fields)} fields "
                f"with {places} places in all; expected [N, {places}], and one field or "
                "more."
            )
        parts, start = [], 0
        for number, (values, place) in enumerate(self.fields):
            chosen = codes[:, start : start + place]
            shape = (values, self.dim)
            first = nn.initializers.normal(1.0)
            table = self.param(f"embed_{number}", first, shape, jnp.float32)
            there = chosen != -1
            # Row 0 stands for a missing value and is taken out. Other codes below 0 would
            # count from the end, and those beyond it would be the last.
            row = jnp.where(there, jnp.where(chosen < 0, values, chosen), 0)
            rows = jnp.take(table, row, axis=0, mode="fill", fill_value=jnp.nan)
            rows = jnp.where(there[..., None], rows, 0)
            num = jnp.maximum(jnp.sum(there, 1), 1).astype(rows.dtype)
            parts.append(jnp.sum(rows, 1) / num[:, None])
            start += place
        h = jnp.concatenate(parts, axis=1)
        for number, width in enumerate(self.widths):
            h = nn.relu(nn.Dense(width, name=f"decision_{number}")(h))
        return nn.Dense(self.num_outputs, name="head")(h) + self.offset
