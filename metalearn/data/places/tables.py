"""Areas as arrays of one size: the last records of users, places, and what is ranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from metalearn.data import arguments
from metalearn.data.places.areas import NONE, area_of_places, home_areas
from metalearn.data.places.vectors import place_vectors
from metalearn.data.places.visits import UNKNOWN, Visits

RECORDS = 10  # last records of a user
SUPPORT = (5, 6)  # those that a task shows
QUERY = (7, 8, 9)  # those that are predicted
MOST_KM2 = 10.0  # squared distances beyond it count as it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Area:
    """One area; numbers of users and places are its own, from 0.

    Attributes:
      name: Name of the area.
      place: Places of the last records of each user, int32 `[U, 10]`.
      hour: Hour of the day of these, int32 `[U, 10]`.
      gap: Logarithm of hours since the record before, standardised, float32 `[U, 10]`.
      category: Category of each place, int32 `[P]`.
      vector: Vector of each place, float32 `[P, D]`.
      where: Position of each place in kilometres, float32 `[P, 2]`.
      spread: Mean and deviation of squared distances, float32 `[2]`.
      free: Places that a user never visited, int32 `[U, F]`, the first `free_count` of
        them.
      free_count: Number of these, int32 `[U]`.
      ranked: Places beside which the queries are ranked, int32 `[U, 3, K]`.
      earlier_user: User of each visit before the last records, int32 `[E]`.
      earlier_place: Place of these, int32 `[E]`, in the order of time for each user.
      ids: Names of the places.
    """

    name: str
    place: np.ndarray
    hour: np.ndarray
    gap: np.ndarray
    category: np.ndarray
    vector: np.ndarray
    where: np.ndarray
    spread: np.ndarray
    free: np.ndarray
    free_count: np.ndarray
    ranked: np.ndarray
    earlier_user: np.ndarray
    earlier_place: np.ndarray
    ids: np.ndarray

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.place)


def areas_of(
    visits: Visits,
    *,
    area_visits: int = 24_000,
    least_visits: int = 10,
    least_users: int = 32,
    most_users: int = 200,
    negatives: int = 100,
    dim: int = 16,
    seed: int = 0,
) -> list[Area]:
    """The areas of visits, in the order of their numbers.

    Users have 10 visits in their area or more; the last 10 are records, the others are
    earlier visits. Of records 6 and 7 and of 8 to 10, counted from 1, the place is
    predicted, from the records before.

    Args:
      visits: The visits.
      area_visits: Number of visits of a made area, see `area_of_places`.
      least_visits: Visits that a place needs.
      least_users: Users that an area needs.
      most_users: Most users of an area, a draw of all.
      negatives: K, places beside which the right one is ranked.
      dim: Length of the vectors of places.
      seed: Seed of the draws.

    Raises:
      ValueError: a number is out of range, an area has fewer users than asked, or a user
        has visited all but fewer than K places.
    """
    arguments.seed(seed)
    for name, value in (("least_users", least_users), ("negatives", negatives)):
        arguments.count(name, value, least=1)
    arguments.count("most_users", most_users, least=least_users)
    arguments.count("dim", dim, least=2)
    area, names = area_of_places(visits, area_visits=area_visits, least_visits=least_visits)
    home = home_areas(visits, area, len(names))
    inside = (area[visits.place] == home[visits.user]) & (home[visits.user] != NONE)
    counts = np.bincount(visits.user[inside], minlength=len(visits.users))
    kept = inside & (counts >= RECORDS)[visits.user]
    found = []
    for number, name in enumerate(names):
        users = np.flatnonzero((home == number) & (counts >= RECORDS))
        if len(users) < least_users:
            raise ValueError(
                f"area {name!r} has {len(users)} users with {RECORDS} visits or more to "
                f"places of {least_visits} visits or more; expected {least_users}. "
                f"{len(visits.users)} users have {len(visits)} visits in all. Ask for "
                "fewer (--app.least-users), for larger areas (--app.area-visits), or leave "
                "the area out."
            )
        random = np.random.default_rng((seed, number))
        if len(users) > most_users:
            users = np.sort(random.permutation(users)[:most_users])
        rows = np.flatnonzero(kept & np.isin(visits.user, users))
        found.append(_area(visits, name, rows, negatives, dim, random))
    return found


def _area(
    visits: Visits,
    name: str,
    rows: np.ndarray,
    negatives: int,
    dim: int,
    random: np.random.Generator,
) -> Area:
    order = rows[np.argsort(visits.user[rows], kind="stable")]
    user = np.unique(visits.user[order], return_inverse=True)[1].astype(np.int32)
    known, place = np.unique(visits.place[order], return_inverse=True)
    place, hours = place.astype(np.int32), visits.hours[order]
    counts = np.bincount(user)
    # Place of each visit from the end of its user.
    left = np.repeat(np.cumsum(counts), counts) - np.arange(len(user))
    last, num = left <= RECORDS, len(counts)
    same = np.diff(user, prepend=-1) == 0
    gap = np.log1p(np.where(same, np.diff(hours, prepend=hours[:1]), 0))
    where = np.zeros((len(known), 2), np.float32)
    if visits.where is not None:
        where = visits.where[known]
    apart = np.square(where[place] - where[np.roll(place, 1)]).sum(1)
    # Queries take no part in means and deviations.
    told = same & (left > len(QUERY))
    mean, size = _moments(gap[told])
    free, free_count = _free(user, place, len(known))
    if free_count.min() < negatives:
        raise ValueError(
            f"area {name!r} has {len(known)} places, and one of its users has visited all "
            f"but {free_count.min()}; expected {negatives} others to rank with. Ask for "
            "fewer (--app.negatives)."
        )
    draws = random.random((num, len(QUERY), free.shape[1]))
    draws[
        np.broadcast_to(np.arange(free.shape[1]) >= free_count[:, None, None], draws.shape)
    ] = 2
    chosen = np.argpartition(draws, negatives - 1, axis=2)[:, :, :negatives]
    ranked = np.take_along_axis(free[:, None], chosen.reshape(num, 1, -1), 2)
    return Area(
        name=name,
        place=place[last].reshape(num, RECORDS),
        hour=(np.floor(hours[last]) % 24).astype(np.int32).reshape(num, RECORDS),
        gap=np.where(same, (gap - mean) / size, 0)[last]
        .astype(np.float32)
        .reshape(num, -1),
        category=visits.category[known],
        vector=place_vectors(user[~last], place[~last], num, len(known), dim=dim),
        where=where,
        spread=np.asarray(_moments(np.minimum(apart, MOST_KM2)[told]), np.float32),
        free=free,
        free_count=free_count,
        ranked=ranked.reshape(num, len(QUERY), negatives).astype(np.int32),
        earlier_user=user[~last],
        earlier_place=place[~last],
        ids=visits.places[known],
    )


def _free(
    user: np.ndarray, place: np.ndarray, num_places: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places without a visit of each user first, and their numbers."""
    visited = np.zeros((user[-1] + 1, num_places), bool)
    visited[user, place] = True
    order = np.argsort(visited, axis=1, kind="stable").astype(np.int32)
    return order, (~visited).sum(1).astype(np.int32)


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and deviation; a deviation of nothing counts as 1."""
    if not len(values):
        return 0.0, 1.0
    deviation = float(values.std())
    return float(values.mean()), deviation if deviation > 1e-9 else 1.0


def padded(areas: Sequence[Area]) -> dict[str, np.ndarray]:
    """Arrays of several areas, filled up with zeros to the largest.

    Returns:
      The arrays of `Area` by name, each with a leading axis of areas; `users`, the number
      of users of each.

    Raises:
      ValueError: areas were made with different `negatives` or `dim`.
    """
    for other in areas[1:]:
        _check_alike(areas[0], other)
    names = ("place", "hour", "gap", "category", "vector", "where", "spread")
    found = {}
    for name in (*names, "free", "free_count", "ranked"):
        parts = [getattr(area, name) for area in areas]
        shape = np.max([part.shape for part in parts], axis=0)
        whole = np.zeros((len(parts), *shape), parts[0].dtype)
        for row, part in zip(whole, parts, strict=True):
            row[tuple(map(slice, part.shape))] = part
        found[name] = whole
    # A user who is not there has a place to draw, which is masked.
    found["free_count"] = np.maximum(found["free_count"], 1)
    found["users"] = np.asarray([area.num_users for area in areas], np.int32)
    return found


def _check_alike(one: Area, other: Area) -> None:
    """Raises a `ValueError` if two areas were made by other settings, filled by zeros."""
    for what, name in (("negatives", "ranked"), ("dim", "vector")):
        sizes = [getattr(area, name).shape[-1] for area in (one, other)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"area {one.name!r} was made with {what}={sizes[0]}, and {other.name!r} "
                f"with {sizes[1]}; expected the same. Make both by one call of areas_of."
            )


def known_categories(
    base: Sequence[Area], others: Sequence[Area], num: int
) -> tuple[list[Area], int]:
    """The other areas with the categories that base areas have, and their number.

    Args:
      base: Areas of training.
      others: Other areas, whose further categories become unknown.
      num: Number of categories, the unknown one included.

    Raises:
      TypeError: areas are something else.
      ValueError: `num` is no count, or an area has a category beyond it.
    """
    for name, areas in (("base", base), ("others", others)):
        arguments.records(name, areas, Area, "areas_of(...)")
    arguments.count("num", num, least=1)
    most = max((int(a.category.max(initial=0)) for a in (*base, *others)), default=0)
    if most >= num:
        raise ValueError(
            f"num is {num}, and an area has the category {most}; expected {most + 1} or "
            "more."
        )
    seen = np.zeros(num, bool)
    for area in base:
        seen[area.category] = True
    kept = [
        dataclasses.replace(a, category=np.where(seen[a.category], a.category, UNKNOWN))
        for a in others
    ]
    return kept, num
