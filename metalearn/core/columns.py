"""Columns of a table as arrays: numbers, categories, classes and groups."""

from __future__ import annotations

import collections
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalearn.core import given

# Wider one-hot columns are a mistake, or would not fit the device.
MOST_VALUES = 1024


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns of a table mean; the mapping from values to numbers.

    Attributes:
      x: Names of the input columns.
      y: Name of the target column.
      group: Name of the column that tells the tasks apart.
      categories: Values of each column of categories `{name: values}`, in the order of
        their codes.
      classes: Names of the classes in the order of their indices; `None` for numbers.
      encode: Word for how categories become inputs, "one-hot" or "codes".
    """

    x: tuple[str, ...]
    y: str
    group: str
    categories: dict[str, tuple]
    classes: tuple | None
    encode: str

    def inputs(self, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """Numbers, float32 `[R, D]`, and codes of the categories, int32 `[R, C]`."""
        num = len(table[self.y])
        numbers, codes = [np.zeros((num, 0), np.float32)], [np.zeros((num, 0), np.int32)]
        for name in self.x:
            if name in self.categories:
                codes.append(coded(table[name], self.categories[name], name)[:, None])
            else:
                numbers.append(_numbers(table[name], name))
        return np.concatenate(numbers, axis=1), np.concatenate(codes, axis=1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of values of each column of categories, in the order of the codes."""
        return tuple(
            len(self.categories[name]) for name in self.x if name in self.categories
        )

    def targets(self, table: Table) -> np.ndarray:
        """The target column: int32 `[R]` for classes, float32 `[R, D]` for numbers."""
        if self.classes is None:
            return _numbers(table[self.y], self.y)
        return coded(table[self.y], self.classes, self.y)


class Table:
    """A data frame, arrow table, dictionary of columns or structured array, by columns.

    Raises:
      TypeError: it is something else.
      ValueError: columns differ in length, a column is read whose name is there twice, or
        there is no row.
    """

    def __init__(self, table: Any):
        if isinstance(table, np.ndarray) and table.dtype.names:
            self.names = list(table.dtype.names)
        elif isinstance(table, Mapping):
            self.names = list(table)
        elif hasattr(table, "column_names") and hasattr(table, "__getitem__"):
            self.names = list(table.column_names)  # pyarrow, whose columns are the arrays
        elif hasattr(table, "columns") and hasattr(table, "__getitem__"):
            self.names = list(table.columns)
        else:
            raise TypeError(
                f"table is a {type(table).__name__}; expected a data frame, a dictionary "
                "of columns, or a structured NumPy array."
            )
        self._table = table
        times = collections.Counter(self.names)
        # Those that nobody reads do no harm.
        self._repeated = {name for name, number in times.items() if number > 1}
        lengths = {n: len(self[n]) for n in self.names if n not in self._repeated}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns have lengths {lengths}; expected one length.")
        if not lengths or not max(lengths.values()):
            raise ValueError("table has no row; expected one or more.")

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._repeated:
            raise ValueError(
                f"the table has the column {name!r} more than once, in places "
                f"{[i for i, n in enumerate(self.names) if n == name]}, counted from 0; "
                "expected each name once. Rename or drop all but one."
            )
        column = self._table[name]
        given.check_unmasked(column, f"column {name!r}")
        if isinstance(column, (list, tuple)) and any(isinstance(v, str) for v in column):
            # As objects: an array of text gives each row the room of the longest, and would
            # make text of numbers, and of a missing one the word nan.
            values = np.empty(len(column), object)
            values[:] = column
        else:
            values = np.asarray(column)
        if values.ndim not in (1, 2):
            raise ValueError(
                f"column {name!r} has shape {values.shape}; expected [R], or [R, D] for "
                "several numbers a row."
            )
        return given.one_form(values)

    def order_of(self, name: str) -> list[Any] | None:
        """Values of a categorical column of a data frame, in its own order."""
        categories = getattr(getattr(self._table[name], "cat", None), "categories", None)
        return (
            None if categories is None else given.one_form(np.asarray(categories)).tolist()
        )

    @staticmethod
    def check_roles(roles: Mapping[str, str | None]) -> None:
        """Raises a `ValueError` if one column is named for two roles; None names none."""
        taken: dict[str, str] = {}
        for role, name in roles.items():
            if name is not None and name in taken:
                raise ValueError(
                    f"{taken[name]} and {role} both name the column {name!r}; expected "
                    "another column for each, or None for a role that no column has."
                )
            if name is not None:
                taken[name] = role

    def check_names(self, option: str, names: Sequence[str]) -> None:
        """Raises a `ValueError` if the table lacks a column that an option names."""
        for name in names:
            if name not in self.names:
                near = difflib.get_close_matches(str(name), map(str, self.names), n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{option} names the column {name!r}; there are "
                    f"{', '.join(map(repr, self.names))}.{hint}"
                )


