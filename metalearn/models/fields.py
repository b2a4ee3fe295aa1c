"""A network over codes of categories: an embedding a field, then hidden layers."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks
from metalearn.core.types import Array
from metalearn.models.sizes import check_sizes


class FieldMLP(nn.Module):
    """Embeddings of what is known of a user and an item, and layers that decide.

    The network of MeLU (H. Lee et al., KDD 2019): the embeddings of all fields, each the
    mean over the values that a field has, go side by side through ReLU layers. A field
    without a value is a vector of zeros. The parameter `embed` has all embeddings; other
    layers are `decision_0`, ... and `head`.

    Inputs are codes, int `[N, P]`, or a dictionary with them under `content`: the places of
    the first field, then those of the second; -1 stands for no value. Outputs of a row with
    another code that no field has are NaN.

    Attributes:
      num_outputs: Size of the head.
      fields: Number of values and number of places of each field.
      dim: Length of the embedding of a field.
      widths: Sizes of the hidden layers.
      offset: Number that is added to the outputs, such as the mean rating.
      dropout: Share of the fields that are hidden at random in training, from 0 to below 1,
        each by itself in each row.
    """

    num_outputs: int = 1
    fields: Sequence[tuple[int, int]] = ()
    dim: int = 32
    widths: Sequence[int] = (64, 64)
    offset: float = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array | dict[str, Array], train: bool = False):
        check_sizes(self)
        checks.whole_number("dim", self.dim, least=1)
        checks.number("dropout", self.dropout)
        if self.dropout >= 1:
            raise ValueError(
                f"dropout is {self.dropout}; expected a share from 0 to below 1."
            )
        parts = field_vectors(self, x, self.fields, self.dim)
        if self.dropout:
            # A field is there for all numbers of its vector, or for none.
            hide = nn.Dropout(self.dropout, broadcast_dims=(2,))
            parts = hide(parts, deterministic=not train)
        h = parts.reshape(parts.shape[0], -1)
        for number, width in enumerate(self.widths):
            h = nn.relu(nn.Dense(width, name=f"decision_{number}")(h))
        return nn.Dense(self.num_outputs, name="head")(h) + self.offset


def field_vectors(
    module: nn.Module,
    x: Array | dict[str, Array],
    fields: Sequence[tuple[int, int]],
    dim: int,
    *,
    name: str = "embed",
    scale: float = 1.0,
    begin: int = 0,
) -> Array:
    """Mean embedding of the values of each field, `[N, F, dim]`.

    Call it within `__call__` of a linen module. One table holds the values of all fields,
    those of the first field first: a table for each would be a program of its own to look
    up, and another to differentiate.

    Args:
      module: The module.
      x: Codes `[N, P]`, or a dictionary with them under `content`.
      fields: Number of values and number of places of each field.
      dim: Length of an embedding.
      name: Name of the table among the parameters.
      scale: Standard deviation of the embeddings at the start.
      begin: Number of the first field that is looked up; those before it are left out.

    Raises:
      TypeError: `x` holds no codes.
      ValueError: the codes do not fit the fields.
    """
    codes = _codes(type(module).__name__, x, fields)
    values, places = np.asarray(fields, np.int32).T
    total, first = int(values.sum()), nn.initializers.normal(scale)
    table = module.param(name, first, (total, dim), jnp.float32)
    own = np.repeat(np.arange(len(fields)), places)  # the field of each place
    kept = np.flatnonzero(own >= begin)
    own, chosen = own[kept], codes[:, kept]
    starts = (np.cumsum(values) - values).astype(np.int32)
    there = chosen != -1
    # Other codes below 0 would count from the end, and those beyond a field's values would
    # be another field's. A missing value reads any row, which is taken out.
    known = (chosen >= 0) & (chosen < values[own][None].astype(chosen.dtype))
    row = jnp.where(known, chosen + starts[own][None].astype(chosen.dtype), total)
    row = jnp.where(there, row, 0)
    rows = jnp.take(table, row, axis=0, mode="fill", fill_value=jnp.nan)
    rows = jnp.where(there[..., None], rows, 0)
    belongs = jnp.asarray(own[:, None] == np.arange(begin, len(fields)), rows.dtype)
    num = jnp.maximum(there.astype(rows.dtype) @ belongs, 1)
    return jnp.einsum("npd,pf->nfd", rows, belongs) / num[..., None]


def _codes(who: str, x: Array | dict[str, Array], fields: Sequence) -> Array:
    codes = x.get("content") if isinstance(x, dict) else x
    if not jnp.issubdtype(getattr(codes, "dtype", float), jnp.integer):
        told = sorted(x) if isinstance(x, dict) else type(x).__name__
        raise TypeError(
            f"{who} got {told}; expected codes, int [N, P], or a dictionary with them "
            "under 'content'."
        )
    places = sum(place for _, place in fields)
    if codes.ndim != 2 or codes.shape[1] != places or not fields:
        raise ValueError(
            f"{who} got codes of shape {codes.shape} for {len(fields)} fields with "
            f"{places} places in all; expected [N, {places}], and one field or more."
        )
    return codes
