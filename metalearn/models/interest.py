"""Network of the interest of a user, weighed by what is asked about."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.types import Array
from metalearn.models.sizes import check_sizes

HOURS = 24


class InterestNetwork(nn.Module):
    """Logits of candidates after a history, `[N, K]`.

    The base model of CHAML (Y. Chen et al., KDD 2021), a deep interest network (G. Zhou et
    al., KDD 2018): a record is the vector of its place, embeddings of category and hour,
    and further numbers. For each candidate, `relevance` gives weights of the records of the
    history by a softmax, and hidden layers decide on their weighted sum and the candidate.
    One logit stands for two of a softmax.

    Inputs are a dictionary as `metalearn.data.places.place_tasks` gives it. Outputs with a
    category or hour that there is not are NaN. A history without a record counts as zeros.

    Attributes:
      categories: Number of categories, the unknown one, 0, included.
      dim: Length of the embeddings of category and hour.
      attention: Units of the layer that weighs records.
      widths: Sizes of the hidden layers.
      dropout: Share of weights and hidden units that are left out in training.
      returns: Whether the hidden layers see how often and how lately a candidate is in the
        history itself, as an output that can copy its input. The paper's do not.
    """

    categories: int = 1
    dim: int = 8
    attention: int = 16
    widths: Sequence[int] = (64, 64)
    dropout: float = 0.0
    returns: bool = False

    @nn.compact
    def __call__(self, x: dict[str, Array], train: bool = False):
        check_sizes(self)
        for name in ("categories", "dim", "attention"):
            checks.whole_number(name, getattr(self, name), least=1)
        checks.number("dropout", self.dropout)
        if self.dropout >= 1:
            raise ValueError(
                f"dropout is {self.dropout}; expected a share from 0 to below 1."
            )
        first = nn.initializers.normal(0.1)
        tables = {
            "category": self.param("category", first, (self.categories, self.dim)),
            "hour": self.param("hour", first, (HOURS, self.dim)),
        }
        past, asked = _records(x["history"], tables), _records(x["candidates"], tables)
        scores = relevance(self, asked, past, units=self.attention)
        weights = _weights(scores, x["seen"][:, None])
        weights = self._without(weights, train)
        parts = [jnp.einsum("nkl,nlr->nkr", weights, past), asked]
        if self.returns:
            if "returns" not in x:
                raise ValueError(
                    f"returns is True, and the inputs have {', '.join(sorted(x))}; "
                    "expected the mask returns [N, K, L] too, as of "
                    "place_tasks(..., returns=True)."
                )
            parts.append(_returns(x["returns"], x["seen"], asked.dtype))
        h = jnp.concatenate(parts, axis=-1)
        for number, width in enumerate(self.widths):
            h = nn.relu(nn.Dense(width, name=f"decision_{number}")(h))
            h = self._without(h, train)
        return nn.Dense(1, name="head")(h)[..., 0]

    def _without(self, h: Array, train: bool) -> Array:
        if not self.dropout:
            return h
        return nn.Dropout(self.dropout)(h, deterministic=not train)


def relevance(module: nn.Module, asked: Array, past: Array, *, units: int) -> Array:
    """Score of each record of a history for each candidate, `[N, K, L]`.

    The unit of a deep interest network: a ReLU layer on candidate q, record v and their
    product by elements q * v, where the paper names an outer product. The difference q - v
    is not among the inputs, for it adds no function to a linear layer on q and v.

    Call it within `__call__` of a linen module, whose parameters are then `of_candidate`,
    `of_past`, `of_both` and `weigh`.

    Args:
      module: The module.
      asked: Candidates, `[N, K, D]`.
      past: Records, `[N, L, D]`.
      units: Units of the layer.
    """
    shape = (asked.shape[-1], units)
    both = module.param("of_both", nn.initializers.lecun_normal(), shape, jnp.float32)
    hidden = (
        nn.Dense(units, name="of_candidate")(asked)[:, :, None]
        + nn.Dense(units, use_bias=False, name="of_past")(past)[:, None]
        # In the order that takes least: of a hundred candidates, the products of kernel and
        # records are made first.
        + jnp.einsum("nkr,nlr,rh->nklh", asked, past, both, optimize="optimal")
    )
    return nn.Dense(1, name="weigh")(nn.relu(hidden))[..., 0]


def _records(records: dict[str, Array], tables: dict[str, Array]) -> Array:
    """Records as vectors, `[N, L, R]`."""
    parts = [records["vector"], records["numbers"]]
    for name, table in tables.items():
        code = records[name]
        # A code below 0 would count from the end.
        code = jnp.where(code < 0, table.shape[0], code)
        parts.append(jnp.take(table, code, axis=0, mode="fill", fill_value=jnp.nan))
    return jnp.concatenate(parts, axis=-1)


def _weights(scores: Array, seen: Array) -> Array:
    """Softmax over the records that there are; zeros if there is none."""
    seen = jnp.broadcast_to(seen, scores.shape)
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9), axis=-1)
    return jnp.where(seen, weights, 0)


def _returns(at: Array, seen: Array, dtype: jnp.dtype) -> Array:
    """How often a candidate is in the history, and one by its age there, `[N, K, 2]`."""
    at = (at & seen[:, None]).astype(dtype)
    # The last record that there is has the age 1, the one before it 2.
    age = jnp.cumsum(seen[:, ::-1].astype(dtype), axis=-1)[:, ::-1]
    lately = jnp.max(at / jnp.maximum(age, 1)[:, None], axis=-1, initial=0)
    return jnp.stack([jnp.log1p(at.sum(-1)), lately], axis=-1)
