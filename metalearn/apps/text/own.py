"""Texts of the user for a trained run: labelled examples, and texts to classify.

Their vectors are those of the run: fitted to the texts that it was trained on, which are
read again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metalearn.apps.base import DataRecord
from metalearn.apps.text.few_shot import FewShotText
from metalearn.data.text import files
from metalearn.data.text.files import Row
from metalearn.data.text.plain import check_texts
from metalearn.data.text.sets import check_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnTexts:
    """Support set and queries.

    Attributes:
      class_names: Name of each class, sorted.
      labels: Class of each example, int32 `[N]`.
      support: Vectors of the examples, float32 `[N, D]`.
      texts: The texts to classify.
      queries: Their vectors, float32 `[Q, D]`.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    support: np.ndarray
    texts: tuple[str, ...]
    queries: np.ndarray


def read_own(
    app: FewShotText,
    record: DataRecord,
    *,
    support: str | Path,
    texts: Sequence[str],
    data_dir: str | None,
) -> OwnTexts:
    """Reads examples and texts, and makes the vectors of a run of them.

    Args:
      app: Application of the run.
      record: Description of the training data of the run.
      support: File of examples: `.csv` with the columns text and category, or `.jsonl` with
        an object of "sentence" and "label" in each line.
      texts: Texts to classify.
      data_dir: Folder of the texts of training.

    Raises:
      FileNotFoundError: a file is missing.
      TypeError: `texts` is no list of texts.
      ValueError: texts are empty or too long, there is one class only, or the texts of
        training are others than those of the run.
    """
    if not (rows := read_examples(support)):
        raise ValueError(f"{support} holds no example; expected some of two classes.")
    asked = [Row(f"text {n}", text, "") for n, text in enumerate(check_texts(texts))]
    check_rows(rows, app.max_characters)
    check_rows(asked, app.max_characters)
    names = tuple(sorted({row.label for row in rows}))
    if len(names) < 2:
        raise ValueError(
            f"{support} has one class, {names[0]!r}; expected examples of two or more."
        )
    data = app.load(data_dir, ())
    train = data.texts.parts["train"]
    found = {"texts": train.digest[:16], "vectors": data.features.about}
    told = {"texts": record["parts"]["train"]["sha256"], "vectors": record["features"]}
    for what, value in found.items():
        if value != told[what]:
            raise ValueError(
                f"the {what} of {app.dataset} in {data_dir} have the digest {value}, those "
                f"of the run {told[what]}: its network would read other numbers. Give "
                "--data-dir with the files that the run was trained on."
            )
    return OwnTexts(
        class_names=names,
        labels=np.array([names.index(row.label) for row in rows], np.int32),
        support=data.features([row.text for row in rows]),
        texts=tuple(row.text for row in asked),
        queries=data.features([row.text for row in asked]),
    )


def read_examples(path: str | Path) -> list[Row]:
    """Rows of a file of labelled texts; see `read_own`.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is of another kind, or a line cannot be used.
    """
    path = Path(path)
    if path.suffix == ".csv":
        return list(files.csv_rows(path))
    if path.suffix == ".jsonl":
        return list(files.json_lines(path, "sentence", "label"))
    raise ValueError(
        f"the support is {path}; expected a file of texts, NAME.csv with the columns text "
        'and category, or NAME.jsonl with {"sentence": ..., "label": ...} in each line.'
    )


def read_lines(path: str | Path) -> list[str]:
    """The lines of a file that are not empty, each a text.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is no text in UTF-8, or holds none.
    """
    # Not by `splitlines`, which would break texts at rare separators.
    lines = re.split("\r\n|\r|\n", files.read_text(Path(path)))
    if found := [line for line in lines if line.strip()]:
        return found
    raise ValueError(f"{path} holds no text; expected one in each line.")
