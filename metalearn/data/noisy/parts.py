"""A set in four parts: noisy training, clean training, validation and test."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from metalearn.core import pixels
from metalearn.data import arguments

PARTS = ("train", "clean", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images with labels.

    Attributes:
      images: Images, uint8 or float in 0..1, `[I, H, W, C]`.
      labels: Labels as given, int32 `[I]`.
      truth: True classes, int32 `[I]`; None where nobody knows them.
    """

    images: np.ndarray
    labels: np.ndarray
    truth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, numbers: np.ndarray) -> Labelled:
        """The images of these rows."""
        truth = None if self.truth is None else self.truth[numbers]
        return Labelled(
            images=self.images[numbers], labels=self.labels[numbers], truth=truth
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisySet:
    """A set of images whose training labels may be wrong.

    Attributes:
      name: Name of the set.
      class_names: Name of each class.
      train: Training images, whose labels may be wrong.
      clean: Training images whose labels are right; some of every class.
      validation: Images for choices.
      test: Images to judge on.
    """

    name: str
    class_names: tuple[str, ...]
    train: Labelled
    clean: Labelled
    validation: Labelled
    test: Labelled

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def digest(self, part: str) -> str:
        """Digest of images and labels of a part."""
        found: Labelled = getattr(self, part)
        made = hashlib.sha256(np.ascontiguousarray(found.images).tobytes())
        made.update(np.ascontiguousarray(found.labels).tobytes())
        return made.hexdigest()[:16]


def check_set(data: NoisySet) -> NoisySet:
    """Refuses a set that cannot be trained on.

    Raises:
      TypeError: images or labels have another kind of number.
      ValueError: images and labels do not fit together, a label is out of range, a value of
        an image is unusual, parts differ in size, or the clean part lacks a class. The
        message names the part, and the row or the class.
    """
    arguments.record("data", data, NoisySet, "split_of(...)")
    shape = data.train.images.shape[1:]
    if data.num_classes < 2:
        raise ValueError(f"{data.name} has {data.num_classes} class; expected 2 or more.")
    for name in PARTS:
        part: Labelled = getattr(data, name)
        _check_part(f"the {name} part of {data.name}", part, shape, data.class_names)
    counts = np.bincount(data.clean.labels, minlength=data.num_classes)
    if missing := [data.class_names[i] for i in np.flatnonzero(counts == 0)]:
        raise ValueError(
            f"the clean part of {data.name} has no image of "
            f"{', '.join(map(repr, missing[:5]))}; expected one or more of each of "
            f"{data.num_classes} classes, for what no clean image shows would count as "
            "noise. Add some, or leave the class out of all parts."
        )
    return data


def _check_part(
    where: str, part: Labelled, shape: Sequence[int], names: Sequence[str]
) -> None:
    images, labels = part.images, part.labels
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"{where} has images {list(images.shape)} and labels {list(labels.shape)}; "
            "expected [I, H, W, C] and [I]."
        )
    if not len(labels):
        raise ValueError(f"{where} is empty; expected one image or more.")
    if not images.size or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{where} has images {list(images.shape[1:])}; expected [H, W, C], pixels in 1 "
            "or 3 channels."
        )
    if images.shape[1:] != tuple(shape):
        raise ValueError(
            f"{where} has images {list(images.shape[1:])}, and training has {list(shape)}; "
            "expected one size."
        )
    if not (images.dtype == np.uint8 or images.dtype == np.float32):
        raise TypeError(f"{where} has images of {images.dtype}; expected uint8 or float32.")
    for told, values in (("label", labels), ("true label", part.truth)):
        if values is None:
            continue
        if values.shape != labels.shape:
            raise TypeError(
                f"{where} has {told}s of {values.dtype}{list(values.shape)}; expected "
                f"whole numbers [{len(labels)}]."
            )
        check_labels(values, len(names), where, told=told)
    try:
        pixels.check_values(images)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def check_labels(labels: np.ndarray, num: int, where: str, *, told: str = "label") -> None:
    """Refuses labels that are of no class.

    Args:
      labels: Labels `[I]`.
      num: Number of classes C.
      where: Part or set, for the message.
      told: Word for a label.

    Raises:
      TypeError: they are no array of whole numbers `[I]`.
      ValueError: one is outside `0..C-1`; the message names the row.
    """
    kind, shape = getattr(labels, "dtype", None), list(np.shape(labels))
    if kind is None or kind.kind not in "iu" or len(shape) != 1:
        given = type(labels).__name__ if kind is None else f"{kind}{shape}"
        raise TypeError(
            f"{where} has {told}s of {given}; expected whole numbers [I] in an array."
        )
    bad = (labels < 0) | (labels >= num)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"{where} has the {told} {labels[row]} in row {row}, counted from 0; expected "
            f"0..{num - 1}, for there are {num} classes."
        )


def split_of(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    class_names: Sequence[str],
    clean_per_class: int,
    validation: float,
    test: float,
    seed: int,
    name: str,
) -> NoisySet:
    """Parts of a set whose labels are right, class by class; training is the rest.

    Args:
      images: Images `[I, H, W, C]`.
      labels: Classes, int `[I]`.
      class_names: Name of each class.
      clean_per_class: Images of each class in the clean part.
      validation: Share of each class for validation, above 0.
      test: Share of each class for the test, above 0.
      seed: Seed of the draw.
      name: Name of the set.

    Raises:
      TypeError: labels are no array of whole numbers.
      ValueError: a class has too few images, or a label is of no class; the message names
        the class, or the row.
    """
    class_names = arguments.names("class_names", class_names)
    check_labels(labels, len(class_names), name)
    arguments.count("clean_per_class", clean_per_class, least=1)
    for what, share in (("validation", validation), ("test", test)):
        arguments.share(f"the share for {what}", share)
    arguments.seed(seed)
    images = np.asarray(images)
    if images.ndim != 4 or len(images) != len(labels):
        raise ValueError(
            f"{name} has images of shape {images.shape} and {len(labels)} labels; expected "
            "[I, H, W, C] and a label for each image."
        )
    rng = np.random.default_rng([seed, 0])
    rows: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for number, name_of in enumerate(class_names):
        mine = rng.permutation(np.flatnonzero(labels == number))
        sizes = [clean_per_class, round(validation * len(mine)), round(test * len(mine))]
        if min(sizes) < 1 or sum(sizes) >= len(mine):
            raise ValueError(
                f"the class {name_of!r} of {name} has {len(mine)} images, of which "
                f"{sizes[0]} are clean, {sizes[1]} for validation and {sizes[2]} for the "
                "test; expected one or more of each, and some to be left for training. "
                "Change --app.clean-per-class, --app.validation-share or --app.test-share."
            )
        clean, of_validation, of_test, train = np.split(mine, np.cumsum(sizes))
        found = {"train": train, "clean": clean}
        found |= {"validation": of_validation, "test": of_test}
        for part, some in found.items():
            rows[part].append(some)
    labels = labels.astype(np.int32)

    def part(name: str) -> Labelled:
        order = np.sort(np.concatenate(rows[name]))
        return Labelled(images=images[order], labels=labels[order], truth=labels[order])

    return NoisySet(
        name=name, class_names=tuple(class_names), **{name: part(name) for name in PARTS}
    )
