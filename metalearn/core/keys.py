"""Keys that may be missing: where there is none, nothing is drawn."""

from __future__ import annotations

from typing import Any

import jax

from metalearn.core.types import Key


def split_key(key: Key | None, num: int = 2) -> list[Any]:
    """`num` keys from one; as many times `None` if there is none."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def fold_key(key: Key | None, number: Any) -> Key | None:
    """The key of one number, e.g. of a step; `None` if there is none."""
    return None if key is None else jax.random.fold_in(key, number)
