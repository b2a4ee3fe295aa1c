"""Visits of users to places as arrays, checked, from a table of the user."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from typing import Any

import numpy as np

from metalearn.core import columns
from metalearn.core.columns import Table
from metalearn.data import arguments

UNKNOWN = 0  # code of a place without a category
KM_PER_DEGREE = 111.2
MOST_DEGREES = 10.0  # width of a city, beyond which its plane would be too wrong
MOST_HOURS = 1e8
_TIMES = (
    "expected hours as numbers [R], or dates such as 2024-05-01T18:30, of the clock of the "
    "place and without a zone."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visits:
    """Who was where and when.

    Attributes:
      name: Name of the set.
      users: Name of each user, all different.
      places: Name of each place, all different.
      user: Number of the user of each visit, int32 `[R]`; a user's rows are in the order of
        time.
      place: Number of the place of each visit, int32 `[R]`.
      hours: Time of each visit in hours, float64 `[R]`; whole days begin at multiples of
        24.
      category: Code of the category of each place, int32 `[P]`; `UNKNOWN` without one.
      categories: Meaning of the codes from 1 on, as text.
      where: Position of each place in kilometres east and north of the middle of its
        city, float32 `[P, 2]`; None if unknown.
      city: Number of the city of each place, int32 `[P]`.
      cities: Name of each city.
      are_areas: Whether cities are the areas of tasks, which are not to be divided.
    """

    name: str
    users: np.ndarray
    places: np.ndarray
    user: np.ndarray
    place: np.ndarray
    hours: np.ndarray
    category: np.ndarray
    categories: tuple[str, ...]
    where: np.ndarray | None
    city: np.ndarray
    cities: tuple[str, ...]
    are_areas: bool

    def __len__(self) -> int:
        return len(self.user)

    @property
    def digest(self) -> str:
        """SHA-256 of all arrays and names."""
        told = (self.cities, self.categories, self.users.tolist(), self.places.tolist())
        found = hashlib.sha256(repr(told).encode())
        parts = (self.user, self.place, self.hours, self.category, self.city, self.where)
        for part in parts:
            if part is not None:
                found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def visit_table(
    visits: Any,
    *,
    user: str = "user",
    place: str = "place",
    time: str = "time",
    category: str | None = "category",
    lat: str | None = "lat",
    lon: str | None = "lon",
    area: str | None = "area",
    name: str = "own",
) -> Visits:
    """Visits from a table: a data frame, or a dictionary of columns.

    Columns with a name that the table does not have are left out, except for the first
    three. Of categories, positions and areas the first that a place has counts.

    Args:
      visits: Table with a row for each visit. The rows of a user are in the order of time.
      user: Column of the users' names.
      place: Column of the places' names.
      time: Column of times: hours as numbers, or dates (numpy.datetime64, or text such as
        2024-05-01T18:30).
      category: Column of the kinds of places; an empty cell is unknown.
      lat: Column of the latitudes of places, in degrees.
      lon: Column of the longitudes of places, in degrees.
      area: Column of the areas that are tasks. Without it, areas are made of the positions,
        or of who goes where.
      name: Name of the set.

    Returns:
      The visits in the order of their rows.

    Raises:
      TypeError: the table is something else.
      ValueError: a column is missing, repeated, named for two roles or unusable, a cell is
        empty (that of a category apart), a time is before that of an earlier row of its
        user, a position is no position, or a place is in two areas. Column and row
        are named. Or positions of one city are a thousand kilometres apart.

    Example:
      >>> table = {"user": ["ann", "ann", "bob"], "place": ["inn", "zoo", "inn"],
      ...          "time": [9.0, 11.5, 10.0], "area": ["old town"] * 3}
      >>> found = visit_table(table)
      >>> found.place.tolist(), found.cities
      ([0, 1, 0], ('old town',))
    """
    roles = {
        **{"user": user, "place": place, "time": time, "category": category},
        **{"lat": lat, "lon": lon, "area": area},
    }
    for role, column in roles.items():
        arguments.column(role, column)
    rows = Table(visits)
    rows.check_names("the visits", (user, place, time))
    # A role of a column that the table lacks is not played.
    Table.check_roles({role: c if c in rows.names else None for role, c in roles.items()})
    has = {c for c in (category, lat, lon, area) if c is not None and c in rows.names}
    if (lat in has) != (lon in has):
        there = lat if lat in has else lon
        raise ValueError(
            f"the table has the column {there!r} alone; expected both {lat!r} and {lon!r}, "
            "or none of them."
        )
    users, of_user = _numbered(rows[user], user)
    places, of_place = _numbered(rows[place], place)
    hours = _hours(rows[time], time)
    _check_order(of_user, hours, users, time)
    first = np.unique(of_place, return_index=True)[1]
    codes, meanings = np.zeros(len(places), np.int32), ()
    if category in has:
        codes, meanings = _categories(rows[category], first, category)
    city, cities = np.zeros(len(places), np.int32), (name,)
    if area in has:
        names, of_row = _numbered(rows[area], area)
        city, cities = of_row[first], tuple(map(str, names.tolist()))
        moved = city[of_place] != of_row
        if moved.any():
            row = int(moved.argmax())
            raise ValueError(
                f"column {area!r} has {cities[of_row[row]]!r} in row {row}, counted from "
                f"0, for the place {places.tolist()[of_place[row]]!r}, which an earlier "
                f"row has in {cities[city[of_place[row]]]!r}; expected one area a place."
            )
    where = None
    if lat in has:
        where = _kilometres(rows[lat], rows[lon], first, city, lat, lon)
    return Visits(
        name=name,
        users=users,
        places=places,
        user=of_user,
        place=of_place,
        hours=hours,
        category=codes,
        categories=meanings,
        where=where,
        city=city,
        cities=cities,
        are_areas=area in has,
    )


def kilometres(lat: np.ndarray, lon: np.ndarray, city: np.ndarray) -> np.ndarray:
    """Positions on planes, each of which touches the middle of a city, float32 `[P, 2]`.

    Args:
      lat: Latitudes in degrees, `[P]`.
      lon: Longitudes in degrees, `[P]`.
      city: Number of the city of each place, `[P]`.

    Raises:
      ValueError: a city is so large that no plane has its distances.
    """
    found = np.zeros((len(lat), 2), np.float32)
    for number in np.unique(city):
        own = np.flatnonzero(city == number)
        middle = np.mean(lat[own])
        turns = np.exp(1j * np.radians(lon[own]))
        # A longitude of 180 degrees is one of -180, so that the mean is one of directions.
        east = np.degrees(np.angle(turns / np.exp(1j * np.angle(turns.mean()))))
        wide = max(np.ptp(lat[own]), np.ptp(east) * np.cos(np.radians(middle)))
        if wide > MOST_DEGREES:
            raise ValueError(
                f"positions of one city are up to {KM_PER_DEGREE * wide:,.0f} km apart; "
                f"expected {KM_PER_DEGREE * MOST_DEGREES:,.0f} km at most, which a plane "
                "can show. Give a column of areas, or a region at a time."
            )
        scale = KM_PER_DEGREE * np.array([np.cos(np.radians(middle)), 1])
        found[own] = scale * np.stack([east, lat[own] - middle], axis=1)
    return found


def _numbered(values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Different values in their order, and the number of each row, int32 `[R]`."""
    known = columns.values_of(values, name)
    columns.check_filled(values, name, "a name")
    return np.asarray(known), columns.coded(values, known, name)


