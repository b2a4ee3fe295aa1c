"""Labelled images, intents and arrays of the user, with a part for a quiz.

| name | files |
|---|---|
| mnist | t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz (10,000 digits) |
| banking77 | train.csv, test.csv (77 intents), as hashed vectors |
| hwu64 | full.jsonl (64 intents), as hashed vectors |
| own | examples.npz |
| own-texts | full.jsonl, {"sentence": ..., "label": ...} in each line, as hashed vectors |

`examples.npz` has the arrays `inputs` `[I, ...]` and `labels` `[I]`, whole numbers or text.
Vectors `[I, D]` and images `[I, H, W]` or `[I, H, W, C]` are inputs. Optional are
`class_names` for whole numbers, and `parts` `[I]`, which says of each row whether it is of
train, quiz, validation or test; without it the rows are divided by shares. Weights of
hashed vectors are fitted to the texts of training.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.data import arguments
from metalearn.data.distillation.parts import (
    PARTS,
    QuizSet,
    check_part,
    check_set,
    divided,
)
from metalearn.data.images.digits import IMAGES, LABELS, read_digits
from metalearn.data.lookup import check_name, place_of
from metalearn.data.noisy import Labelled
from metalearn.data.npz import read_arrays
from metalearn.data.text.hashing import hashed_texts
from metalearn.data.text.sets import labelled_texts

SETS = {
    "mnist": (IMAGES, LABELS),
    "banking77": ("train.csv", "test.csv"),
    "hwu64": ("full.jsonl",),
    "own": ("examples.npz",),
    "own-texts": ("full.jsonl",),
}


def load_quiz_set(
    name: str,
    data_dir: str | Path | None,
    *,
    quiz: float = 0.1,
    validation: float = 0.1,
    test: float = 0.3,
    seed: int = 1,
    dim: int = 1024,
) -> QuizSet:
    """A set in its four parts.

    Args:
      name: Name of a set, see `SETS`.
      data_dir: Folder of the files, or the folder that has them in a folder of that name.
      quiz: Share of each class for the quiz.
      validation: Share of each class for validation.
      test: Share of each class for the test.
      seed: Seed of the division.
      dim: Length of the vectors of texts.

    Raises:
      FileNotFoundError: a file is missing.
      TypeError, ValueError: the contents do not fit; the message names the row, or the
        line. See `check_set`.
    """
    check_name("set", name, SETS)
    for what, share in (("quiz", quiz), ("validation", validation), ("test", test)):
        arguments.share(f"the share of the {what} part", share)
    shares = {"quiz": quiz, "validation": validation, "test": test}

    def rows_of(labels: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        return divided(labels, names, **shares, seed=seed, name=name)

    if name in ("mnist", "own"):
        what = f"the set {name!r}"
        folder = place_of(what, data_dir, SETS[name], within=(name,))
        if name == "mnist":
            inputs, labels = read_digits(folder)
            inputs, names, rows = inputs[..., None], tuple("0123456789"), None
        else:
            path = folder / SETS[name][0]
            inputs, labels, names, rows = _arrays(path)
            # Before the rows are divided, so that a message names those of the file.
            whole = Labelled(images=inputs, labels=labels)
            check_part(str(path), whole, inputs.shape[1:], len(names))
        rows = rows_of(labels, names) if rows is None else rows
        parts = {part: _rows(inputs, labels, rows[part]) for part in PARTS}
        return check_set(QuizSet(name=name, class_names=names, parts=parts))
    found = labelled_texts("own" if name == "own-texts" else name, data_dir)
    rows = rows_of(found.labels, found.class_names)
    texts = {part: [found.texts[i] for i in rows[part]] for part in PARTS}
    vectors = hashed_texts(texts["train"], dim=dim)
    fitted = hashlib.sha256(np.ascontiguousarray(vectors.weights).tobytes()).hexdigest()
    inputs = {**vectors.about, "weights": fitted[:16]}
    parts = {
        part: Labelled(images=vectors(texts[part]), labels=found.labels[rows[part]])
        for part in PARTS
    }
    return check_set(
        QuizSet(name=name, class_names=found.class_names, parts=parts, inputs=inputs)
    )


def _rows(inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Labelled:
    return Labelled(images=inputs[rows], labels=labels[rows])


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], Any]:
    """Inputs, labels, names of classes, and rows of parts or None."""
    wanted, optional = ("inputs", "labels"), ("class_names", "parts")
    try:
        arrays, unknown = read_arrays(path, (*wanted, *optional))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    missing = [name for name in wanted if name not in arrays]
    if missing or unknown:
        told = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(unknown)}"
        raise ValueError(
            f"{path} {told}; expected {' and '.join(wanted)}, and maybe "
            f"{' and '.join(optional)}."
        )
    inputs, labels = arrays["inputs"], arrays["labels"]
    if inputs.ndim == 3:
        inputs = inputs[..., None]
    if inputs.dtype.kind == "f" or (inputs.dtype.kind in "iub" and inputs.ndim == 2):
        inputs = inputs.astype(np.float32)
    if labels.ndim != 1 or len(labels) != len(inputs) or labels.dtype.kind not in "iuU":
        raise ValueError(
            f"{path} has inputs {list(inputs.shape)} and labels {labels.dtype}"
            f"{list(labels.shape)}; expected a row of inputs for each label, which are "
            "whole numbers or text, [I]."
        )
    names, labels = _classes(labels, arrays.get("class_names"), path)
    rows = _given_parts(arrays["parts"], len(labels), path) if "parts" in arrays else None
    return inputs, labels, names, rows


def _classes(
    labels: np.ndarray, given: np.ndarray | None, path: Path
) -> tuple[tuple[str, ...], np.ndarray]:
    if labels.dtype.kind == "U":
        if given is not None:
            raise ValueError(
                f"{path} has class_names and labels of text; expected class_names for "
                "whole numbers alone. Leave class_names out."
            )
        names, labels = np.unique(labels, return_inverse=True)
        return tuple(names.tolist()), labels.astype(np.int32)
    if given is None:
        top = int(labels.max()) if labels.size else 0
        if top > 10**6 or (labels.size and labels.min() < 0):
            row = int(labels.argmin() if labels.min() < 0 else labels.argmax())
            raise ValueError(
                f"{path} has the label {labels[row]} in row {row}, counted from 0; "
                "expected classes from 0, or labels of text."
            )
        return tuple(map(str, range(top + 1))), labels.astype(np.int32)
    names = tuple(map(str, given.reshape(-1).tolist()))
    if given.dtype.kind != "U" or given.ndim != 1 or len(set(names)) < len(names):
        raise ValueError(
            f"{path} has class_names of {given.dtype}{list(given.shape)}; expected text, "
            "[C], each name once."
        )
    # Clipped and not wrapped: what is out of range has to stay so.
    return names, np.clip(labels, -1, 2**31 - 1).astype(np.int32)


def _given_parts(parts: np.ndarray, num: int, path: Path) -> dict[str, np.ndarray]:
    if parts.shape != (num,) or parts.dtype.kind != "U":
        raise ValueError(
            f"{path} has parts of {parts.dtype}{list(parts.shape)}; expected text, [{num}]."
        )
    for row, part in enumerate(parts.tolist()):
        if part not in PARTS:
            raise ValueError(
                f"{path} has the part {part!r} in row {row}, counted from 0; expected one "
                f"of {', '.join(PARTS)}."
            )
    return {part: np.flatnonzero(parts == part) for part in PARTS}