def is_number(values: np.ndarray) -> bool:
    """Whether a column holds numbers; true values count as numbers, text does not."""
    if values.dtype.kind == "O":
        return all(
            isinstance(v, (int, float, np.number, np.bool_)) or missing(v)
            for v in values.reshape(-1)
        )
    return values.dtype.kind in "biuf"


def missing(value: Any) -> bool:
    """Whether a value is none: `None`, NaN, or what data frames have in its place."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):
        return False


def check_complete(values: np.ndarray, name: str) -> None:
    """Raises a `ValueError` that names column and row if a value is missing."""
    flat = values.reshape(len(values), -1)
    if values.dtype.kind == "f":
        bad = ~np.isfinite(flat).all(1)
    elif values.dtype.kind == "O":
        bad = np.asarray([any(map(missing, row)) for row in flat])
    elif values.dtype.kind in "mM":
        bad = np.isnat(flat).any(1)
    else:
        return
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"column {name!r} holds {flat[row].tolist()[0]!r} in row {row}, counted from "
            f"0, and no usable value in {int(bad.sum())} of {len(bad)} rows. Drop or fill "
            "them."
        )


def check_filled(values: np.ndarray, name: str, expected: str) -> None:
    """Raises a `ValueError` that names column and row if a cell is text without a sign."""
    if values.dtype.kind not in "OUS":
        return
    for row, value in enumerate(values.reshape(len(values), -1).tolist()):
        if any(isinstance(cell, (str, bytes)) and not cell.strip() for cell in value):
            raise ValueError(
                f"column {name!r} is empty in row {row}, counted from 0; expected "
                f"{expected}. Drop or fill such rows."
            )


def check_one_kind(values: np.ndarray, name: str, expected: str) -> None:
    """Raises a `ValueError` that names the first row where text and numbers are mixed."""
    flat = [isinstance(value, str) for value in values.reshape(-1).tolist()]
    if any(flat) and not all(flat):
        row = next(i for i, text in enumerate(flat) if text != flat[0])
        before = "text" if flat[0] else "numbers"
        raise ValueError(
            f"column {name!r} has {values.reshape(-1).tolist()[row]!r} in row {row}, "
            f"counted from 0, where the rows before have {before}; {expected}"
        )


def values_of(values: np.ndarray, name: str, order: list[Any] | None = None) -> tuple:
    """The different values of a column: in the given order, else sorted.

    Raises:
      ValueError: a value is missing, or kinds of values are mixed.
    """
    check_complete(values, name)
    if values.ndim != 1 or values.dtype.kind in "mM":
        raise ValueError(
            f"column {name!r} has shape {values.shape} and dtype {values.dtype}; expected "
            "[R] of text or whole numbers. Times become numbers by astype('int64')."
        )
    found = set(values.tolist())
    if order is not None:
        return tuple(value for value in order if value in found)
    try:
        return tuple(sorted(found))
    except TypeError:
        kinds = sorted({type(value).__name__ for value in found})
        raise ValueError(
            f"column {name!r} mixes {' and '.join(kinds)}; expected values of one kind. "
            "Make text of it: [str(value) for value in column], or column.astype(str) "
            "where it is an array or of a data frame."
        ) from None


def coded(
    values: np.ndarray, known: tuple, name: str, where: str | None = None
) -> np.ndarray:
    """Places of the values in `known`, int32 `[R]`.

    Args:
      values: The values, `[R]`.
      known: The values that have a place.
      name: Name of the column, for messages.
      where: Table that holds the known values, for messages; that of the mapping if None.

    Raises:
      ValueError: a value is none of them; names the row.
    """
    check_complete(values, name)
    index = {value: i for i, value in enumerate(known)}
    codes = [index.get(value, -1) for value in values.tolist()]
    found = np.asarray(codes, np.int32)
    if (found < 0).any():
        row = int((found < 0).argmax())
        told = f"the {len(known)} known values"
        remedy = "make the mapping from a table that has all values"
        if where is not None:
            told, remedy = f"those of {where}", f"add the values to {where}"
        raise ValueError(
            f"column {name!r} holds {values.tolist()[row]!r} in row {row}, counted from 0, "
            f"which is none of {told}. Drop such rows, or {remedy}."
        )
    return found


def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    check_complete(values, name)
    if not is_number(values):
        raise ValueError(
            f"column {name!r} has dtype {values.dtype}; expected numbers, as in the table "
            "that the mapping comes from. Times become numbers by column.astype('int64')."
        )
    found = values.astype(np.float32)
    if values.dtype.kind in "iu" and np.any(found != values):
        raise ValueError(
            f"column {name!r} holds whole numbers up to {values.max()}, which float32 does "
            "not hold exactly. Name it in categorical=, or scale it."
        )
    check_complete(found, name)  # beyond float32 is infinite
    return found.reshape(len(found), -1)