def _hours(values: np.ndarray, name: str) -> np.ndarray:
    """Times in hours, float64 `[R]`."""
    columns.check_complete(values, name)
    columns.check_filled(values, name, "a time")
    if values.ndim != 1 or values.dtype.kind in "bcm":
        raise ValueError(
            f"column {name!r} has shape {values.shape} and dtype {values.dtype}, which are "
            f"no times; {_TIMES}"
        )
    if columns.is_number(values):
        hours = values.astype(np.float64)
        far = np.abs(hours) > MOST_HOURS
        if far.any():
            row = int(far.argmax())
            raise ValueError(
                f"column {name!r} has {hours[row]:g} in row {row}, counted from 0, which "
                f"is no time in hours; {_TIMES} Divide seconds by 3600."
            )
        return hours
    if values.dtype.kind == "O":
        columns.check_one_kind(values, name, _TIMES)
    if values.dtype.kind == "M":
        dates = values.astype("datetime64[s]")
    else:
        dates = np.asarray([_date(v, row, name) for row, v in enumerate(values.tolist())])
    columns.check_complete(dates, name)
    return dates.astype(np.int64) / 3600


def _date(value: Any, row: int, name: str) -> np.datetime64:
    """A date to the second; numpy would take words such as now, and drop zones."""
    text = value.strip().lower() if isinstance(value, str) else ""
    try:
        if text in ("now", "today"):
            raise ValueError(f"{value!r} depends on when it is read")
        if isinstance(value, (int, float)):
            raise ValueError("a number among dates")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return np.datetime64(value, "s")
    except (TypeError, ValueError, OverflowError, Warning) as error:
        raise ValueError(
            f"column {name!r} has {value!r} in row {row}, counted from 0, which is no time "
            f"({error}); {_TIMES}"
        ) from None


