"""Networks that predict clicks from users, items and what is known of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.types import Array
from metalearn.models.fields import field_vectors
from metalearn.models.interest import relevance
from metalearn.models.sizes import check_sizes

Kind = Literal["deepfm", "fm", "wide_deep", "pnn", "din"]
KINDS: tuple[str, ...] = ("deepfm", "fm", "wide_deep", "pnn", "din")
SCALE = 0.05  # products of two embeddings would begin large with ordinary ones


class ClickNetwork(nn.Module):
    """Logit of a click, `[N, 1]`, from vectors of user, item and fields.

    - "fm": factorisation machine (S. Rendle, ICDM 2010): a weight a value, and products of
      all pairs of vectors.
    - "wide_deep": a weight a value, and layers over the vectors side by side (H.-T. Cheng
      et al., DLRS 2016).
    - "deepfm": both, on the same vectors (H. Guo et al., IJCAI 2017).
    - "pnn": layers over the vectors and the products of all pairs (Y. Qu et al., ICDM 2016,
      inner products).
    - "din": layers over the vectors and the sum of those of other items that the user
      clicked on, weighted by their `relevance` to the item (G. Zhou et al., KDD 2018). The
      weights do not add up to one, as in the paper. Its Dice and PReLU are ReLU here, an
      item of the history is its own vector without content, and there is no penalty.

    Inputs are a dictionary: `content`, codes `[N, P]` as `FieldMLP` has them; `user` and
    `item`, numbers `[N]`; for "din" `history` as well, numbers of known items `[N, L]`, -1
    where there is none. An item of number -1 is new: the parameter `new_item` is its
    vector. A user of number -1 has a vector of zeros. Items and users have no weight of
    their own in the wide part, where a new item would have none.

    Attributes:
      kind: Kind of network: "deepfm", "fm", "wide_deep", "pnn" or "din".
      fields: Number of values and number of places of each field.
      users: Number of users.
      items: Number of items.
      dim: Length of the vectors.
      widths: Sizes of the hidden layers; unread by "fm".
      attention: Units of the layer that weighs the history; of "din" alone.
    """

    kind: Kind = "deepfm"
    fields: Sequence[tuple[int, int]] = ()
    users: int = 1
    items: int = 1
    dim: int = 16
    widths: Sequence[int] = (64, 64)
    attention: int = 16

    @nn.compact
    def __call__(self, x: dict[str, Array]):
        check_sizes(self)
        checks.one_of("kind", self.kind, KINDS)
        for name in ("dim", "users", "items", "attention"):
            checks.whole_number(name, getattr(self, name), least=1)
        first = nn.initializers.normal(SCALE)
        of_fields = field_vectors(self, x, self.fields, self.dim, scale=SCALE)
        fresh = self.param("new_item", first, (self.dim,), jnp.float32)
        items = self.param("item", first, (self.items, self.dim), jnp.float32)
        users = self.param("user", first, (self.users, self.dim), jnp.float32)
        is_new = x["item"] == -1
        known = _rows(items, jnp.where(is_new, 0, x["item"]))
        of_item = jnp.where(is_new[:, None], fresh[None], known)
        both = jnp.stack([of_item, _rows(users, x["user"])], axis=1)
        stacked = jnp.concatenate([of_fields, both], axis=1)
        # Twice the sum of all products of pairs.
        pairs = jnp.square(stacked.sum(1)) - jnp.square(stacked).sum(1)
        logit = self.param("bias", nn.initializers.zeros, (1,), jnp.float32)[None]
        if self.kind not in ("pnn", "din"):
            wide = field_vectors(self, x, self.fields, 1, name="wide", scale=SCALE)
            logit = logit + wide.sum(1)
        if self.kind in ("fm", "deepfm"):
            logit = logit + pairs.sum(1, keepdims=True) / 2
        if self.kind == "fm":
            return logit
        h = stacked.reshape(stacked.shape[0], -1)
        if self.kind == "pnn":
            products = jnp.einsum("nfd,ngd->nfg", stacked, stacked)
            upper = jnp.triu_indices(stacked.shape[1], k=1)
            h = jnp.concatenate([h, products[:, upper[0], upper[1]]], axis=1)
        if self.kind == "din":
            h = jnp.concatenate([h, self._interest(x, items, of_item)], axis=1)
        for number, width in enumerate(self.widths):
            h = nn.relu(nn.Dense(width, name=f"deep_{number}")(h))
        return logit + nn.Dense(1, name="head")(h)

    def _interest(self, x: dict[str, Array], items: Array, of_item: Array) -> Array:
        """Sum of the vectors of the history, weighted by what is asked about, `[N, D]`."""
        if "history" not in x:
            raise ValueError(
                f"kind is 'din', and the inputs have {', '.join(sorted(x))}; expected "
                "history too, numbers of the items that the user clicked on, [N, L]."
            )
        numbers = x["history"]
        past = _rows(items, numbers)
        scores = relevance(self, of_item[:, None], past, units=self.attention)
        weights = jnp.where(numbers == -1, 0, scores[:, 0])
        return jnp.einsum("nl,nld->nd", weights, past)


class VectorGenerator(nn.Module):
    """Vector of an item from the embeddings of what is known of it, `[N, dim]`.

    One dense layer without bias and tanh, divided by five (F. Pan et al., SIGIR 2019). In
    place of its parameter `embed`, `meta_embedding` puts that of a `ClickNetwork`.

    Attributes:
      fields: Number of values and number of places of each field of the click network.
      begin: Number of the first field of the items; those before it are of the users.
      dim: Length of the vectors.
    """

    fields: Sequence[tuple[int, int]] = ()
    begin: int = 0
    dim: int = 16

    @nn.compact
    def __call__(self, x: dict[str, Array]):
        checks.whole_number("begin", self.begin, least=0, most=len(self.fields) - 1)
        checks.whole_number("dim", self.dim, least=1)
        parts = field_vectors(self, x, self.fields, self.dim, scale=SCALE, begin=self.begin)
        flat = parts.reshape(parts.shape[0], -1)
        h = nn.Dense(self.dim, use_bias=False, name="generate")(flat)
        return jnp.tanh(h) / 5


def _rows(table: Array, numbers: Array) -> Array:
    """Rows of a table `[..., D]`: zeros for -1, NaN for other numbers without a row."""
    # A negative number would count from the end.
    place = jnp.where(numbers < 0, table.shape[0], numbers)
    rows = jnp.take(table, place, axis=0, mode="fill", fill_value=jnp.nan)
    return jnp.where((numbers == -1)[..., None], 0, rows)
