"""Areas of places: given ones, cells of positions, or places that the same users visit.

Areas stand for the cities of a paper: a user belongs to the area of most of her visits, and
only her visits there count. So no user and no place is in two areas. All visits take part
in this, those that are predicted too, so that a right place is always in the user's area.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from metalearn.data import arguments
from metalearn.data.places.visits import Visits

NONE = -1  # number of a place in no area
ITERATIONS = 60
DIRECTIONS = 4


def area_of_places(
    visits: Visits, *, area_visits: int = 24_000, least_visits: int = 10
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The area of each place.

    Cities that are no areas yet are halved again and again, so that the halves have as many
    visits as each other: along the longer side where positions are known, else along the
    second singular vector of who visits what, which parts places that different users
    visit.

    Args:
      visits: The visits.
      area_visits: Number of visits that an area should have about.
      least_visits: Visits that a place needs; others are in no area.

    Returns:
      Numbers of the areas, int32 `[P]`, `NONE` for places in none, and names of the areas.

    Raises:
      ValueError: a number is below 1, or no place has as many visits.
    """
    arguments.record("visits", visits, Visits, "visit_table(...)")
    arguments.count("area_visits", area_visits, least=1)
    arguments.count("least_visits", least_visits, least=1)
    counts = np.bincount(visits.place, minlength=len(visits.places))
    kept = counts >= least_visits
    if visits.are_areas:
        return np.where(kept, visits.city, NONE).astype(np.int32), visits.cities
    found, names = np.full(len(counts), NONE, np.int32), []
    for number, city in enumerate(visits.cities):
        own = np.flatnonzero(kept & (visits.city == number))
        if not len(own):
            continue
        ratio = counts[own].sum() / area_visits
        halvings = max(round(np.log2(max(ratio, 1))), 0)
        if visits.where is None:
            direction = _together(visits, own)
        else:
            direction = functools.partial(_longer_side, visits.where)
        part = halved(own, counts, halvings, direction)
        found[own] = len(names) + part
        names += [f"{city} {i + 1}" for i in range(2**halvings)]
    if not names:
        raise ValueError(
            f"none of the {len(counts)} places has {least_visits} visits; the most that "
            f"one has is {counts.max(initial=0)}. Ask for fewer (--app.least-visits)."
        )
    return found, tuple(names)


def halved(
    rows: np.ndarray,
    weights: np.ndarray,
    times: int,
    direction: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Parts of rows, halved by weight along a direction, `times` times over.

    Args:
      rows: Numbers of the rows, `[N]`.
      weights: Weight of each row by its number.
      times: Number of halvings.
      direction: Function from numbers of rows `[n]` to their places on a line `[n]`.

    Returns:
      Number of the part, from 0 to `2 ** times - 1`, int `[N]`.
    """
    part = np.zeros(len(rows), np.int64)
    for _ in range(times):
        halves = part * 2
        for number in np.unique(part):
            own = np.flatnonzero(part == number)
            order = own[np.argsort(direction(rows[own]), kind="stable")]
            upto = np.cumsum(weights[rows[order]])
            halves[order[upto > upto[-1] / 2]] += 1
        part = halves
    return part


def home_areas(visits: Visits, area: np.ndarray, num_areas: int) -> np.ndarray:
    """The area of most visits of each user, int32 `[U]`; `NONE` without a visit in one.

    Args:
      visits: The visits.
      area: Area of each place.
      num_areas: Number of areas.
    """
    of_row = area[visits.place]
    inside = of_row != NONE
    counts = np.zeros((len(visits.users), num_areas), np.int64)
    np.add.at(counts, (visits.user[inside], of_row[inside]), 1)
    return np.where(counts.any(1), counts.argmax(1), NONE).astype(np.int32)


def _longer_side(where: np.ndarray, rows: np.ndarray) -> np.ndarray:
    own = where[rows]
    return own[:, np.argmax(own.max(0) - own.min(0))]


def _together(visits: Visits, own: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function from places to numbers that are alike where users are the same."""
    from scipy.sparse import csr_matrix  # jax needs it anyway, but not at its import

    inside = np.isin(visits.place, own)
    user, place = visits.user[inside], visits.place[inside]

    def direction(rows: np.ndarray) -> np.ndarray:
        column = np.full(len(visits.places), NONE)
        column[rows] = np.arange(len(rows))
        there = column[place] != NONE
        pairs = (user[there], column[place[there]])
        shape = (len(visits.users), len(rows))
        table = csr_matrix((np.ones(there.sum()), pairs), shape=shape)
        table.sum_duplicates()
        table.data = np.log1p(table.data)
        return _second_vector(table)

    return direction


def _second_vector(table: Any) -> np.ndarray:
    """Second right singular vector of a table divided by the roots of its sums, scaled."""
    rows, columns = (_root(np.asarray(table.sum(axis)).ravel()) for axis in (1, 0))
    first = np.where(columns > 0, 1 / np.maximum(columns, 1e-12), 0)
    first /= max(np.linalg.norm(first), 1e-12)
    width = min(DIRECTIONS, table.shape[1])
    found = np.random.default_rng(0).normal(size=(table.shape[1], width))
    for _ in range(ITERATIONS):
        found = np.linalg.qr(found - np.outer(first, first @ found))[0]
        image = rows[:, None] * (table @ (columns[:, None] * found))
        found = columns[:, None] * (table.T @ (rows[:, None] * image))
    found = np.linalg.qr(found - np.outer(first, first @ found))[0]
    image = rows[:, None] * (table @ (columns[:, None] * found))
    best = np.linalg.svd(image, full_matrices=False)[2][0]
    return (found @ best) * columns


def _root(sums: np.ndarray) -> np.ndarray:
    return np.where(sums > 0, np.maximum(sums, 1e-12) ** -0.5, 0)
