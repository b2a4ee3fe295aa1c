"""What else a user clicked on: the history that a network of interest reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from metalearn.data import arguments

NONE = -1


def other_clicks(
    user: Any, item: Any, clicked: Any, *, most: int = 20, seed: int = 0
) -> np.ndarray:
    """Items that the user of each row clicked on, the item of the row left out.

    They are drawn once for each user, in random order. Where the item of a row is not among
    them another is left out, so that the number of items is the same in all rows of a user:
    otherwise it would tell whether the user clicked on the item of the row.

    Args:
      user: Number of the user of each row, int `[R]`; -1 for one without a history.
      item: Number of the item, int `[R]`; -1 for one that no history may have.
      clicked: Whether the user clicked, bool `[R]`.
      most: L, the largest number of items of a row, 1 or more.
      seed: Seed of the draws.

    Returns:
      Numbers of items, int32 `[R, L]`, those that there are first, then -1.

    Raises:
      TypeError: numbers are not whole, or clicks are not bool.
      ValueError: the numbers of rows differ, or a number is below -1.

    Example:
      >>> other_clicks([0, 0, 0], [5, 6, 7], [True, True, False], most=2).shape
      (3, 2)
    """
    arguments.count("most", most, least=1)
    arguments.seed(seed)
    user = arguments.integers("user", user, least=NONE)
    item = arguments.integers("item", item, least=NONE)
    if len(item) != len(user):
        raise ValueError(
            f"item has {len(item)} rows and user has {len(user)}; expected as many."
        )
    clicked = arguments.mask("clicked", clicked, len(user), "rows")
    table = _drawn(user, item, clicked, most + 1, seed)
    found = table[user]  # the last row, of nothing, for users without a number
    is_own = (found == item[:, None]) & (found != NONE)
    count = (found != NONE).sum(1)
    left_out = np.where(is_own.any(1), is_own.argmax(1), np.maximum(count - 1, 0))
    places = np.arange(most)[None]
    return np.take_along_axis(found, places + (places >= left_out[:, None]), axis=1)


def _drawn(
    user: np.ndarray, item: np.ndarray, clicked: np.ndarray, most: int, seed: int
) -> np.ndarray:
    """Up to `most` different items of each user in random order, int32 `[U + 1, most]`."""
    rows = np.flatnonzero(clicked & (user != NONE) & (item != NONE))
    # A pair that is there twice would still be in the history when one of it is left out.
    pairs = np.unique(np.stack([user[rows], item[rows]]), axis=1)
    users, items = pairs[:, np.random.default_rng(seed).permutation(pairs.shape[1])]
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    rank = np.arange(len(users)) - np.searchsorted(users, users)
    kept = rank < most
    table = np.full((int(user.max(initial=NONE)) + 2, most), NONE, np.int32)
    table[users[kept], rank[kept]] = items[kept]
    return table
