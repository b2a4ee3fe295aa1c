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


def allows(hint: Any, value: Any) -> bool:
    """Whether a value is of one of the types of a field."""
    return any(_is_of(kind, value) for kind in members(hint))


def _is_of(kind: Any, value: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return any(
            value == choice and type(value) is type(choice)
            for choice in typing.get_args(kind)
        )
    if typing.get_origin(kind) is tuple:
        inside = [k for k in typing.get_args(kind) if k is not Ellipsis]
        if not isinstance(value, tuple) or (
            Ellipsis not in typing.get_args(kind) and len(value) != len(inside)
        ):
            return False
        return all(any(_is_of(k, v) for k in inside) for v in value)
    # True is an int to Python, and is neither a count nor a rate here.
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _expected(hint: Any) -> str:
    """The types of a field in words."""
    words = {
        int: "an integer",
        float: "a number",
        bool: "True or False",
        str: "a word",
        type(None): "None",
    }
    literals = [k for k in members(hint) if typing.get_origin(k) is Literal]
    choices = [str(choice) for k in literals for choice in typing.get_args(k)]
    parts = [f"one of {', '.join(choices)}"] if choices else []
    for kind in members(hint):
        if typing.get_origin(kind) is tuple:
            parts.append(f"a tuple, each {_expected(typing.get_args(kind)[0])}")
        elif kind not in literals:
            parts.append(words.get(kind, getattr(kind, "__name__", str(kind))))
    return " or ".join(parts)


MOST = 2**31 - 1
"""Largest count of a setting: steps and sizes are int32 on a device."""


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raises a `ValueError` for a value of no type of a field, or a huge integer."""
    if not allows(hint, value):
        raise ValueError(f"{name} is {value!r}; expected {_expected(hint)}.")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and abs(number) > MOST:
            raise ValueError(f"{name} is {value}; expected at most {MOST:,}.")


def check_values(record: Any, prefix: str = "", least: Mapping[str, int] | None = None):
    """Refuses values that the types of the fields do not allow, and numbers out of range.

    Args:
      record: Record to check, together with nested records.
      prefix: Path of the record, for messages.
      least: Smallest values of counts that may not be 1, by the names of fields.

    Raises:
      ValueError: a value is wrong; the message names the path, the value and the expected
        values.
    """
    kinds = hints(type(record))
    for field in dataclasses.fields(record):
        value, path = getattr(record, field.name), f"{prefix}{field.name}"
        check_type(path, value, kinds[field.name])
        if isinstance(value, bool):
            continue
        lowest = (least or {}).get(field.name, 1)
        if isinstance(value, int) and float not in members(kinds[field.name]):
            if value < lowest:
                raise ValueError(f"{path} is {value}; expected {lowest} or more.")
        elif isinstance(value, (int, float)) and not 0 <= value < float("inf"):
            raise ValueError(f"{path} is {value}; expected a finite number, 0 or more.")
