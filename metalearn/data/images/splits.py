"""Splitting the classes of a set into meta-train, meta-validation and meta-test.

A split is given by lists of class names, as in the `splits.json` files that come with
published benchmarks, or drawn at random with a seed. A random split is made only on
request, because the split decides the meaning of every result.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.data.images.image_sets import PARTS

# Names of the parts in published data sets; `part_of` also takes "meta-train" and the like.
_PART_NAMES = {
    **{name: "train" for name in ("train", "training", "base")},
    **{name: "validation" for name in ("validation", "valid", "val", "dev")},
    **{name: "test" for name in ("test", "testing", "eval", "evaluation", "novel")},
}
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
    content = parsed(path, text)
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
    if not choices and any(map(part_of, content)):
        return content  # of a wrong type, which `check_splits` names
    if not choices:
        _refuse_misspelt(content, str(path))
    raise ValueError(
        f"{path} holds {len(choices)} splits {sorted(choices)} and no split was named; "
        f"expected the option split with one of them, or the lists at the top: {EXAMPLE}"
    )


def read_words(content: Mapping[str, Any]) -> dict[str, str]:
    """What classes are called, where their folders have numbers such as "n02129165".

    Args:
      content: Contents of a splits file. Its key "names", if there is one, gives words for
        names of classes: `{"names": {"n02129165": "lion, king of beasts"}}`.

    Returns:
      Words by name of the class; empty if there are none.
    """
    names = content.get("names") if isinstance(content, Mapping) else None
    if not isinstance(names, Mapping):
        return {}
    return {
        normal(name): words
        for name, words in names.items()
        if isinstance(name, str) and isinstance(words, str)
    }


def part_of(name: Any) -> str | None:
    """The part that a name means, as "validation" by "meta-val"; None if there is none."""
    if not isinstance(name, str):
        return None
    word = re.sub(r"[-_ ]", "", name.strip().lower()).removeprefix("meta")
    return _PART_NAMES.get(word)


def check_splits(
    splits: Mapping[str, Any],
    class_names: Sequence[str],
    where: str,
    absent: Mapping[str, str] | None = None,
    *,
    things: str = "images",
) -> dict[str, list[str]]:
    """Checks lists of class names against the classes that exist.

    Names that differ only by their Unicode normal form are equal, because file systems
    store "é" in different forms.

    Args:
      splits: Class names by part; other names of the parts, as "val" or "meta-train", are
        understood, and other keys are ignored.
      class_names: The classes that exist.
      where: Source of the lists, for messages.
      absent: Folders that give no class, and why.
      things: What the set is of, for messages.

    Returns:
      Sorted class names of each part that is listed and not empty, as in `class_names`.

    Raises:
      TypeError: The lists are no lists of text.
      ValueError: A class does not exist or is listed twice, or a part is misspelt or given
        under two names.
    """
    if not isinstance(splits, Mapping):
        raise TypeError(
            f"{where} is a {type(splits).__name__}; expected class names by part: {EXAMPLE}"
        )
    _refuse_misspelt(splits, where)
    known = {normal(name): name for name in class_names}
    parts: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    seen: dict[str, str] = {}
    missing = []
    for key, value in splits.items():
        part = part_of(key)
        names = None if part is None else _names(value, key, where)
        if not names:
            continue
        if part in keys:
            raise ValueError(
                f"{where} has {keys[part]!r} and {key!r}, which both mean the "
                f"{part} classes; expected one of the two. Join the lists."
            )
        keys[part] = key
        for name in map(normal, names):
            if name in seen:
                raise ValueError(
                    f"Class {name!r} is in {seen[name]!r} and again in {part!r} of "
                    f"{where}; expected every class once. Remove one of the two."
                )
            seen[name] = part
            if name not in known:
                missing.append(name)
        parts[part] = [known.get(normal(name), name) for name in names]
    if missing:
        why = [f"{name!r} {absent[name]}" for name in missing if name in (absent or {})]
        raise ValueError(
            f"{where} names {len(missing)} classes that are not among the {things}: "
            f"{missing[:10]}; the {things} have {len(class_names)} classes, such as "
            f"{sorted(class_names)[:5]}. {'; '.join([*why[:5], ''])}"
            "Correct the names or remove them."
        )
    if not parts:
        raise ValueError(f"{where} lists no class; expected {EXAMPLE}")
    return {part: sorted(parts[part]) for part in PARTS if part in parts}


def normal(name: str) -> str:
    """The name with one form of each accented letter (NFC)."""
    return unicodedata.normalize("NFC", name)


def parsed(path: Path | str, text: str | bytes, wanted: str = "") -> Any:
    """Contents of a JSON file.

    Args:
      path: Source of the text, for messages.
      text: JSON text.
      wanted: What the file should hold, for messages; lists of class names if empty.

    Raises:
      ValueError: Not JSON, or an object has a key twice.
    """
    # Bytes, because only there a byte-order mark tells the encoding.
    data = text if isinstance(text, bytes) else text.encode()
    try:
        return json.loads(data, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        wanted = wanted or f"lists of class names: {EXAMPLE}"
        raise ValueError(
            f"{path} is not valid JSON ({error}); expected UTF-8 text with {wanted}"
        ) from error


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs, for `json.loads(..., object_pairs_hook=each_once)`.

    Raises:
      ValueError: a key stands twice, of which JSON by itself would keep the last.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = sorted(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
        raise ValueError(f"the keys {twice[:5]} stand more than once in one object")
    return found


def _names(value: Any, key: str, where: str) -> list[str]:
    """The class names of one part."""
    listed = isinstance(value, (Sequence, Set, np.ndarray)) and not isinstance(
        value, (str, bytes)
    )
    names = list(value) if listed else []
    if not listed and value is not None:
        raise TypeError(
            f"{key!r} of {where} is a {type(value).__name__} ({str(value)[:40]!r}); "
            f"expected a list of class names: {EXAMPLE}"
        )
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"{key!r} of {where} lists {str(name)[:40]!r}, a {type(name).__name__}; "
                f"expected names of classes as text: {EXAMPLE}"
            )
    return names


def _refuse_misspelt(splits: Mapping[Any, Any], where: str) -> None:
    """Raises for a list under a key that nearly is the name of a part."""
    for key, value in splits.items():
        listed = isinstance(value, (list, tuple, Set, np.ndarray))
        if not isinstance(key, str) or part_of(key) or not listed:
            continue
        word = key.strip().lower()
        # Swapped letters count as one slip, which a ratio alone would not find.
        near = [name for name in _PART_NAMES if sorted(name) == sorted(word)]
        near += difflib.get_close_matches(word, _PART_NAMES, n=1, cutoff=0.8)
        if near:
            raise ValueError(
                f"{where} has the key {key!r}, which is no part; expected train, "
                f"validation and test. Did you mean {near[0]!r}? Rename the key."
            )


def _is_split(value):
    return isinstance(value, dict) and any(
        part_of(key) and isinstance(names, list) for key, names in value.items()
    )
