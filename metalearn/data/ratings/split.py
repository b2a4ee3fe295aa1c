"""Users and items that training does not see: the states of a cold start."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from metalearn.data import arguments
from metalearn.data.ratings.tables import NONE, Entities, Ratings

STATES = ("warm", "user", "item", "both")
MAKER = "rating_tables(...)"
PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Which ratings are for training, and which make each state of a test.

    Attributes:
      user_part: Part of each user, int8 `[U]`: 0 train, 1 validation, 2 test.
      new_item: Whether an item is kept from training, bool `[I]`.
      held: Whether a rating of a training user for an old item is kept from training, for
        the warm state, bool `[R]`.
    """

    user_part: np.ndarray
    new_item: np.ndarray
    held: np.ndarray

    def mask(self, ratings: Ratings, part: str, state: str = "warm") -> np.ndarray:
        """Mask of the ratings of a part and state, bool `[R]`.

        Args:
          ratings: The ratings that were split.
          part: Part of the users. Training is in the state "warm" alone and leaves out what
            is held back; validation is in the states of new users, "user" and "both".
          state: One of `STATES`: "warm" (users and items of training), "user" (new users),
            "item" (new items), "both". In a test, "warm" has all ratings of training users
            for old items: those of training are support, those held back are queries.

        Raises:
          ValueError: there is no such part, state, or pair of them, or other ratings were
            split.
        """
        arguments.record("ratings", ratings, Ratings, MAKER)
        states = {"train": ("warm",), "validation": ("user", "both"), "test": STATES}
        sizes = (len(self.user_part), len(self.new_item), len(self.held))
        given = (len(ratings.users.ids), len(ratings.items.ids), len(ratings.user))
        if sizes != given:
            raise ValueError(
                "the ratings have {} users, {} items and {} rows; expected those that were "
                "split, of {}, {} and {}.".format(*given, *sizes)
            )
        known = isinstance(part, str) and isinstance(state, str)
        if not known or state not in states.get(part, ()):
            pairs = "; ".join(f"{p}: {', '.join(s)}" for p, s in states.items())
            raise ValueError(
                f"part and state are {part!r} and {state!r}; expected one of {pairs}."
            )
        number = PARTS.index(part) if state in ("user", "both") else 0
        users = self.user_part[ratings.user] == number
        items = self.new_item[ratings.item] == (state in ("item", "both"))
        found = users & items
        return found & ~self.held if part == "train" else found


def cold_start(
    ratings: Ratings,
    *,
    validation_users: float = 0.1,
    test_users: float = 0.2,
    new_items: float = 0.2,
    held: int = 10,
    seed: int = 0,
) -> ColdStart:
    """Splits users and items at random, and holds back ratings for the warm state.

    The part of a user is drawn from the seed and the user's name, and that of an item
    likewise. So further users or items move none of the others.

    Args:
      ratings: The ratings.
      validation_users: Share of the users for validation, above 0.
      test_users: Share of the users for the test, above 0.
      new_items: Share of the items that training does not see, from 0 to below 1.
      held: Number of ratings of each training user for old items that training does not
        see, where the user has twice as many.
      seed: Seed of the split.

    Returns:
      The split. Equal arguments give an equal one.

    Raises:
      ValueError: shares are out of range, or leave no user, item or rating for a part.
    """
    arguments.record("ratings", ratings, Ratings, MAKER)
    arguments.seed(seed)
    check_shares(validation_users, test_users, new_items)
    if isinstance(held, bool) or not isinstance(held, (int, np.integer)) or held < 1:
        raise ValueError(f"held is {held!r}; expected an integer of 1 or more.")
    of_users = _draws(ratings.users.ids, f"user {seed}")
    of_items = _draws(ratings.items.ids, f"item {seed}")
    user_part = np.where(of_users < validation_users + test_users, 2, 0).astype(np.int8)
    user_part[of_users < validation_users] = 1
    _check_parts(user_part, "users")
    new_item = of_items < new_items
    warm = (user_part[ratings.user] == 0) & ~new_item[ratings.item]
    if not warm.any():
        raise ValueError(
            f"no rating is left for training of {len(ratings):,}. Lower the shares of "
            "users and items that training does not see."
        )
    # A draw of a pair from those of its user and its item: unlike for other pairs.
    pairs = (of_users[ratings.user] * 7919 + of_items[ratings.item] * 104_729) % 1
    return ColdStart(
        user_part=user_part,
        new_item=new_item,
        held=_held(pairs, ratings.user, warm, held),
    )


