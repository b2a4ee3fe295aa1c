"""Classes that several image sets share, whatever each set calls them.

Each set keeps its meta-training, meta-validation and meta-test classes apart, but what one
set tests may be what another trains on: the Greek alphabet of Omniglot and the Greek
letters of the glyphs, or "lion" and "n02129165". A mixture of sets would then be tested on
what it has seen. So classes are compared over the parts of different sets by what they
are:

* by name: the last folder, and the words that a splits.json gives for it, without regard
  to case, underscores, hyphens and leading numbers;
* by character: a class that is one character, or the name of one, is that character, and
  so is a glyph for all characters that look like it;
* by script: letters of one script are alike, because a script is learned as a whole.
  Alphabets of Omniglot have the scripts of `SCRIPT_OF_ALPHABET`.

A number such as n02129165 for which no words are given is compared as it stands. Names
that `from_arrays` made up (class_0, class_1, ...) say nothing and are not compared.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from metalearn.core.optional import require
from metalearn.data.images.image_sets import (
    PARTS,
    ImageClasses,
    ImageDataset,
    only_classes,
)
from metalearn.data.images.omniglot import SCRIPT_OF_ALPHABET, alphabet_of

TREATMENTS = ("refuse", "leave_out", "keep")
# Words for one thing, or for a kind of it, that CIFAR-100 and ImageNet put differently.
# Found by reading both lists of classes.
SAME_THING = {"bell pepper": "sweet pepper", "monarch butterfly": "butterfly"}
_NO_SCRIPT = ("Zyyy", "Zinh", "Zzzz")  # common, inherited, unknown
_SHOWN = 3  # classes in a message
_TOLD = 10  # entries in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Classes of a part of one set that are also in a later part of another set.

    Attributes:
      what: What the classes share, such as "the script Greek" or "the name 'lion'".
      name: Name of the set with the earlier part.
      part: The earlier part.
      classes: Names of the classes there.
      other: Name of the set with the later part.
      other_part: The later part.
      other_classes: Names of the classes there.
    """

    what: str
    name: str
    part: str
    classes: tuple[str, ...]
    other: str
    other_part: str
    other_classes: tuple[str, ...]

    def __str__(self):
        one, other = _listed(self.classes), _listed(self.other_classes)
        return (
            f"{self.what}: {one} in {self.part} of {self.name}, "
            f"{other} in {self.other_part} of {self.other}"
        )


def shared_classes(sets: Mapping[str, ImageDataset]) -> list[Shared]:
    """Classes that would be trained on in one set and validated or tested in another.

    Validation counts as well: classes of validation must not be tested in another set.

    Args:
      sets: Image sets by name.

    Returns:
      One entry for everything that is shared and each pair of parts, without entries that
      larger ones cover; empty if every class is in one part only.

    Raises:
      TypeError: `sets` are not whole data sets by name.

    Example:
      >>> found = ml.data.shared_classes({"cifar": cifar, "tiny": tiny})
      >>> print(found[0])
      the name 'bee': 'bee' in train of cifar, 'n02206856' in validation of tiny
    """
    _check_sets(sets)
    holders: dict[str, dict[tuple[str, str], list[str]]] = {}
    for name, data in sets.items():
        for part, classes in data.parts.items():
            for class_name, marks in zip(classes.class_names, _marks(data, classes)):
                for mark in sorted(marks):
                    places = holders.setdefault(mark, {})
                    places.setdefault((name, part), []).append(class_name)
    found = []
    for what, places in sorted(holders.items()):
        for one, other in _pairs(places):
            found.append(
                Shared(
                    what=what,
                    name=one[0],
                    part=one[1],
                    classes=tuple(places[one]),
                    other=other[0],
                    other_part=other[1],
                    other_classes=tuple(places[other]),
                )
            )
    return _largest(found)


