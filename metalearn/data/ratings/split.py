"""Users and items that training does not see: the states of a cold start."""

from __future__ import annotations

import dataclasses

import numpy as np

from metalearn.data.ratings.tables import Ratings

STATES = ("warm", "user", "item", "both")
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

    def rows(self, ratings: Ratings, part: str, state: str) -> np.ndarray:
        """Mask of the ratings of a part and state, bool `[R]`.

        In training, the warm state is meant, without the ratings that are held back. At
        test it has all ratings of training users for old items: those in training are
        support, and those held back are queries.

        Args:
          ratings: The ratings that were split.
          part: Part of the users, "train", "validation" or "test"; in the states "warm"
            and "item", whose users are those of training, any but "train" means the test.
          state: One of `STATES`: "warm" (users and items of training), "user" (new users),
            "item" (new items), "both".

        Raises:
          ValueError: there is no such part or state.
        """
        if part not in PARTS or state not in STATES:
            raise ValueError(
                f"part and state are {part!r} and {state!r}; expected one of "
                f"{', '.join(PARTS)} and one of {', '.join(STATES)}."
            )
        new_user = state in ("user", "both")
        number = PARTS.index(part) if new_user else 0
        users = self.user_part[ratings.user] == number
        items = self.new_item[ratings.item] == (state in ("item", "both"))
        found = users & items
        return found & ~self.held if part == "train" and state == "warm" else found


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

    Args:
      ratings: The ratings.
      validation_users: Share of the users for validation, above 0.
      test_users: Share of the users for the test, above 0.
      new_items: Share of the items that training does not see, from 0 to below 1.
      held: Number of ratings of each training user for old items that training does not
        see, where the user has three times as many.
      seed: Seed of the split.

    Returns:
      The split. Equal arguments give an equal one.

    Raises:
      ValueError: shares are out of range, or leave no user or no item for training.
    """
    shares = {
        "validation_users": validation_users,
        "test_users": test_users,
        "new_items": new_items,
    }
    for name, share in shares.items():
        least = share >= 0 if name == "new_items" else share > 0
        if not (least and share < 1):
            raise ValueError(f"{name} is {share!r}; expected a share below 1.")
    rng = np.random.default_rng(seed)
    user_part = _parts(rng, len(ratings.users), validation_users, test_users)
    new_item = np.zeros(len(ratings.items), bool)
    chosen = rng.permutation(len(new_item))[: round(new_items * len(new_item))]
    new_item[chosen] = True
    warm = (user_part[ratings.user] == 0) & ~new_item[ratings.item]
    if not warm.any():
        raise ValueError(
            f"no rating is left for training of {len(ratings):,}: lower the shares "
            f"{shares}."
        )
    return ColdStart(
        user_part=user_part,
        new_item=new_item,
        held=_held(rng, ratings.user, warm, held),
    )


def _parts(
    rng: np.random.Generator, num: int, validation: float, test: float
) -> np.ndarray:
    """Part of each user, with at least one in each part."""
    sizes = [max(1, round(share * num)) for share in (validation, test)]
    if sum(sizes) >= num:
        raise ValueError(
            f"{num} users with shares of {validation} for validation and {test} for the "
            "test leave none for training; expected a sum well below 1, and three users "
            "or more."
        )
    found = np.zeros(num, np.int8)
    order = rng.permutation(num)
    found[order[: sizes[0]]] = 1
    found[order[sizes[0] : sum(sizes)]] = 2
    return found


def _held(
    rng: np.random.Generator, user: np.ndarray, warm: np.ndarray, held: int
) -> np.ndarray:
    """Mask of `held` ratings of each user that has three times as many."""
    rows = rng.permutation(np.flatnonzero(warm))
    rows = rows[np.argsort(user[rows], kind="stable")]
    of_user = user[rows]
    starts = np.flatnonzero(np.r_[True, of_user[1:] != of_user[:-1]])
    counts = np.diff(np.r_[starts, len(rows)])
    place = np.arange(len(rows)) - np.repeat(starts, counts)
    enough = np.repeat(counts >= 3 * held, counts)
    found = np.zeros(len(user), bool)
    found[rows[(place < held) & enough]] = True
    return found
