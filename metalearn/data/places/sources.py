"""Files of visits: check-ins of Foursquare, tours of Flickr, and tables of the user.

| name | files | what is known of places |
|---|---|---|
| foursquare_cities | new_york.npz, jakarta.npz, kuala_lumpur.npz | category |
| foursquare_nyc_geo | nyc_geo.npz | position |
| flickr_tours | traj-CITY.csv, poi-CITY.csv | category, position, area |
| own | visits.csv: user, place, time | category; lat and lon, or area |

D. Yang, B. Qu, J. Yang, P. Cudre-Mauroux. Revisiting User Mobility and Social Relationships
in LBSNs. WWW 2019 (the cities). D. Yang, D. Zhang, V. W. Zheng, Z. Yu. IEEE TSMC 45(1),
2015 (New York with positions). K. H. Lim et al., IJCAI 2015 (Flickr). Of the cities, hours
of the week alone are known; weeks are counted by the order of the rows. Kuala Lumpur
numbers its categories in another way than the other two, so they count as other categories.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.core.cost import in_bytes
from metalearn.data.lookup import check_name, place_of
from metalearn.data.npz import read_arrays
from metalearn.data.places.visits import Visits, kilometres, visit_table

CITIES = ("new_york", "jakarta", "kuala_lumpur")
TOURS = ("Edin", "Melb", "Osak", "Toro")
WEEK = 168
MOST_BYTES = 512 * 2**20


def load_visits(name: str, data_dir: str | Path | None) -> Visits:
    """Reads visits.

    Args:
      name: A name of `LAYOUTS`.
      data_dir: Folder of the files, or the folder that has them in a folder of that name.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the name is unknown, a file is damaged, or see `visit_table`.
    """
    check_name("visits", name, LAYOUTS)
    _, files, read = LAYOUTS[name]
    folder = place_of(f"the visits {name!r}", data_dir, files, within=(name,))
    try:
        return read(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def unrolled(hour_of_week: np.ndarray) -> np.ndarray:
    """Hours since the first week from hours of the week, 1..168, float64 `[R]`.

    The nearer way round the week is the way that time went. Where it goes back by less than
    half a week, as a few rows of the files do, it stands still.
    """
    step = np.diff(hour_of_week.astype(np.int64), prepend=hour_of_week[:1])
    step = (step + WEEK // 2) % WEEK - WEEK // 2
    first = float(hour_of_week[0]) - 1
    return np.maximum.accumulate(first + np.cumsum(step)).astype(np.float64)


def _cities(folder: Path) -> Visits:
    parts: dict[str, list[np.ndarray]] = {k: [] for k in ("u", "p", "h", "c", "city")}
    users, places = [], []
    names: dict[tuple[str, int], int] = {}
    for number, city in enumerate(CITIES):
        path = folder / f"{city}.npz"
        found = _arrays(path, ("user", "hour_of_week", "venue", "category"))
        known, user = np.unique(found["user"], return_inverse=True)
        venues, venue = np.unique(found["venue"], return_inverse=True)
        parts["u"].append(user + len(users))
        parts["p"].append(venue + len(places))
        parts["h"].append(unrolled(found["hour_of_week"]))
        scheme = "k" if city == "kuala_lumpur" else "n"
        most = _most_frequent(venue, found["category"])
        code = [names.setdefault((scheme, c), len(names) + 1) for c in most.tolist()]
        parts["c"].append(np.asarray(code))
        parts["city"].append(np.full(len(venues), number))
        users += [f"{city}/{u}" for u in known.tolist()]
        places += [f"{city}/{v}" for v in venues.tolist()]
    whole = {k: np.concatenate(v) for k, v in parts.items()}
    return Visits(
        name="foursquare_cities",
        users=np.asarray(users),
        places=np.asarray(places),
        user=whole["u"].astype(np.int32),
        place=whole["p"].astype(np.int32),
        hours=whole["h"],
        category=whole["c"].astype(np.int32),
        categories=tuple(f"{scheme}{number}" for scheme, number in names),
        where=None,
        city=whole["city"].astype(np.int32),
        cities=CITIES,
        are_areas=False,
    )


def _nyc_geo(folder: Path) -> Visits:
    wanted = ("user", "poi", "time_minute", "poi_lat", "poi_lon")
    found = _arrays(folder / "nyc_geo.npz", wanted)
    order = np.lexsort((found["time_minute"], found["user"]))
    user = np.unique(found["user"][order], return_inverse=True)
    num = len(found["poi_lat"])
    return Visits(
        name="foursquare_nyc_geo",
        users=user[0],
        places=np.arange(1, num + 1),
        user=user[1].astype(np.int32),
        place=(found["poi"][order] - 1).astype(np.int32),
        hours=found["time_minute"][order] / 60,
        category=np.zeros(num, np.int32),
        categories=(),
        where=kilometres(found["poi_lat"], found["poi_lon"], np.zeros(num, np.int32)),
        city=np.zeros(num, np.int32),
        cities=("New York",),
        are_areas=False,
    )


def _tours(folder: Path) -> Visits:
    table: dict[str, list] = {k: [] for k in _OWN}
    for city in TOURS:
        sights = _csv(folder / f"poi-{city}.csv", ("poiID", "poiCat", "poiLon", "poiLat"))
        of = {
            sight: row
            for row, sight in enumerate(sights["poiID"])  # names are of a city
        }
        wanted = ("userID", "poiID", "startTime")
        rows = _csv(folder / f"traj-{city}.csv", wanted)
        start = np.asarray(rows["startTime"], np.int64)
        for row in np.lexsort((start, np.asarray(rows["userID"]))).tolist():
            sight = rows["poiID"][row]
            if sight not in of:
                raise ValueError(
                    f"traj-{city}.csv has the poiID {sight!r} in row {row}, counted from "
                    f"0, which poi-{city}.csv has not."
                )
            at = of[sight]
            values = (
                *(f"{city}/{rows['userID'][row]}", f"{city}/{sight}", start[row] / 3600),
                *(sights["poiCat"][at], sights["poiLat"][at], sights["poiLon"][at], city),
            )
            for name, value in zip(table, values, strict=True):
                table[name].append(value)
    for name in ("time", "lat", "lon"):
        table[name] = [float(value) for value in table[name]]
    return visit_table(table, name="flickr_tours")


_OWN = ("user", "place", "time", "category", "lat", "lon", "area")


def _own(folder: Path) -> Visits:
    found = _csv(folder / "visits.csv", ("user", "place", "time"))
    table = {name: found[name] for name in _OWN if name in found}
    for name in ("time", "lat", "lon"):
        if name in table:
            table[name] = _as_numbers(table[name], name, dates=name == "time")
    return visit_table(table)


def _as_numbers(cells: list[str], name: str, *, dates: bool) -> list:
    """Cells as numbers; if they are dates, as text."""
    found = []
    for row, cell in enumerate(cells):
        try:
            found.append(float(cell))
        except ValueError:
            if dates and not row:
                return cells
            raise ValueError(
                f"visits.csv: column {name!r} holds {cell!r} in row {row}, counted from 0; "
                "expected a number."
            ) from None
    return found


def _most_frequent(place: np.ndarray, category: np.ndarray) -> np.ndarray:
    """The category that most visits to a place have, `[P]`."""
    pairs, counts = np.unique(np.stack([place, category]), axis=1, return_counts=True)
    order = np.lexsort((counts, pairs[0]))
    last = np.flatnonzero(np.diff(pairs[0][order], append=-1))
    return pairs[1][order][last]


def _arrays(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        found, _ = read_arrays(path, wanted, most=MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if lacking := sorted(set(wanted) - found.keys()):
        raise ValueError(f"{path.name} has no array {', '.join(lacking)}.")
    return found


def _csv(path: Path, wanted: tuple[str, ...]) -> dict[str, list[str]]:
    """Columns of a file by name."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(
            f"{path.name} takes {in_bytes(size)}; expected at most {in_bytes(MOST_BYTES)}."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is no text in UTF-8: {error}.") from None
    lines = _rows_of(path, csv.reader(io.StringIO(text, newline="")))
    names = [name.strip() for name in next(lines, [])]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{path.name} has the column {repeated[0]!r} more than once; expected each "
            "name once."
        )
    if lacking := [name for name in wanted if name not in names]:
        raise ValueError(
            f"{path.name} has the columns {names}; expected {', '.join(lacking)} as well."
        )
    found: list[list[str]] = []
    for cells in lines:
        if not cells:
            continue
        if len(cells) != len(names):
            raise ValueError(
                f"{path.name} has {len(cells)} cells in row {len(found)}, counted from 0; "
                f"expected {len(names)}, as in its first line."
            )
        found.append([cell.strip() for cell in cells])
    return {name: [row[i] for row in found] for i, name in enumerate(names)}


def _rows_of(path: Path, lines: Any) -> Iterator[list[str]]:
    try:
        yield from lines
    except csv.Error as error:
        raise ValueError(
            f"{path.name} cannot be read as a table near line {lines.line_num}: {error}."
        ) from None


LAYOUTS: dict[str, tuple[str, tuple[str, ...], Callable[[Path], Visits]]] = {
    "foursquare_cities": (
        "1,010,925 check-ins in New York, Jakarta and Kuala Lumpur",
        tuple(f"{city}.npz" for city in CITIES),
        _cities,
    ),
    "foursquare_nyc_geo": (
        "147,938 check-ins in New York, with positions",
        ("nyc_geo.npz",),
        _nyc_geo,
    ),
    "flickr_tours": (
        "24,078 visits to sights in four cities, with positions",
        tuple(f"{kind}-{city}.csv" for city in TOURS for kind in ("traj", "poi")),
        _tours,
    ),
    "own": ("visits of your own: user, place, time and more", ("visits.csv",), _own),
}