def disjoint(
    sets: Mapping[str, ImageDataset], *, shared: str = "refuse", at_least: int = 1
) -> dict[str, ImageDataset]:
    """Image sets for a mixture, none of which trains on what another one tests.

    Args:
      sets: Image sets by name, with all their parts: what is absent is not compared.
      shared: Action for classes that stand in different parts of different sets: "refuse"
        them; "leave_out" of the earlier part, so that classes of training are in no
        validation or test and classes of validation in no test; or "keep" them, if that
        is meant. If leaving out would take a whole validation part, the classes leave the
        test part of the other set instead.
      at_least: Number of classes that a part needs, such as the ways of its tasks.

    Returns:
      The sets by name. The `info` of a set that has lost classes says which under
      "left_out", and `info["protocol"]` how many.

    Raises:
      ValueError: classes are shared and `shared` is "refuse", or leaving them out would
        leave too few.

    Example:
      >>> sets = ml.data.disjoint(
      ...     {"omniglot": omniglot, "glyphs": glyphs}, shared="leave_out"
      ... )
      >>> parts = [ml.data.few_shot(data.train) for data in sets.values()]
    """
    _check(shared, at_least)
    found = shared_classes(sets)
    if not found:
        return dict(sets)
    if shared == "refuse":
        raise ValueError(
            "what one set of the mixture tests is in the training or validation part of "
            f"another: {_in_lines(found)}. Leave these classes out by "
            "shared_classes='leave_out' (--app.shared-classes leave_out), or say that "
            "they are meant by 'keep'; in ml.data.disjoint the option is shared=."
        )
    if shared == "keep":
        return {
            name: _noted(data, "Kept although shared", _of(found, name), {})
            for name, data in sets.items()
        }
    return _without(sets, found, at_least)


def _check(shared, at_least):
    if shared not in TREATMENTS:
        raise ValueError(
            f"shared={shared!r} was given; expected one of {', '.join(TREATMENTS)}."
        )
    if not isinstance(at_least, int) or at_least < 1:
        raise ValueError(f"at_least is {at_least!r}; expected an integer of 1 or more.")


def _check_sets(sets):
    good = isinstance(sets, Mapping)
    if not good or not all(isinstance(data, ImageDataset) for data in sets.values()):
        kinds = [type(d).__name__ for d in (sets.values() if good else [sets])]
        raise TypeError(
            f"sets are {', '.join(kinds)}; expected whole data sets by name, such as "
            "{'glyphs': ml.data.load('glyphs')}."
        )


