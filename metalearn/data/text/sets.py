"""Sets of labelled short texts, split by class into meta-train, validation and test.

| name | texts | folds |
|---|---|---|
| banking77 | 77 intents of customers of a bank | "01" to "05": 25/25/27 classes |
| hwu64 | 64 intents of users of a home assistant | "01" to "05" |
| liu54 | 54 such intents | "01" to "05": 18/18/18 |
| huffpost41 | headlines of 41 sections | "bao": 0-19, 20-24, 25-40 |
| fewrel | relations of two marked entities | "nyt", "pubmed", "wiki" |
| own | texts of the user, in the layout of hwu64 | those of few_shot_folds.json |

The folds of the intents are those of ProtAugment (T. Dopierre et al., ACL 2021), that of
HuffPost is of Y. Bao et al., ICLR 2020. Of FewRel only the validation files are read here.
The 16 relations of Wikipedia, in the order of their numbers, are split: every third is for
validation (5), the others are for training (11). "nyt" tests on the relations of the New
York Times that Wikipedia has not (17 of 25), "pubmed" on medical ones (10). "wiki" tests on
the first five of the training relations and trains on the other six.

HWU64 and Liu54 share 46% of their sentences: do not train on one and test on the other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.core import given
from metalearn.data.images.splits import check_splits, parsed
from metalearn.data.lookup import check_name, place_of
from metalearn.data.text import files as text_files
from metalearn.data.text.files import Row
from metalearn.data.text.plain import folded, is_empty

PARTS = ("train", "validation", "test")
FOLDS = "few_shot_folds.json"
_EXAMPLE = '{"01": {"train": ["a"], "valid": ["b"], "test": ["c"]}}'
# Name: one line, and the first file that is looked for.
SETS: dict[str, tuple[str, str]] = {
    "banking77": ("77 intents of customers of a bank, 13,083 questions", "train.csv"),
    "hwu64": ("64 intents of users of a home assistant, 11,036 sentences", "full.jsonl"),
    "liu54": ("54 intents of users of a home assistant, 25,478 sentences", "full.jsonl"),
    "huffpost41": ("41 sections of a newspaper, 36,900 headlines", "huffpost.jsonl"),
    "fewrel": ("relations of two entities: Wikipedia, news, medicine", "val_wiki.json"),
    "own": ("texts of your own: full.jsonl and few_shot_folds.json", "full.jsonl"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextClasses:
    """One part of a set, sorted by class.

    Attributes:
      texts: The I texts.
      labels: Class of each text, int32 `[I]`, non-decreasing.
      class_names: Name of each class.
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def digest(self) -> str:
        """SHA-256 of texts, labels and names."""
        content = [self.texts, self.labels.tolist(), self.class_names]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSet:
    """A set of texts by one fold of its classes.

    Attributes:
      name: Name of the set.
      fold: Name of the fold.
      parts: The classes of "train", "validation" and "test".
      info: Numbers of what was found: `repeated` texts of one class, which are left out
        unless that is asked, `in_two_classes` and `in_two_parts`, which stay, and classes
        that are `unused` in this fold.
    """

    name: str
    fold: str
    parts: dict[str, TextClasses]
    info: dict[str, Any]


