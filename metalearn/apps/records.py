"""Frozen records of settings: checks of values, and conversion to and from JSON."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def hints(record: type) -> dict[str, Any]:
    """Types of the fields of a record."""
    found = getattr(record, "__field_types__", None)
    return typing.get_type_hints(record) if found is None else found


def to_json(record: Any) -> dict[str, Any]:
    """All fields as JSON values; nested records become dictionaries."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return to_json(value)
        # JSON has no tuples; `from_json` turns lists back.
        return list(value) if isinstance(value, tuple) else value

    return {f.name: plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def from_json(record: type[T], settings: Mapping[str, Any]) -> T:
    """The inverse of `to_json` for a record whose fields hold plain values or records.

    Raises:
      ValueError: the settings have a field that the record does not have.
    """
    known = {field.name for field in dataclasses.fields(record)}
    if unknown := sorted(settings.keys() - known):
        raise ValueError(
            f"{record.__name__} has no settings {unknown}; this version of metalearn knows "
            f"{sorted(known)}. Use the version that wrote them (versions in config.json)."
        )
    kinds = hints(record)

    def value_of(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            inside = [k for k in members(kinds[name]) if dataclasses.is_dataclass(k)]
            return from_json(inside[0], value)
        return tuple(value) if isinstance(value, list) else value

    return record(**{name: value_of(name, value) for name, value in settings.items()})


def changed(record: T, path: str, value: Any) -> T:
    """The record with another value at "field" or "field.field".

    Raises:
      ValueError: the field does not exist; the message suggests the nearest.
    """
    name, dot, rest = path.partition(".")
    names = [field.name for field in dataclasses.fields(record)]
    if name not in names:
        near = difflib.get_close_matches(name, names)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"{type(record).__name__} has no setting {name!r}; it has {', '.join(names)}."
            + hint
        )
    if dot:
        value = changed(getattr(record, name), rest, value)
    return dataclasses.replace(record, **{name: value})


def members(hint: Any) -> tuple[Any, ...]:
    """Types of a union, or the type alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def check_values(record: Any, prefix: str = "", least: Mapping[str, int] | None = None):
    """Refuses values that the types of the fields do not allow, and numbers below zero.

    Args:
      record: Record to check, together with nested records.
      prefix: Path of the record, for messages.
      least: Smallest value of counts that may be less than 1, by path.

    Raises:
      ValueError: a value is wrong; the message names the path, the value and the expected
        values.
    """
    kinds = hints(type(record))
    for field in dataclasses.fields(record):
        value, path = getattr(record, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check_values(value, f"{path}.", least)
        else:
            _check_value(
                path, value, members(kinds[field.name]), (least or {}).get(path, 1)
            )


def check_word(name: str, value: Any, kinds: tuple[Any, ...]) -> None:
    """Raises a `ValueError` for a word or a number that is not one of the choices."""
    literals = [k for k in kinds if typing.get_origin(k) is Literal]
    choices = [choice for k in literals for choice in typing.get_args(k)]
    others = {k for k in kinds if k not in literals}
    unknown_word = isinstance(value, str) and str not in others
    only_choices = not others - {type(None)}
    if value is not None and value not in choices and (only_choices or unknown_word):
        listed = ", ".join(map(str, choices)) or " or ".join(k.__name__ for k in others)
        raise ValueError(f"{name} is {value!r}; expected one of {listed}.")


def _check_value(name: str, value: Any, kinds: tuple[Any, ...], least: int) -> None:
    check_word(name, value, kinds)
    # True is an int to Python, and is neither a count nor a rate here.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if int in kinds and float not in kinds and not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}; expected an integer.")
    if int in kinds and float not in kinds and value < least:
        raise ValueError(f"{name} is {value}; expected {least} or more.")
    if float in kinds and not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}; expected a finite number, 0 or more.")