def item_parts(
    ratings: Ratings, *, validation: float = 0.1, test: float = 0.2, seed: int = 0
) -> np.ndarray:
    """Part of each item, int8 `[I]`: 0 train, 1 validation, 2 test; users are in all.

    The part of an item is drawn from the seed and the item's name.

    Raises:
      ValueError: shares are out of range, or leave no item for a part.
    """
    arguments.record("ratings", ratings, Ratings, MAKER)
    arguments.seed(seed)
    check_shares(validation, test, 0.0, of="items")
    draws = _draws(ratings.items.ids, f"item {seed}")
    part = np.where(draws < validation + test, 2, 0).astype(np.int8)
    part[draws < validation] = 1
    _check_parts(part, "items")
    return part


def _check_parts(part: np.ndarray, what: str) -> None:
    counts = np.bincount(part, minlength=3)
    if not counts.all():
        told = ", ".join(f"{name} {n}" for name, n in zip(PARTS, counts, strict=True))
        raise ValueError(
            f"of {len(part)} {what}, parts have {told}; expected one or more in each. "
            "Change the shares or the seed of the split (--app.split-number), or give more "
            f"{what}."
        )


def check_shares(
    validation: float, test: float, new_items: float, *, of: str = "users"
) -> None:
    """Raises a `ValueError` unless shares of users and items leave some for training."""
    shares = {
        f"validation_{of}": validation,
        f"test_{of}": test,
        "new_items": new_items,
    }
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, (int, float, np.number)):
            raise TypeError(f"{name} is {share!r}; expected a share from 0 to 1.")
        least = share >= 0 if name == "new_items" else share > 0
        if not (least and share < 1):
            least = "from 0 to below 1" if name == "new_items" else "above 0 and below 1"
            raise ValueError(f"{name} is {share!r}; expected a share {least}.")
    if validation + test >= 1:
        raise ValueError(
            f"validation_{of} is {validation} and test_{of} is {test}, which leave none of "
            f"the {of} for training; expected a sum below 1."
        )


def without_unseen(ratings: Ratings, mask: np.ndarray) -> Ratings:
    """The ratings, with no value where training would see none.

    A value that no rating of training has, such as a new actor, has an embedding that was
    never learned. It counts as missing.

    Args:
      ratings: The ratings.
      mask: Mask of the ratings of training, bool `[R]`.

    Raises:
      TypeError: the ratings or the mask are something else.
      ValueError: the mask is of another number of ratings.
    """
    arguments.record("ratings", ratings, Ratings, MAKER)
    mask = arguments.mask("mask", mask, len(ratings), "ratings")
    users = _only_seen(ratings.users, np.unique(ratings.user[mask]))
    items = _only_seen(ratings.items, np.unique(ratings.item[mask]))
    return dataclasses.replace(ratings, users=users, items=items)


def _only_seen(entities: Entities, rows: np.ndarray) -> Entities:
    codes, start = entities.codes.copy(), 0
    for attribute in entities.attributes:
        own = codes[:, start : start + attribute.places]
        own[~np.isin(own, own[rows])] = NONE
        start += attribute.places
    return dataclasses.replace(entities, codes=codes)


def _draws(ids: np.ndarray, seed: str) -> np.ndarray:
    """A uniform draw from 0..1 for each name, float64 `[E]`."""

    def draw(name: Any) -> float:
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    return np.asarray([draw(name) for name in ids.tolist()])


def _held(draws: np.ndarray, user: np.ndarray, warm: np.ndarray, held: int) -> np.ndarray:
    """Mask of `held` ratings of each user that has twice as many."""
    rows = np.flatnonzero(warm)
    rows = rows[np.lexsort((draws[rows], user[rows]))]
    of_user = user[rows]
    starts = np.flatnonzero(np.r_[True, of_user[1:] != of_user[:-1]])
    counts = np.diff(np.r_[starts, len(rows)])
    place = np.arange(len(rows)) - np.repeat(starts, counts)
    enough = np.repeat(counts >= 2 * held, counts)
    found = np.zeros(len(user), bool)
    found[rows[(place < held) & enough]] = True
    return found
