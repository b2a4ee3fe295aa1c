"""Keys: which ones are taken, and those that may be missing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.types import Key

# The draws of other generators, such as rbg, differ with the number of keys that `vmap`
# handles at once: a task would depend on how many others are drawn beside it.
IMPL = "threefry2x32"


def of_seed(seed: int) -> Key:
    """The key of a seed, whatever generator the user's configuration prefers."""
    return jax.random.key(seed, impl=IMPL)


def check_key(key: Any, name: str = "key", *, batch: bool = False) -> None:
    """Checks a key before anything is drawn from it; traced keys pass as well.

    Args:
      key: Value that should be one typed key, or `[T]` keys with `batch`.
      name: Name of the argument.
      batch: Whether an axis of keys is expected.

    Raises:
      TypeError: not a typed key of `jax.random.key`.
      ValueError: more than one key, or one whose draws depend on what is drawn beside it.
    """
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        raise TypeError(
            f"{name} is the number {key}; expected a key. Give jax.random.key({key})."
        )
    if not isinstance(key, jax.Array):
        raise TypeError(
            f"{name} is a {type(key).__name__}; expected a key such as jax.random.key(0)."
        )
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"{name} is an array of {key.dtype} of shape {key.shape}, as "
            "jax.random.PRNGKey makes; expected a typed key. Give jax.random.key(seed), or "
            f"jax.random.wrap_key_data({name})."
        )
    if jnp.ndim(key) != int(batch):
        expected = "keys [T], one a task" if batch else "one key"
        raise ValueError(
            f"{name} has shape {key.shape}; expected {expected}. Take one of several by "
            "its number, key[0]; make several of one by jax.random.split(key, num)."
        )
    impl = str(jax.random.key_impl(key))
    if impl != IMPL:
        raise ValueError(
            f"{name} is of the generator {impl!r}, whose draws change with the number of "
            "keys that are handled at once, so that no task would be the same again. Give "
            f"jax.random.key(seed, impl={IMPL!r})."
        )


def split_key(key: Key | None, num: int = 2) -> list[Any]:
    """Splits a key into `num` keys; without a key the result is `num` times `None`."""
    if key is None:
        return [None] * num
    check_key(key)
    return list(jax.random.split(key, num))


def fold_key(key: Key | None, number: Any) -> Key | None:
    """The key of one number, e.g. of a step; `None` without a key."""
    return None if key is None else jax.random.fold_in(key, number)
