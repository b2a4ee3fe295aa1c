"""Keys that may be missing; without a key nothing is drawn at random."""

from __future__ import annotations

from typing import Any

import jax

from metalearn.core.types import Key


def split_key(key: Key | None, num: int = 2) -> list[Any]:
    """Splits a key into `num` keys; without a key the result is `num` times `None`."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def fold_key(key: Key | None, number: Any) -> Key | None:
    """The key of one number, e.g. of a step; `None` without a key."""
    return None if key is None else jax.random.fold_in(key, number)
