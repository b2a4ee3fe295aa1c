"""Tables of users, items and ratings as arrays of codes, checked."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalearn.core import columns
from metalearn.core.columns import Table
from metalearn.data import arguments

NONE = -1  # code of a place that no value fills
MOST_VALUES = 100_000
MOST_PLACES = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attribute:
    """Something that is known of every user or item, such as the genres of a film.

    Attributes:
      name: Name of the column.
      values: Different values, as text, in the order of their codes.
      places: Largest number of values that one user or item has, 1 or more.
    """

    name: str
    values: tuple[str, ...]
    places: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entities:
    """Users, or items.

    Attributes:
      ids: Name of each, `[E]`, all different.
      attributes: What is known of them.
      codes: Codes of their values, int32 `[E, P]`: the places of the first attribute, then
        those of the second, and so on. `NONE` fills the places that are left.
    """

    ids: np.ndarray
    attributes: tuple[Attribute, ...]
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def code(self, name: str) -> np.ndarray:
        """Codes of one attribute, int32 `[E, places]`.

        Raises:
          KeyError: there is no such attribute.
        """
        start = 0
        for attribute in self.attributes:
            if attribute.name == name:
                return self.codes[:, start : start + attribute.places]
            start += attribute.places
        raise KeyError(
            f"no attribute {name!r}; there are {[a.name for a in self.attributes]}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratings:
    """Ratings of items by users.

    Attributes:
      name: Name of the set.
      users: The users.
      items: The items.
      user: Row of the user in `users` for each rating, int32 `[R]`.
      item: Row of the item in `items` for each rating, int32 `[R]`.
      rating: The ratings, float32 `[R]`.
      limits: Lowest and highest rating of the scale.
    """

    name: str
    users: Entities
    items: Entities
    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    limits: tuple[float, float]

    def __len__(self) -> int:
        return len(self.rating)

    def content_of(self, rows: Any = slice(None)) -> np.ndarray:
        """Codes of the user and then of the item for each rating, int32 `[R, P]`."""
        parts = (self.users.codes[self.user[rows]], self.items.codes[self.item[rows]])
        return np.concatenate(parts, axis=1)

    @property
    def fields(self) -> tuple[tuple[int, int], ...]:
        """Number of values and of places of each attribute, as in `content_of`."""
        both = (*self.users.attributes, *self.items.attributes)
        return tuple((len(a.values), a.places) for a in both)

    @property
    def vocabulary(self) -> str:
        """SHA-256 of what the codes of `content_of` mean."""
        both = (*self.users.attributes, *self.items.attributes)
        told = [(a.name, a.values, a.places) for a in both]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 of ratings, names, codes and their meaning."""
        ids = (self.users.ids.tolist(), self.items.ids.tolist())
        found = hashlib.sha256(repr((self.vocabulary, self.limits, ids)).encode())
        for part in (self.users.codes, self.items.codes, self.user, self.item, self.rating):
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def rating_tables(
    ratings: Any,
    users: Any,
    items: Any,
    *,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
    user_columns: Sequence[str] | None = None,
    item_columns: Sequence[str] | None = None,
    separators: Mapping[str, str] | None = None,
    limits: tuple[float, float] = (1.0, 5.0),
    name: str = "own",
) -> Ratings:
    """Ratings from three tables: data frames, or dictionaries of columns.

    Args:
      ratings: Table with a row for each rating.
      users: Table with a row for each user. A user may have no rating.
      items: Table with a row for each item. An item may have no rating.
      user: Column of the users' names, in `ratings` and `users`.
      item: Column of the items' names, in `ratings` and `items`.
      rating: Column of the ratings.
      user_columns: Columns of what is known of users: text, or whole numbers that are
        names. All but `user` if None.
      item_columns: Columns of what is known of items. All but `item` if None.
      separators: Separator of the values in one cell, by column, such as
        `{"genres": "|"}`. An empty cell has no value.
      limits: Lowest and highest rating of the scale.
      name: Name of the set.

    Returns:
      The ratings in the order of their rows.

    Raises:
      TypeError: a table is something else.
      ValueError: a column is missing, repeated, named for two roles or unusable; a name of
        `users` or `items` is there twice or empty; a rating is outside the limits, is of an
        unknown user or item, or is the second of its user and item. Column and row are
        named.

    Example:
      >>> users = {"user": ["ann", "bob"], "age": ["20s", "30s"]}
      >>> items = {"item": [7, 8], "genres": ["Crime|Drama", "Comedy"]}
      >>> table = {"user": ["ann", "bob"], "item": [7, 7], "rating": [4, 2]}
      >>> found = rating_tables(table, users, items, separators={"genres": "|"})
      >>> found.fields, found.content_of().tolist()
      (((2, 1), (3, 2)), [[0, 1, 2], [1, 1, 2]])
    """
    roles = {"user": user, "item": item, "rating": rating}
    for role, column in roles.items():
        arguments.column(role, column)
    Table.check_roles(roles)
    rows = Table(ratings)
    rows.check_names("the ratings", (user, item, rating))
    separators = {} if separators is None else separators
    if not isinstance(separators, Mapping):
        raise TypeError(
            f"separators is {separators!r}; expected texts by column, such as "
            '{"genres": "|"}.'
        )
    of_users = _entities("users", Table(users), user, user_columns, separators)
    of_items = _entities("items", Table(items), item, item_columns, separators)
    known = {a.name for a in (*of_users.attributes, *of_items.attributes)}
    if unknown := sorted(set(separators) - known):
        raise ValueError(
            f"separators names {', '.join(unknown)}, no column of users or items that is "
            f"taken; those are {', '.join(sorted(known)) or 'none'}."
        )
    found = Ratings(
        name=name,
        users=of_users,
        items=of_items,
        user=_places(rows[user], of_users, user, "users"),
        item=_places(rows[item], of_items, item, "items"),
        rating=_ratings(rows[rating], rating, limits),
        limits=check_limits(limits),
    )
    _check_once(found, user, item)
    return found