def _pairs(places) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Pairs of an earlier and a later part of different sets."""
    for one in places:
        for other in places:
            if one[0] != other[0] and PARTS.index(one[1]) < PARTS.index(other[1]):
                yield one, other


def _largest(found: Sequence[Shared]) -> list[Shared]:
    """Without entries that say less of the same parts, as a letter beside its script."""
    kept: list[Shared] = []
    for one in sorted(found, key=lambda s: -len(s.classes) - len(s.other_classes)):
        covered = any(
            (one.name, one.part, one.other, one.other_part)
            == (more.name, more.part, more.other, more.other_part)
            and set(one.classes) <= set(more.classes)
            and set(one.other_classes) <= set(more.other_classes)
            for more in kept
        )
        if not covered:
            kept.append(one)
    return [one for one in found if one in kept]


def _without(sets, found, at_least):
    """The sets without shared classes."""
    leaving = list(found)
    for name, data in sets.items():
        mine = [s for s in leaving if (s.name, s.part) == (name, "validation")]
        lost = {class_name for one in mine for class_name in one.classes}
        if mine and data.validation.num_classes - len(lost) < at_least:
            # Tests that are a little smaller are better than no validation.
            leaving = [s for s in leaving if s not in mine] + [_turned(s) for s in mine]
    return {name: _reduced(name, data, leaving, at_least) for name, data in sets.items()}


def _reduced(name, data, leaving, at_least):
    """One of the sets without the classes that leave it."""
    parts, lost = {}, {}
    for part, classes in data.parts.items():
        mine = [s for s in leaving if (s.name, s.part) == (name, part)]
        gone = {class_name for one in mine for class_name in one.classes}
        kept = [i for i, c in enumerate(classes.class_names) if c not in gone]
        if gone and len(kept) < at_least:
            raise ValueError(
                f"{part} of {name} has {classes.num_classes} classes and {len(kept)} "
                f"without those that other sets share; expected at least {at_least}. "
                f"What is shared: {_in_lines(mine)}. Leave {name} out of the mixture, or "
                "keep the classes by shared_classes='keep'."
            )
        if gone:
            parts[part] = only_classes(classes, np.asarray(kept))
            lost[part] = [c for c in classes.class_names if c in gone]
    data = dataclasses.replace(data, **parts)
    return _noted(data, "Left out", _of(leaving, name), lost)


def _turned(shared: Shared) -> Shared:
    return Shared(
        what=shared.what,
        name=shared.other,
        part=shared.other_part,
        classes=shared.other_classes,
        other=shared.name,
        other_part=shared.part,
        other_classes=shared.classes,
    )


def _of(found, name):
    return [s for s in found if s.name == name]


def _noted(data, done, found, lost):
    """The set with the statement of what was done; unchanged if nothing was."""
    if not found:
        return data
    numbers = ", ".join(f"{len(names)} of {part}" for part, names in lost.items())
    text = f"{done}{': ' if numbers else ''}{numbers} ({_in_lines(found)})."
    protocol = f"{data.info.get('protocol', '')} {text}".strip()
    info: dict[str, Any] = {**data.info, "protocol": protocol, "shared": text}
    if lost:
        info["left_out"] = lost
    return dataclasses.replace(data, info=info)


def _in_lines(found: Sequence[Shared]) -> str:
    more = [f"{len(found) - _TOLD} more"] if len(found) > _TOLD else []
    return "; ".join([*map(str, found[:_TOLD]), *more])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, ... ({len(names)} classes)"


def _marks(data: ImageDataset, classes: ImageClasses) -> list[set[str]]:
    """What each class of a part is: its names, characters and script."""
    if classes.class_names == tuple(f"class_{i}" for i in range(classes.num_classes)):
        return [set() for _ in classes.class_names]
    words = data.info.get("words") or {}
    merged = data.info.get("merged") or {}
    found = []
    for name in classes.class_names:
        marks = _marks_of_name(name)
        for word in words.get(name, "").split(","):
            marks |= _marks_of_word(word.strip())
        for code in merged.get(name, ()):
            # What looks like the glyph: of another script perhaps, so no more than a name.
            marks |= _named(unicodedata.name(chr(int(code.removeprefix("U+"), 16)), ""))
        found.append(marks)
    return found


def _marks_of_name(name: str) -> set[str]:
    alphabet = alphabet_of(name)
    if alphabet is not None:
        script = SCRIPT_OF_ALPHABET.get(alphabet)
        return {f"the script {script}" if script else f"the alphabet {alphabet}"}
    return _marks_of_word(name.rsplit("/", 1)[-1])


def _marks_of_word(word: str) -> set[str]:
    character = _character(word)
    if character is None:
        return _named(word)
    marks = _named(unicodedata.name(character, word))
    if script := _script(character):
        marks.add(f"the script {script}")
    return marks


def _named(words: str) -> set[str]:
    plain = unicodedata.normalize("NFKC", words).casefold()
    plain = " ".join(re.split(r"[\W_]+", plain)).strip()
    plain = re.sub(r"^\d+ (?=\D)", "", plain)  # "017.Cardinal"
    return {f"the name {SAME_THING.get(plain, plain)!r}"} if plain else set()


def _character(name: str) -> str | None:
    """The character that a name is, names ("greek_small_letter_pi", "U+03C0") or None."""
    if len(name) == 1:
        return name
    if code := re.fullmatch(r"[uU]\+?([0-9a-fA-F]{4,6})", name):
        number = int(code.group(1), 16)
        return chr(number) if number <= 0x10FFFF else None
    try:
        found = unicodedata.lookup(name.replace("_", " "))
    except KeyError:
        return None
    return found if len(found) == 1 else None


def _script(character: str) -> str | None:
    """Script of a letter; None for digits, signs and the like."""
    # A letter in bold or in a circle is that letter.
    letter = unicodedata.normalize("NFKC", character)[0]
    if not unicodedata.category(letter).startswith("L"):
        return None
    known = require("fontTools.unicodedata", "to tell the scripts of characters")
    code = known.script(letter)
    return None if code in _NO_SCRIPT else known.script_name(code)