def _check_order(user: np.ndarray, hours: np.ndarray, users: np.ndarray, name: str) -> None:
    """Raises a `ValueError` if the time of a user goes back; names the rows."""
    order = np.argsort(user, kind="stable")
    back = (np.diff(hours[order]) < 0) & (np.diff(user[order]) == 0)
    if not back.any():
        return
    place = int(back.argmax())
    before, row = int(order[place]), int(order[place + 1])
    raise ValueError(
        f"column {name!r} goes back from {hours[before]:g} h in row {before} to "
        f"{hours[row]:g} h in row {row}, counted from 0, of the user "
        f"{users.tolist()[user[row]]!r}, and in {int(back.sum())} rows in all; expected "
        "the rows of a user in the order of time. Sort the table by time."
    )


def _categories(
    values: np.ndarray, first: np.ndarray, name: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    if values.ndim != 1 or values.dtype.kind in "cmM":
        raise ValueError(
            f"column {name!r} has shape {values.shape} and dtype {values.dtype}; expected "
            "names [R]."
        )
    cells = values[first].tolist()
    text = ["" if columns.missing(v) else str(v).strip() for v in cells]
    known = tuple(sorted(set(text) - {""}))
    code = {"": UNKNOWN, **{word: i + 1 for i, word in enumerate(known)}}
    return np.asarray([code[word] for word in text], np.int32), known


def _kilometres(
    lat: np.ndarray, lon: np.ndarray, first: np.ndarray, city: np.ndarray, *names: str
) -> np.ndarray:
    found = []
    for values, name, most in zip((lat, lon), names, (90, 180), strict=True):
        columns.check_complete(values, name)
        columns.check_filled(values, name, "degrees")
        if values.dtype.kind == "O":
            columns.check_one_kind(values, name, "expected degrees [R].")
        if values.ndim != 1 or not columns.is_number(values):
            raise ValueError(
                f"column {name!r} has shape {values.shape} and dtype {values.dtype}; "
                "expected degrees [R]."
            )
        degrees = values.astype(np.float64)
        bad = np.abs(degrees) > most
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"column {name!r} holds {degrees[row]:g} in row {row}, counted from 0; "
                f"expected degrees from -{most} to {most}."
            )
        found.append(degrees[first])
    return kilometres(*found, city)
