"""Splitting the classes of a set into meta-train, meta-validation and meta-test.

A split is given by lists of class names, as in the `splits.json` files that come with
published benchmarks, or drawn at random with a seed. A random split is made only on
request, because the split decides the meaning of every result.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.data.images.image_sets import PARTS

_PART_OF_KEY = {**{part: part for part in PARTS}, "val": "validation"}
# Shares of meta-train and meta-validation; meta-test has the rest.
RANDOM_SHARES = (0.64, 0.16)
EXAMPLE = (
    '{"train": ["class_a", "class_b"], "validation": ["class_c"], "test": ["class_d"]}'
)


def random_split(class_names: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Splits classes 64/16/20 at random.

    Args:
      class_names: The classes; their order does not matter.
      seed: Seed of the shuffle.

    Returns:
      Sorted class names of each part, at least one in each.

    Raises:
      ValueError: Fewer than three classes.
    """
    # Sorted first, so that the split depends on the names and the seed alone.
    names = sorted(class_names)
    if len(names) < 3:
        raise ValueError(
            f"A random split was asked for of {len(names)} classes ({names}); expected "
            "at least 3, one for each part. Name the part instead: split='test'."
        )
    order = np.random.default_rng(seed).permutation(len(names))
    # Rounding may leave a part of a small set empty, which `max` and `min` prevent.
    train, validation = (max(1, round(share * len(names))) for share in RANDOM_SHARES)
    train = min(train, len(names) - validation - 1)
    ends = (train, train + validation)
    chosen = np.split(order, ends)
    return {part: sorted(names[i] for i in ids) for part, ids in zip(PARTS, chosen)}


def read_splits(path: Path | str, text: str | bytes, split: str | None) -> Mapping:
    """Finds the lists of class names in the text of a splits file.

    Args:
      path: Source of the text, for messages.
      text: JSON text: either the lists themselves, `{"train": [...], "val": [...], "test":
        [...]}`, or several such objects under names of their own.
      split: Name of one of several splits; None if there is one split only, or if one is
        named "splits".

    Returns:
      The object with the lists.

    Raises:
      ValueError: Not JSON, or no such split.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); expected lists of class names: {EXAMPLE}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__}; expected an object: {EXAMPLE}"
        )
    choices = {name: value for name, value in content.items() if _is_split(value)}
    if split is not None:
        if split in choices:
            return choices[split]
        if not choices and _is_split(content):
            choices = {"(the only one; leave split out)": content}
        raise ValueError(
            f"split={split!r} is not in {path}; expected one of {sorted(choices)}, "
            "'random', or the name of a part for all classes."
        )
    if _is_split(content):
        return content
    if "splits" in choices:
        return choices["splits"]
    if len(choices) == 1:
        return next(iter(choices.values()))
    raise ValueError(
        f"{path} holds {len(choices)} splits {sorted(choices)} and no split was named; "
        f"expected the option split with one of them, or the lists at the top: {EXAMPLE}"
    )


def check_splits(
    splits: Mapping[str, Any], class_names: Sequence[str], where: str
) -> dict[str, list[str]]:
    """Checks lists of class names against the classes that exist.

    Args:
      splits: Class names by part; "val" is short for "validation", other keys are
        ignored.
      class_names: The classes that exist.
      where: Source of the lists, for messages.

    Returns:
      Sorted class names of each part that is listed and not empty.

    Raises:
      ValueError: A class does not exist, or is listed twice.
    """
    parts: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    missing = []
    for key, names in splits.items():
        part = _PART_OF_KEY.get(key)
        if part is None or not names:
            continue
        for name in names:
            if name in seen:
                raise ValueError(
                    f"Class {name!r} is in {seen[name]!r} and again in {part!r} of "
                    f"{where}; expected every class once. Remove one of the two."
                )
            seen[name] = part
            if name not in class_names:
                missing.append(name)
        parts.setdefault(part, []).extend(names)
    if missing:
        raise ValueError(
            f"{where} names {len(missing)} classes that are not among the images: "
            f"{missing[:10]}; the images have {len(class_names)} classes, such as "
            f"{sorted(class_names)[:5]}. Correct the names or remove them."
        )
    if not parts:
        raise ValueError(f"{where} lists no class; expected {EXAMPLE}")
    return {part: sorted(parts[part]) for part in PARTS if part in parts}


def _is_split(value):
    return isinstance(value, dict) and any(
        isinstance(value.get(key), list) for key in _PART_OF_KEY
    )
