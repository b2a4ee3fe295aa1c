"""A set in four parts: training, the quiz, validation and test."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalearn.core import pixels
from metalearn.data import arguments
from metalearn.data.noisy import Labelled, check_labels

PARTS = ("train", "quiz", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuizSet:
    """Labelled examples, some of which are kept from training for a quiz.

    Attributes:
      name: Name of the set.
      class_names: Name of each class.
      parts: Examples of each part of `PARTS`; their `images` are inputs `[I, ...]` of any
        shape.
      inputs: Way in which the inputs were made, as JSON values.
    """

    name: str
    class_names: tuple[str, ...]
    parts: Mapping[str, Labelled]
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def digest(self, part: str) -> str:
        """Digest of inputs and labels of a part."""
        found = self.parts[part]
        made = hashlib.sha256(np.ascontiguousarray(found.images).tobytes())
        made.update(np.ascontiguousarray(found.labels).tobytes())
        return made.hexdigest()[:16]


def divided(
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    quiz: float,
    validation: float,
    test: float,
    seed: int,
    name: str,
) -> dict[str, np.ndarray]:
    """Rows of each part, drawn class by class; training is the rest.

    A share of a class is rounded, and is one example at least.

    Args:
      labels: Classes, int `[I]` of `0..C-1`.
      class_names: Name of each class.
      quiz: Share of each class for the quiz, above 0.
      validation: Share of each class for validation, above 0.
      test: Share of each class for the test, above 0.
      seed: Seed of the draw.
      name: Name of the set, for messages.

    Raises:
      ValueError: a class has too few examples, or a label is of no class; the message
        names the class, or the row.

    Example:
      >>> rows = divided(np.zeros(10, int), ["a"], quiz=0.2, validation=0.1, test=0.3,
      ...                seed=0, name="mine")
      >>> {part: len(found) for part, found in rows.items()}
      {'train': 4, 'quiz': 2, 'validation': 1, 'test': 3}
    """
    class_names = arguments.names("class_names", class_names)
    check_labels(labels, len(class_names), name)
    for what, share in (("quiz", quiz), ("validation", validation), ("test", test)):
        arguments.share(f"the share of the {what} part", share)
    arguments.seed(seed)
    rng = np.random.default_rng([seed, 3])
    rows: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for number, name_of in enumerate(class_names):
        mine = rng.permutation(np.flatnonzero(labels == number))
        shares = (quiz, validation, test)
        sizes = [max(round(share * len(mine)), 1) for share in shares]
        if sum(sizes) >= len(mine):
            raise ValueError(
                f"the class {name_of!r} of {name} has {len(mine)} examples, of which "
                f"{sizes[0]} are for the quiz, {sizes[1]} for validation and {sizes[2]} "
                "for the test; expected some to be left for training. Lower "
                "--app.quiz-share, --app.validation-share or --app.test-share, or leave "
                "the class out."
            )
        kept = np.split(mine, np.cumsum(sizes))
        for part, some in zip(("quiz", "validation", "test", "train"), kept):
            rows[part].append(some)
    return {part: np.sort(np.concatenate(found)) for part, found in rows.items()}


def check_set(data: QuizSet) -> QuizSet:
    """Refuses a set that cannot be trained on.

    Raises:
      TypeError: inputs or labels have another kind of number.
      ValueError: inputs and labels do not fit together, a number is not finite, a label is
        out of range, an image has unusual values, parts differ in size, or training lacks
        a class. The message names the part, and the row or the class.
    """
    arguments.record("data", data, QuizSet, "load_quiz_set(...)")
    if data.num_classes < 2:
        raise ValueError(f"{data.name} has {data.num_classes} class; expected 2 or more.")
    shape = data.parts["train"].images.shape[1:]
    for name in PARTS:
        part = data.parts[name]
        check_part(f"the {name} part of {data.name}", part, shape, data.num_classes)
    counts = np.bincount(data.parts["train"].labels, minlength=data.num_classes)
    if missing := [data.class_names[i] for i in np.flatnonzero(counts == 0)]:
        raise ValueError(
            f"the train part of {data.name} has no example of "
            f"{', '.join(map(repr, missing[:5]))}; expected one or more of each of "
            f"{data.num_classes} classes. Leave the class out of all parts."
        )
    return data


def check_part(where: str, part: Labelled, shape: Sequence[int], num: int) -> None:
    """Refuses inputs and labels of a part, or of a set that is not divided yet.

    Args:
      where: What is refused, for the message, whose rows are those of `part`.
      part: Inputs and labels.
      shape: Expected shape of an input.
      num: Number of classes.

    Raises:
      TypeError, ValueError: see `check_set`.
    """
    inputs, labels = part.images, part.labels
    if inputs.ndim < 2 or labels.ndim != 1 or len(inputs) != len(labels):
        raise ValueError(
            f"{where} has inputs {list(inputs.shape)} and labels {list(labels.shape)}; "
            "expected [I, ...] with one axis or more beside the rows, and [I]."
        )
    if not inputs.size:
        raise ValueError(f"{where} is empty; expected one example or more.")
    if inputs.shape[1:] != tuple(shape):
        raise ValueError(
            f"{where} has inputs {list(inputs.shape[1:])}, and training has {list(shape)}; "
            "expected one shape."
        )
    if not (inputs.dtype == np.uint8 or inputs.dtype == np.float32):
        raise TypeError(f"{where} has inputs of {inputs.dtype}; expected uint8 or float32.")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{where} has labels of {labels.dtype}; expected whole numbers.")
    bad = ~np.isfinite(inputs.reshape(len(inputs), -1)).all(1)
    if bad.any():
        raise ValueError(
            f"{where} has inputs that are not finite, the first in row {bad.argmax()}, "
            "counted from 0; expected finite numbers. Fill or drop these rows."
        )
    check_labels(labels, num, where)
    if inputs.ndim > 2:
        try:
            pixels.check_values(inputs)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