def load_texts(
    name: str,
    data_dir: str | Path | None,
    *,
    fold: str | None = None,
    max_characters: int = 2000,
    drop_repeated: bool = True,
) -> TextSet:
    """Reads a set of texts and splits its classes.

    Args:
      name: A name of `SETS`.
      data_dir: Folder of the files, or the folder that has them in a folder of that name.
      fold: Fold of the classes; the first if None.
      max_characters: Longest text that is accepted.
      drop_repeated: Whether a text that a class has twice, but for case and spaces, is left
        out the second time. A task would else ask for what its support set shows.

    Returns:
      The set with its three parts.

    Raises:
      FileNotFoundError: a file is missing.
      TypeError: `drop_repeated` is no bool.
      ValueError: the name or the fold is unknown; a file is damaged; texts are empty or
        too long, named with their line; classes of the fold do not exist, or are in two
        parts.
    """
    given.flag("drop_repeated", drop_repeated)
    check_name("texts", name, SETS)
    if type(max_characters) is not int or max_characters < 1:
        raise ValueError(
            f"max_characters is {max_characters!r}; expected an integer of 1 or more."
        )
    folder = _place(name, data_dir)
    fold, rows, splits, where = _sources(name, folder, fold)
    rows = list(rows)
    check_rows(rows, max_characters)
    # Folded once: of all that is done here it takes the longest.
    keys = [folded(row.text) for row in rows]
    rows, keys, repeated = _unrepeated(rows, keys, drop_repeated)
    counts = Counter(row.label for row in rows)
    splits = check_splits(splits, sorted(counts), where, things="texts")
    if lacking := [part for part in PARTS if part not in splits]:
        raise ValueError(
            f"{where} has no classes for {' and '.join(lacking)}; expected lists of "
            f"classes for {', '.join(PARTS)}."
        )
    names = _names(folder, rows) if name == "fewrel" else {}
    parts = {part: _part(rows, splits[part], names) for part in PARTS}
    used = {label for labels in splits.values() for label in labels}
    info = {
        "repeated": repeated,
        "in_two_classes": _in_two(rows, keys, {label: label for label in counts}),
        "in_two_parts": _in_two(
            rows, keys, {label: part for part, ls in splits.items() for label in ls}
        ),
        "unused": sorted(counts.keys() - used),
    }
    return TextSet(name=name, fold=fold, parts=parts, info=info)


def labelled_texts(
    name: str, data_dir: str | Path | None, *, max_characters: int = 2000
) -> TextClasses:
    """All texts of a set of intents, whatever its folds, without those a class has twice.

    Args:
      name: Name of a set whose folds are in a file: "banking77", "hwu64", "liu54", "own".
      data_dir: Folder of the files, or the folder that has them in a folder of that name.
      max_characters: Longest text that is accepted.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the name is another, a file is damaged, or a text is empty or too long,
        named with its line.
    """
    known = ("banking77", "hwu64", "liu54", "own")
    check_name("texts", name, known)
    rows = list(_intents(name, _place(name, data_dir)))
    check_rows(rows, max_characters)
    rows, _, _ = _unrepeated(rows, [folded(row.text) for row in rows], True)
    return _part(rows, sorted({row.label for row in rows}), {})


def _place(name: str, data_dir: str | Path | None) -> Path:
    return place_of(f"the texts {name!r}", data_dir, (SETS[name][1],), within=(name,))


def _sources(
    name: str, folder: Path, fold: str | None
) -> tuple[str, Iterable[Row], Mapping[str, Any], str]:
    """Name of the fold, rows, lists of classes, and where the lists come from."""
    if name == "huffpost41":
        lists = {"train": range(20), "validation": range(20, 25), "test": range(25, 41)}
        folds = {"bao": {part: [f"{i}" for i in ids] for part, ids in lists.items()}}
        fold = _chosen(folds, fold, name)
        rows = text_files.json_lines(folder / "huffpost.jsonl", "raw", "label")
        return fold, rows, folds[fold], "the fold of huffpost41"
    if name == "fewrel":
        fold = _chosen(("nyt", "pubmed", "wiki"), fold, name)
        rows, splits = _fewrel(folder, fold)
        return fold, rows, splits, f"the fold {fold!r} of fewrel"
    path = folder / FOLDS
    folds = parsed(path, text_files.read_text(path), f"an object of folds: {_EXAMPLE}")
    if not isinstance(folds, dict) or not folds:
        raise ValueError(
            f"{path} holds a {type(folds).__name__}; expected an object of folds: "
            f"{_EXAMPLE}"
        )
    fold = _chosen(folds, fold, str(path))
    return fold, _intents(name, folder), folds[fold], f"fold {fold!r} of {path}"


