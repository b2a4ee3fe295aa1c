"""Ratings in the layouts of MovieLens, and tables of the user.

| name | files | what is known of users; of items |
|---|---|---|
| ml-100k | u.data, u.user, u.item | gender, age, occupation, area; decade, genres |
| ml-1m | ratings.dat, users.dat, movies.dat | the same |
| ml-1m-coldstart | ratings.csv.gz, users.dat, movies_extra.csv | the same, and more |
| own | ratings.csv, users.csv, items.csv | the columns of the files |

F. M. Harper, J. A. Konstan. The MovieLens Datasets: History and Context. ACM TiiS 5(4),
2015. Ages are bands as in MovieLens-1M, areas the first two signs of the postal code.
ml-1m-coldstart is the part of MovieLens-1M that H. Lee et al. (MeLU, KDD 2019) prepared
for new users and for new items, joined: 321,158 of 1,000,209 ratings. Of films it has the
certificate, directors and actors too. It is two blocks that share neither users nor films:
1,208 users and 2,757 films up to 1997, 4,769 users and 733 films from 1998 on.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from metalearn.core.cost import in_bytes
from metalearn.data.lookup import check_name, place_of
from metalearn.data.ratings.tables import Ratings, rating_tables

Columns = dict[str, list[str]]
Limits = tuple[float, float]
_IDS = ("user", "item", "user_id", "movie_id")
MOST_BYTES = 512 * 2**20
_USERS = ("user", "gender", "age", "occupation", "zip")
# Lowest age of each band of MovieLens-1M.
_BANDS = (1, 18, 25, 35, 45, 50, 56)


def load_ratings(
    name: str, data_dir: str | Path | None, *, limits: tuple[float, float] = (1.0, 5.0)
) -> Ratings:
    """Reads ratings, users and items.

    Args:
      name: A name of `LAYOUTS`.
      data_dir: Folder of the files, or the folder that has them in a folder of that name.
      limits: Lowest and highest rating of the scale.

    Returns:
      The ratings in the order of the file.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the name is unknown; a line has another number of columns (named with its
        file), or see `rating_tables`.
    """
    check_name("ratings", name, LAYOUTS)
    _, files, read = LAYOUTS[name]
    folder = place_of(f"the ratings {name!r}", data_dir, files, within=(name,))
    try:
        return read(folder, limits)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _ml_100k(folder: Path, limits: Limits) -> Ratings:
    ratings = _lines(folder / "u.data", "\t", ("user", "item", "rating", "time"))
    users = _lines(folder / "u.user", "|", ("user", "age", "gender", "occupation", "zip"))
    genres = [line.split("|")[0] for line in _text(folder / "u.genre").split("\n") if line]
    names = ("item", "title", "date", "video", "url", *genres)
    items = _lines(folder / "u.item", "|", names)
    # Dates are such as 01-Jan-1995; one film has none.
    items["decade"] = [_decade(date[-4:]) for date in items["date"]]
    flags = zip(*(items[genre] for genre in genres), strict=True)
    items["genres"] = [
        "|".join(g for g, flag in zip(genres, row, strict=True) if flag == "1")
        for row in flags
    ]
    return _movies("ml-100k", ratings, users, items, ("decade", "genres"), limits)


def _ml_1m(folder: Path, limits: Limits) -> Ratings:
    ratings = _lines(folder / "ratings.dat", "::", ("user", "item", "rating", "time"))
    users = _lines(folder / "users.dat", "::", _USERS)
    items = _lines(folder / "movies.dat", "::", ("item", "title", "genres"))
    years = [re.search(r"\((\d{4})\)\s*$", title) for title in items["title"]]
    items["decade"] = [_decade(year[1] if year else "") for year in years]
    return _movies("ml-1m", ratings, users, items, ("decade", "genres"), limits)


def _ml_1m_coldstart(folder: Path, limits: Limits) -> Ratings:
    ratings = _csv(folder / "ratings.csv.gz", ("user_id", "movie_id", "rating"))
    ratings["user"], ratings["item"] = ratings["user_id"], ratings["movie_id"]
    users = _lines(folder / "users.dat", "::", _USERS)
    lists = ("genres", "directors", "actors")
    items = _csv(folder / "movies_extra.csv", ("movie_id", "year", "rated", *lists))
    items["item"] = items["movie_id"]
    items["decade"] = [_decade(year) for year in items["year"]]
    for name in lists:
        items[name] = [cell.replace(",", "|") for cell in items[name]]
    known = ("decade", "rated", *lists)
    return _movies("ml-1m-coldstart", ratings, users, items, known, limits)


def _movies(
    name: str,
    ratings: Columns,
    users: Columns,
    items: Columns,
    known: tuple[str, ...],
    limits: Limits,
) -> Ratings:
    """Ratings of films, whose users have the columns of `_USERS`."""
    users["age"] = [_band(age) for age in _numbers(users["age"], "age")]
    users["area"] = [code[:2] for code in users["zip"]]
    lists = {column: "|" for column in ("genres", "directors", "actors") if column in known}
    return rating_tables(
        {**ratings, "rating": _numbers(ratings["rating"], "rating")},
        users,
        items,
        user_columns=("gender", "age", "occupation", "area"),
        item_columns=known,
        separators=lists,
        limits=limits,
        name=name,
    )


def _own(folder: Path, limits: Limits) -> Ratings:
    """Tables of the user: `|` parts the values of a cell."""
    ratings = _csv(folder / "ratings.csv", ("user", "item", "rating"))
    users = _csv(folder / "users.csv", ("user",))
    items = _csv(folder / "items.csv", ("item",))
    for file, table, other in (("users.csv", users, "item"), ("items.csv", items, "user")):
        if other in table:
            raise ValueError(f"{file} has a column {other!r}, which is for ratings.csv.")
    columns = [name for name in (*users, *items) if name not in ("user", "item")]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(
            f"users.csv and items.csv both have {', '.join(twice)}; expected names of "
            "columns that differ. Rename one."
        )
    return rating_tables(
        {**ratings, "rating": _numbers(ratings["rating"], "rating")},
        users,
        items,
        separators=dict.fromkeys(columns, "|"),
        limits=limits,
    )


def _decade(year: str) -> str:
    return f"{year[:3]}0s" if year.isdigit() else ""


def _numbers(cells: list[str], name: str) -> np.ndarray:
    """Numbers of a column, float64.

    Raises:
      ValueError: a cell is none; names the row.
    """
    found = []
    for row, cell in enumerate(cells):
        try:
            found.append(float(cell.replace("_", " ")))
        except ValueError:
            raise ValueError(
                f"column {name!r} holds {cell!r} in row {row}, counted from 0; expected a "
                "number, with a point before decimals."
            ) from None
    return np.asarray(found)


def _band(age: float) -> str:
    """Band of an age, by its lowest age."""
    return str(max(low for low in _BANDS if low <= max(age, 1)))


def _lines(path: Path, separator: str, names: tuple[str, ...]) -> Columns:
    """Columns of a file without a first line of names."""
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        cells = line.rstrip("\r").split(separator)
        if cells == [""]:
            continue
        if len(cells) != len(names):
            raise ValueError(
                f"line {number} of {path.name} has {len(cells)} columns; expected "
                f"{', '.join(names)} with {separator!r} between them."
            )
        rows.append(cells)
    if not rows:
        raise ValueError(f"{path.name} has no line; expected one or more.")
    found = zip(*rows, strict=True)
    return {name: list(cells) for name, cells in zip(names, found, strict=True)}


def _csv(path: Path, needed: tuple[str, ...]) -> Columns:
    """Columns of a CSV file whose first line names them."""
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        names = next(lines, [])
        if lacking := [name for name in needed if name not in names]:
            raise ValueError(
                f"{path.name} has the columns {names[:8]}; expected {', '.join(lacking)} "
                "too, in its first line."
            )
        if len(set(names)) < len(names) or "" in names:
            raise ValueError(
                f"{path.name} has the columns {names[:8]}; expected names, each once. Data "
                "frames are written by to_csv(index=False)."
            )
        rows = []
        for cells in lines:
            if cells and len(cells) != len(names):
                raise ValueError(
                    f"line {lines.line_num} of {path.name} has {len(cells)} columns; "
                    f"expected {len(names)}."
                )
            if not cells:
                continue
            cells = [cell.strip() for cell in cells]
            for name in needed:
                if not cells[names.index(name)] and name in _IDS:
                    raise ValueError(
                        f"line {lines.line_num} of {path.name} has no {name!r}; expected a "
                        "name. Drop such lines."
                    )
            rows.append(cells)
    except csv.Error as error:
        told = f"line {lines.line_num} of {path.name} is no CSV: {error}."
        raise ValueError(told) from error
    if not rows:
        raise ValueError(f"{path.name} has no row; expected one or more.")
    found = zip(*rows, strict=True)
    return {name: list(cells) for name, cells in zip(names, found, strict=True)}


def _text(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            with gzip.open(path) as file:
                content = file.read(MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path.name} is no gzip file: {error}.") from error
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"{path.name} holds more than {in_bytes(MOST_BYTES)} of text; expected less."
        )
    try:
        if b"\0" in content:
            raise ValueError(
                f"{path.name} is no text in UTF-8: it holds zeros. Save it as CSV in UTF-8."
            )
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # what MovieLens has


# Name: one line, the files, and the function that reads them.
LAYOUTS: dict[str, tuple[str, tuple[str, ...], Callable[[Path, Limits], Ratings]]] = {
    "ml-100k": (
        "MovieLens-100K: 943 users, 1,682 films",
        ("u.data", "u.user", "u.item", "u.genre"),
        _ml_100k,
    ),
    "ml-1m": (
        "MovieLens-1M: 6,040 users, 3,883 films, 1,000,209 ratings",
        ("ratings.dat", "users.dat", "movies.dat"),
        _ml_1m,
    ),
    "ml-1m-coldstart": (
        "the part of MovieLens-1M of new users and of new films, 321,158 ratings",
        ("ratings.csv.gz", "users.dat", "movies_extra.csv"),
        _ml_1m_coldstart,
    ),
    "own": (
        "tables of your own: user,item,rating; user,...; item,...",
        ("ratings.csv", "users.csv", "items.csv"),
        _own,
    ),
}