def _entities(
    what: str,
    table: Table,
    key: str,
    names: Sequence[str] | None,
    separators: Mapping[str, str],
) -> Entities:
    """The users or the items of a table."""
    table.check_names(f"the key of {what}", (key,))
    if isinstance(names, str) or not isinstance(names, (Sequence, type(None))):
        raise TypeError(f"columns are {names!r}; expected a list of names.")
    if names is None:
        names = [column for column in table.names if column != key]
    table.check_names("the columns", names)
    if not names or key in names or len(set(names)) < len(names):
        raise ValueError(
            f"the columns beside {key!r} are {list(names)}; expected one or more, each "
            "once, of what is known before the first rating."
        )
    ids = table[key]
    try:
        columns.values_of(ids, key)  # complete, of one kind
        columns.check_filled(ids, key, "a name")
    except ValueError as error:
        raise ValueError(f"the table of {what}: {error}") from None
    kept, first = np.unique(ids, return_index=True)
    if len(kept) < len(ids):
        again = sorted(set(range(len(ids))) - set(first.tolist()))[0]
        raise ValueError(
            f"the table of {what}: column {key!r} holds {ids.tolist()[again]!r} again in "
            f"row {again}, counted from 0; expected each name once. Drop such rows."
        )
    made = [_attribute(table[column], column, separators.get(column)) for column in names]
    return Entities(
        ids=ids,
        attributes=tuple(attribute for attribute, _ in made),
        codes=np.concatenate([codes for _, codes in made], axis=1),
    )


def _attribute(
    values: np.ndarray, name: str, separator: str | None
) -> tuple[Attribute, np.ndarray]:
    """An attribute, and the codes of its values `[E, places]`."""
    if separator is not None and (not isinstance(separator, str) or not separator):
        raise ValueError(f"the separator of {name!r} is {separator!r}; expected a text.")
    if values.ndim != 1 or values.dtype.kind in "fcmM":
        raise ValueError(
            f"column {name!r} has shape {values.shape} and dtype {values.dtype}; expected "
            "[R] of text or whole numbers. Make bands of numbers, such as decades of years."
        )
    cells = [_words(value, separator) for value in values.tolist()]
    known = tuple(sorted({word for words in cells for word in words}))
    places = max(map(len, cells))
    if not known:
        raise ValueError(f"column {name!r} has no value in any row. Leave it out.")
    if len(known) > MOST_VALUES or places > MOST_PLACES:
        raise ValueError(
            f"column {name!r} has {len(known):,} values, up to {places} in a row; expected "
            f"at most {MOST_VALUES:,} and {MOST_PLACES}. Make bands, or leave it out."
        )
    number = {word: code for code, word in enumerate(known)}
    codes = np.full((len(cells), places), NONE, np.int32)
    for row, words in enumerate(cells):
        codes[row, : len(words)] = [number[word] for word in words]
    return Attribute(name=name, values=known, places=places), codes


def _words(value: Any, separator: str | None) -> list[str]:
    """Different values of a cell in their order; a missing value is none."""
    if columns.missing(value):
        return []
    text = str(value)
    parts = [text] if separator is None else text.split(separator)
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _ratings(values: np.ndarray, name: str, limits: tuple[float, float]) -> np.ndarray:
    """Ratings within the limits, float32 `[R]`."""
    low, high = check_limits(limits)
    columns.check_complete(values, name)
    if values.ndim != 1 or not columns.is_number(values):
        raise ValueError(
            f"column {name!r} has shape {values.shape} and dtype {values.dtype}; expected "
            "numbers [R]."
        )
    found = values.astype(np.float64)
    outside = (found < low) | (found > high)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"column {name!r} holds {values.tolist()[row]} in row {row}, counted from 0, "
            f"and {int(outside.sum())} ratings are outside {low:g} to {high:g}. Correct "
            "them, or say the scale by limits=(lowest, highest), or --app.limits."
        )
    return found.astype(np.float32)


def check_limits(limits: Any) -> tuple[float, float]:
    """The lowest and the highest rating.

    Raises:
      ValueError: they are not two finite numbers in this order.
    """
    try:
        low, high = (float(limit) for limit in limits)
    except (TypeError, ValueError):
        low = high = 0.0
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(
            f"limits are {limits!r}; expected a lowest and a highest rating, such as "
            "(1, 5)."
        )
    return low, high


def _places(values: np.ndarray, known: Entities, column: str, what: str) -> np.ndarray:
    """Rows of users or items in their table, int32 `[R]`."""
    if values.ndim != 1:
        raise ValueError(f"column {column!r} has shape {values.shape}; expected [R].")
    ids = tuple(known.ids.tolist())
    return columns.coded(values, ids, column, f"the table of {what}")


def _check_once(ratings: Ratings, user: str, item: str) -> None:
    """Raises a `ValueError` if a user rates an item twice; names the rows."""
    pairs = ratings.user.astype(np.int64) * len(ratings.items) + ratings.item
    order = np.argsort(pairs, kind="stable")
    again = np.flatnonzero(np.diff(pairs[order]) == 0)
    if not len(again):
        return
    first, second = order[again[0]], order[again[0] + 1]
    raise ValueError(
        f"rows {first} and {second}, counted from 0, have the same {user!r} "
        f"({ratings.users.ids.tolist()[ratings.user[first]]!r}) and {item!r} "
        f"({ratings.items.ids.tolist()[ratings.item[first]]!r}), and {len(again)} rows "
        "repeat an earlier pair; expected one rating each. Keep the last, or the mean."
    )
