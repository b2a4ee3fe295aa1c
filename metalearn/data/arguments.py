"""Arguments of functions that read, divide or describe data: what is no such thing.

`metalearn.core.checks` has the like for learners, and imports what learns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from metalearn.core import given

T = TypeVar("T")


def record(name: str, value: Any, kind: type[T], maker: str) -> T:
    """A record of this package.

    Args:
      name: Name of the argument.
      value: Value to check.
      kind: Class of the record.
      maker: What makes such a record, for the message.

    Raises:
      TypeError: the value is something else.

    Example:
      >>> record("ratings", table, Ratings, "rating_tables(...)")
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} is {told(value)}; expected {kind.__name__}, as {maker} gives it."
        )
    return value


def records(name: str, values: Any, kind: type[T], maker: str) -> Sequence[T]:
    """Several records, in a list or tuple.

    Raises:
      TypeError: the value is something else, or one of its members is.
    """
    if not isinstance(values, (list, tuple)):
        raise TypeError(
            f"{name} is {told(values)}; expected a list of {kind.__name__}, as {maker} "
            "gives it."
        )
    for number, value in enumerate(values):
        record(f"{name}[{number}]", value, kind, maker)
    return values


def integers(
    name: str,
    values: Any,
    *,
    ndim: int = 1,
    least: int | None = None,
    below: int | None = None,
) -> np.ndarray:
    """An array of whole numbers.

    Args:
      name: Name of the argument.
      values: Value to check.
      ndim: Number of axes.
      least: Smallest number; None for any.
      below: Bound of the numbers, which is not reached; None for any. Of a `least` alone.

    Raises:
      TypeError: the numbers are not whole.
      ValueError: there is another number of axes, or one is out of range; names the row.
    """
    given.check_unmasked(values, name)
    found = _array(name, values)
    if found.dtype.kind not in "iu":
        raise TypeError(
            f"{name} is {told(values)}; expected an array of whole numbers. Write "
            "np.asarray(values, int) where they are whole."
        )
    if found.ndim != ndim:
        raise ValueError(f"{name} has shape {found.shape}; expected {ndim} axes.")
    bad = np.zeros(found.shape, bool)
    if least is not None:
        bad |= found < least
    if below is not None:
        bad |= found >= below
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        first = int(found[bad][0])
        to = "" if below is None else f" to {below - 1}"
        raise ValueError(
            f"{name} holds {first} in row {row}, counted from 0; expected whole numbers "
            f"from {least}{to}."
        )
    return found


def numbers(name: str, values: Any, *, ndim: int) -> np.ndarray:
    """An array of numbers with `ndim` axes.

    Raises:
      TypeError: the values are no numbers.
      ValueError: there is another number of axes.
    """
    given.check_unmasked(values, name)
    found = _array(name, values)
    # bfloat16 is a kind of its own to NumPy.
    if found.dtype.kind not in "biuf" and not jnp.issubdtype(found.dtype, np.floating):
        raise TypeError(f"{name} is {told(values)}; expected an array of numbers.")
    if found.ndim != ndim:
        raise ValueError(f"{name} has shape {found.shape}; expected {ndim} axes.")
    return found


def mask(name: str, values: Any, num: int, of: str) -> np.ndarray:
    """A mask of `num` rows, bool `[num]`.

    Raises:
      TypeError: the values are not of bools.
      ValueError: there is another number of them, or one is masked.
    """
    given.check_unmasked(values, name)
    found = _array(name, values)
    if found.dtype != bool:
        raise TypeError(f"{name} is {told(values)}; expected an array of bools.")
    if found.shape != (num,):
        raise ValueError(
            f"{name} has shape {found.shape}; expected ({num},), one for each of the {of}."
        )
    return found


def count(name: str, value: Any, *, least: int) -> None:
    """Raises a `ValueError` unless `value` is a whole number of `least` or more."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"{name} is {told(value)}; expected an integer of {least} or more."
        )


def number(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a finite number."""
    real = isinstance(value, (int, float, np.integer, np.floating))
    if not real or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} is {told(value)}; expected a finite number.")


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises a `ValueError` unless `value` is one of the choices."""
    if not isinstance(value, str) or value not in choices:  # an array has no one truth
        raise ValueError(f"{name} is {told(value)}; expected one of {', '.join(choices)}.")


def share(name: str, value: Any) -> None:
    """Raises a `ValueError` unless `value` is a number above 0 and below 1."""
    number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; expected a share above 0 and below 1.")


def seed(value: Any, name: str = "seed") -> None:
    """Raises a `ValueError` unless `value` is a whole number of 0 or more."""
    count(name, value, least=0)


def names(name: str, values: Any, *, numbered: bool = False) -> tuple[str, ...]:
    """Names of things as a tuple, from what has them in order; text is a name a letter.

    Args:
      name: Name of the argument.
      values: Value to check: a list, keys of a dictionary, an array, a generator.
      numbered: Whether numbers may be names, of which text is made.

    Raises:
      TypeError: the value is something else, or one of its members is no name.

    Example:
      >>> names("class_names", [0, 1], numbered=True)
      ('0', '1')
    """
    found = values.tolist() if hasattr(values, "tolist") else values
    # A set has another order in each run.
    if not isinstance(found, Iterable) or isinstance(found, (set, frozenset)):
        raise TypeError(f"{name} is {told(values)}; expected a list of names.")
    found = tuple(found)
    for value in found:
        number = numbered and isinstance(value, (int, float, np.number))
        if not isinstance(value, str) and not number:
            raise TypeError(f"{name} holds {value!r}; expected names as text.")
    return tuple(map(str, found))


def column(role: str, value: Any) -> None:
    """Raises a `TypeError` unless a value can be the name of a column."""
    try:
        hash(value)
    except TypeError:
        raise TypeError(
            f"{role} is {told(value)}; expected the name of a column."
        ) from None


def path(name: str, value: Any) -> None:
    """Raises a `TypeError` unless `value` is a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(
            f"{name} is {told(value)}; expected the path of a folder or file, such as "
            "'data'."
        )


def told(value: Any) -> str:
    """What was given, in a few words."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"an array of {value.dtype} {list(value.shape)}"
    text = repr(value)
    short = value is None or isinstance(value, (str, int, float))
    return text if short and len(text) < 60 else f"a {type(value).__name__}"


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is no array ({error}); give equal rows.") from None