def _intents(name: str, folder: Path) -> Iterable[Row]:
    """Rows of the sets that have folds in a file."""
    if name == "banking77":
        files = [folder / "train.csv", folder / "test.csv"]
        return [row for path in files for row in text_files.csv_rows(path)]
    return text_files.json_lines(folder / "full.jsonl", "sentence", "label")


def _chosen(folds: Iterable[str], fold: str | None, where: str) -> str:
    folds = list(folds)
    if fold is None:
        return folds[0]
    if fold not in folds:
        raise ValueError(
            f"fold is {fold!r}, which {where} has not; expected one of {', '.join(folds)}."
        )
    return fold


def _fewrel(folder: Path, fold: str) -> tuple[list[Row], dict[str, list[str]]]:
    """Rows and classes of FewRel; see the docstring of the file."""
    wiki = list(text_files.fewrel_rows(folder / "val_wiki.json"))
    # By number, for "P40" stands before "P177".
    known = sorted({row.label for row in wiki}, key=lambda label: (len(label), label))
    validation = known[1::3]
    train = [label for label in known if label not in validation]
    if fold == "wiki":
        train, test = train[5:], train[:5]
        return wiki, {"train": train, "validation": validation, "test": test}
    # A relation that both have would be tested after it was trained on.
    other = [
        row
        for row in text_files.fewrel_rows(folder / f"val_{fold}.json")
        if row.label not in known
    ]
    test = sorted({row.label for row in other})
    return wiki + other, {"train": train, "validation": validation, "test": test}


def _names(folder: Path, rows: list[Row]) -> dict[str, str]:
    """Names of relations by their numbers, where the file of names is there."""
    path = folder / "pid2name.json"
    if not path.is_file():
        return {}
    words = parsed(path, text_files.read_text(path), "names of relations by number.")
    found = {}
    for label in {row.label for row in rows}:
        told = words.get(label) if isinstance(words, dict) else None
        if isinstance(told, list) and told and isinstance(told[0], str):
            found[label] = f"{told[0]} ({label})"
    return found


def check_rows(rows: list[Row], max_characters: int) -> None:
    """Refuses empty and long texts; names the first of them."""
    empty = [row for row in rows if is_empty(row.text)]
    if empty:
        raise ValueError(
            f"{len(empty)} texts are empty, the first at {empty[0].where}; expected a "
            "visible character in each. Remove those lines."
        )
    long = [row for row in rows if len(row.text) > max_characters]
    if long:
        raise ValueError(
            f"{len(long)} texts are longer than max_characters={max_characters}, the first "
            f"at {long[0].where} with {len(long[0].text):,} characters. Shorten them, or "
            "raise max_characters."
        )
    if not rows:
        raise ValueError("the files hold no text; expected one or more of each class.")


def _unrepeated(
    rows: list[Row], keys: list[str], drop: bool
) -> tuple[list[Row], list[str], int]:
    """Rows and keys without those that their class has already, and the number of those."""
    first: dict[tuple[str, str], Row] = {}
    for row, key in zip(rows, keys, strict=True):
        first.setdefault((row.label, key), row)
    repeated = len(rows) - len(first)
    if not drop:
        return rows, keys, repeated
    return list(first.values()), [key for _, key in first], repeated


def _in_two(rows: list[Row], keys: list[str], group: Mapping[str, str]) -> int:
    """Number of texts that are in more than one group of classes."""
    groups: dict[str, set[str]] = {}
    for row, key in zip(rows, keys, strict=True):
        if row.label in group:
            groups.setdefault(key, set()).add(group[row.label])
    return sum(len(found) > 1 for found in groups.values())


def _part(rows: list[Row], labels: list[str], names: Mapping[str, str]) -> TextClasses:
    numbers = {label: number for number, label in enumerate(labels)}
    chosen = [row for row in rows if row.label in numbers]
    # Stable, so that equal files give equal tasks.
    chosen.sort(key=lambda row: numbers[row.label])
    return TextClasses(
        texts=tuple(row.text for row in chosen),
        labels=np.asarray([numbers[row.label] for row in chosen], np.int32),
        class_names=tuple(names.get(label, label) for label in labels),
    )
