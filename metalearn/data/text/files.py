"""Files of labelled texts: CSV, JSON lines, and the JSON of FewRel.

Whatever is wrong in a file is a `ValueError` that names the file and the line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from metalearn.core.cost import in_bytes
from metalearn.data.images.splits import each_once, parsed

MOST_BYTES = 256 * 2**20
# Words of letters and underscores, so that features take each mark for one word.
MARKS = {"h": ("_head_", "_endhead_"), "t": ("_tail_", "_endtail_")}


class Row(NamedTuple):
    """A labelled text, and the place that it comes from."""

    where: str
    text: str
    label: str


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: the file is too large, or is not UTF-8.
    """
    if not path.is_file():
        there = "no file" if path.exists() else "missing"
        raise FileNotFoundError(f"{path} is {there}; expected a file of texts.")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise ValueError(
            f"{path} takes {in_bytes(size)}; expected at most {in_bytes(MOST_BYTES)} of "
            "texts. Split it."
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}. Convert it.") from error


def csv_rows(path: Path, text: str = "text", label: str = "category") -> Iterator[Row]:
    """Rows of a CSV file whose first line names the columns.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: a column is missing or named twice, or a row has other columns; names the
        line.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = next(lines, [])
        if text not in names or label not in names:
            raise ValueError(
                f"{path} has the columns {names[:6]}; expected {text!r} and {label!r} in "
                "its first line."
            )
        if twice := [name for name in (text, label) if names.count(name) > 1]:
            raise ValueError(
                f"{path} has several columns of the name {twice[0]!r}; expected one. "
                "Rename or remove the others."
            )
        for cells in lines:
            if not cells:  # a blank line
                continue
            where = f"line {lines.line_num} of {path}"
            if len(cells) != len(names):
                raise ValueError(
                    f"{where} has {len(cells)} columns; expected {len(names)}. Put a text "
                    "with commas in quotation marks."
                )
            row = dict(zip(names, cells, strict=True))
            yield _row(where, row[text], row[label])
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num} of {path} is no CSV: {error}.") from error


def json_lines(path: Path, text: str, label: str) -> Iterator[Row]:
    """Rows of a file with a JSON object in each line.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: a line is no such object, or has a key twice; names the line.
    """
    # Not by `splitlines`, which would break texts at rare separators.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            content = json.loads(line, object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not valid JSON: {error}.") from error
        if not isinstance(content, dict) or not {text, label} <= content.keys():
            raise ValueError(
                f"{where} is {line[:60]!r}; expected an object with {text!r} and {label!r}."
            )
        yield _row(where, content[text], content[label])


def fewrel_rows(path: Path) -> Iterator[Row]:
    """Sentences of a file of FewRel, with marks around the two entities.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: the file is no such JSON; names the relation and the sentence.
    """
    content = parsed(path, read_text(path), "an object of sentences by relation.")
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{path} is no object of relations; expected sentences by relation."
        )
    for relation, sentences in content.items():
        if not isinstance(sentences, list):
            raise ValueError(f"relation {relation!r} of {path} is no list of sentences.")
        for number, sentence in enumerate(sentences):
            where = f"sentence {number} of relation {relation!r} of {path}"
            try:
                text = marked(sentence["tokens"], {k: sentence[k][2] for k in MARKS})
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(
                    f"{where} cannot be used ({type(error).__name__}: {error}); expected "
                    "tokens, and h and t as [name, id, places of its tokens]."
                ) from error
            yield _row(where, text, relation)


def marked(tokens: list[str], places: dict[str, list[list[int]]]) -> str:
    """A sentence with marks before and behind every mention of an entity.

    Args:
      tokens: Words of the sentence.
      places: Numbers of the tokens of each mention, for the entities "h" and "t".

    Raises:
      IndexError: a mention is empty or outside the sentence.
      TypeError: something else than a list of words, and numbers.

    Example:
      >>> marked(["Bridge", "crosses", "Wye"], {"h": [[0]], "t": [[2]]})
      '_head_ Bridge _endhead_ crosses _tail_ Wye _endtail_'
    """
    if not isinstance(tokens, list):  # a text is a sequence of letters
        raise TypeError(f"the tokens are a {type(tokens).__name__} and no list")
    before: list[list[str]] = [[] for _ in tokens]
    behind: list[list[str]] = [[] for _ in tokens]
    for entity, (begin, end) in MARKS.items():
        if not places[entity]:
            raise IndexError(f"no place of {entity!r}")
        for mention in places[entity]:
            if min(mention, default=-1) < 0:
                raise IndexError(f"a mention of {entity!r} is at {mention}")
            before[min(mention)].append(begin)
            behind[max(mention)].insert(0, end)
    words = zip(before, tokens, behind, strict=True)
    return " ".join(part for b, token, e in words for part in (*b, token, *e))


def _row(where: str, text: Any, label: Any) -> Row:
    """A row of text; classes may be numbers."""
    number = isinstance(label, int) and not isinstance(label, bool)
    if not isinstance(text, str) or not (number or isinstance(label, str)):
        raise ValueError(
            f"{where} has a {type(text).__name__} of class {label!r}; expected a text, and "
            "its class as text or an integer."
        )
    label = str(label).strip()
    if not label:
        raise ValueError(f"{where} has no class; expected the name of one.")
    try:
        text.encode(), label.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is not text in Unicode: {error}.") from error
    return Row(where, text, label)
