"""What else a user clicked on: the history that a network of interest reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from metalearn.core.cost import in_bytes
from metalearn.data import arguments

NONE = -1
_MOST_BYTES = 4 * 2**30  # of the histories


def other_clicks(
    user: Any, item: Any, clicked: Any, *, rows: Any = None, most: int = 20, seed: int = 0
) -> np.ndarray:
    """Items that the user of each row clicked on, for rows with a click and without alike.

    What a user has rated is parted at random into halves, as many clicks in each and as
    many others, but for an odd one, and rows of one half see clicks of the other. So a row
    has the history of its whole half: the item of a row alone, left out where the user
    clicked on it, would give the click away. Histories of the user's other rows still hold
    the item if it was clicked on, as any history of training does: who learns them by heart
    knows the clicks of training, but nothing of a row whose item is -1.

    Args:
      user: Number of the user of each row, int `[R]`; -1 for one without a history.
      item: Number of the item, int `[R]`; -1 for an item that no history may have, whose
        row is of a half at random.
      clicked: Whether the user clicked, bool `[R]`.
      rows: Numbers of the rows that are asked for, int `[S]`; all if None.
      most: L, the largest number of items of a row, 1 or more. A user with fewer than twice
        as many clicks has half of them, rounded down, in each row. The click of the row
        itself is counted, so histories of training are half an item longer for it.
      seed: Seed of the draws.

    Returns:
      Numbers of items, int32 `[S, L]`, those that there are first, then -1.

    Raises:
      TypeError: numbers are not whole, or clicks are not bool.
      ValueError: the numbers of rows differ, a number is out of range, or histories would
        take too much memory.

    Example:
      >>> found = other_clicks([0, 0, 0], [5, 6, 7], [True, True, False], most=2)
      >>> found[0, 0], found[1, 0]  # the click of the other half
      (np.int32(6), np.int32(5))
    """
    arguments.count("most", most, least=1)
    arguments.seed(seed)
    user = arguments.integers("user", user, least=NONE, below=2**31)
    item = arguments.integers("item", item, least=NONE, below=2**31)
    if len(item) != len(user):
        raise ValueError(
            f"item has {len(item)} rows and user has {len(user)}; expected as many."
        )
    clicked = arguments.mask("clicked", clicked, len(user), "rows")
    if rows is None:
        rows = np.arange(len(user))
    rows = arguments.integers("rows", rows, least=0, below=len(user))
    wanted = 4 * most * (2 * len(np.unique(user)) + len(rows))
    if wanted > _MOST_BYTES:
        raise ValueError(
            f"histories of {most:,} items of {len(rows):,} rows take {in_bytes(wanted)}; "
            f"expected at most {in_bytes(_MOST_BYTES)}. Lower most."
        )
    # A stack of signed and unsigned numbers would be of floats.
    item = item.astype(np.int64)
    names, place = np.unique(user, return_inverse=True)
    random = np.random.default_rng(seed)
    half = random.integers(2, size=len(user))
    known = np.flatnonzero((names[place] >= 0) & (item >= 0))
    # A pair that is there twice is in one half.
    pairs, own = np.unique(
        np.stack([place[known], item[known]]), axis=1, return_inverse=True
    )
    own = own.reshape(-1)  # NumPy 2.0 gives it a second axis
    is_click = np.zeros(pairs.shape[1], bool)
    is_click[own[clicked[known]]] = True
    of_pair = _halves(pairs[0], is_click, random)
    half[known] = of_pair[own]
    table = _drawn(len(names), *pairs[:, is_click], of_pair[is_click], most, random)
    return table[place[rows], half[rows]]


def _halves(
    user: np.ndarray, is_click: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Half of each pair, 0 or 1: of a user's clicks as many in each, of the others too."""
    group = 2 * user + is_click
    # Of an odd number of pairs the first half has one more, or the second.
    first = random.integers(2, size=group.max(initial=-1) + 1)[group]
    return (_ranks(group, random) + first) % 2


def _drawn(
    num: int,
    user: np.ndarray,
    item: np.ndarray,
    half: np.ndarray,
    most: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Clicks that each half of a user sees, as many in both, int32 `[U, 2, most]`."""
    table = np.full((num, 2, most), NONE, np.int32)
    rank = _ranks(2 * user + half, random)
    size = np.minimum(np.bincount(user, minlength=num) // 2, most)
    kept = rank < size[user]
    table[user[kept], 1 - half[kept], rank[kept]] = item[kept]
    return table


def _ranks(group: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Place of each row within its group in random order, 0..."""
    order = np.lexsort((random.random(len(group)), group))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return rank
