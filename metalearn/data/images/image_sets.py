"""The records that hold an image-classification set on the host.

A few-shot sampler needs three things from a data set: the images, the class of each
image, and the classes of meta-training, meta-validation and meta-test. `ImageClasses` is
one such part, and `ImageDataset` holds the three parts. Both are plain NumPy, and both
check the data of every source (an archive, fonts, a TFDS catalogue entry). All later code
may rely on the layout: images sorted by class, every class present, bytes from 0 to 255.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalearn.data.labels import as_labels

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageClasses:
    """One part of an image-classification set, sorted by class.

    Attributes:
      images: Images, uint8 `[I, H, W, C]`; first all of class 0, then all of class 1, ...
      labels: Class of each image, int32 `[I]`, non-decreasing, with every value of
        `0..num_classes-1`.
      class_names: Name of each class.
      groups: Group of each class, int32 `[num_classes]`, an index into `group_names` (the
        alphabet of a character, the script of a glyph); all 0 if a set has no groups.
      group_names: Name of each group.
      rotations: Whether rotations by multiples of 90 degrees count as further classes.
        Rotations are not stored; the sampler makes them on the fly.

    Raises:
      TypeError: An array has the wrong dtype.
      ValueError: Shapes, order or lengths do not agree.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray
    group_names: tuple[str, ...]
    rotations: bool = False

    def __post_init__(self):
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), len(self.class_names))
        _check_names(self.class_names)
        _check_groups(self.groups, len(self.class_names), len(self.group_names))

    @property
    def num_classes(self) -> int:
        """Number of stored classes; rotated classes are not counted."""
        return len(self.class_names)

    @property
    def num_images(self) -> int:
        """Number of stored images."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of one image."""
        return tuple(self.images.shape[1:])

    @property
    def counts(self) -> np.ndarray:
        """Images per class, int64 `[num_classes]`."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def __repr__(self):
        height, width, channels = self.image_shape
        return (
            f"ImageClasses({self.num_classes} classes, {self.num_images} images of "
            f"{height}x{width}x{channels}, {len(self.group_names)} groups, "
            f"rotations={self.rotations})"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDataset:
    """The meta-training, meta-validation and meta-test classes of one data set.

    A part is None if its source is absent (a folder with evaluation archives only). The
    method `part` then raises an error that names the remedy.

    Attributes:
      name: Name of the set.
      train: Classes for meta-training, or None.
      validation: Classes for choosing between checkpoints, or None.
      test: Classes for the final number, or None.
      info: Source, licence, split and protocol statement; JSON-like values.
    """

    name: str
    train: ImageClasses | None
    validation: ImageClasses | None
    test: ImageClasses | None
    info: Mapping[str, Any]

    def __post_init__(self):
        present = self.parts
        if not present:
            raise ValueError(
                f"ImageDataset {self.name!r} was given no part; expected at least one "
                f"of {', '.join(PARTS)}."
            )
        shapes = {part: classes.image_shape for part, classes in present.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"The parts of {self.name!r} have image shapes {shapes}; expected one "
                "shape for all. Resize when loading (option image_size)."
            )

    @property
    def parts(self) -> dict[str, ImageClasses]:
        """The parts that are present, in the order train, validation, test."""
        found = {part: getattr(self, part) for part in PARTS}
        return {part: classes for part, classes in found.items() if classes is not None}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)` of one image; the same in every part."""
        return next(iter(self.parts.values())).image_shape

    def part(self, name: str) -> ImageClasses:
        """Returns one part.

        Args:
          name: "train", "validation" or "test".

        Raises:
          ValueError: No such part, or it is absent from the source.
        """
        if name not in PARTS:
            raise ValueError(
                f"Part {name!r} was asked for; expected one of {', '.join(PARTS)}."
            )
        found = self.parts
        if name not in found:
            raise ValueError(
                f"Data set {self.name!r} was asked for its {name!r} classes but holds "
                f"only {', '.join(found)}: its source has no others. Load it from a "
                f"folder with the missing archives. Source: {self.info.get('source')}"
            )
        return found[name]


def shrunk(dataset: ImageDataset, factor: int) -> ImageDataset:
    """The set with smaller images: a pixel is the mean of `factor` x `factor` old ones.

    Args:
      dataset: Set to shrink.
      factor: Divisor of both sides.

    Raises:
      TypeError: a part was given in place of a whole set.
      ValueError: the factor does not divide the sides.
    """
    _check_dataset(dataset, "shrunk")
    height, width, channels = dataset.image_shape
    whole = isinstance(factor, (int, np.integer)) and not isinstance(factor, bool)
    if not whole or factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"shrink is {factor!r}, which does not divide images of {height}x{width}. "
            "Choose a common divisor of the sides."
        )

    def smaller(classes: ImageClasses) -> ImageClasses:
        blocks = (-1, height // factor, factor, width // factor, factor, channels)
        means = classes.images.reshape(blocks).mean((2, 4), dtype=np.float32)
        return dataclasses.replace(classes, images=np.rint(means).astype(np.uint8))

    parts = {name: smaller(classes) for name, classes in dataset.parts.items()}
    return dataclasses.replace(dataset, **parts)


def fewer_classes(dataset: ImageDataset, num: int) -> ImageDataset:
    """The set with some of its meta-training classes, spread evenly over their order.

    If the classes are ordered by group, as the characters of Omniglot by alphabet, every
    group keeps its share. With rotations each kept class still counts four times.

    Args:
      dataset: Set to reduce; validation and test do not change.
      num: Number of classes to keep.

    Raises:
      TypeError: a part was given in place of a whole set.
      ValueError: there are fewer than `num` training classes, or none.
    """
    _check_dataset(dataset, "fewer_classes")
    train = dataset.part("train")
    whole = isinstance(num, (int, np.integer)) and not isinstance(num, bool)
    if not whole or not 1 <= num <= train.num_classes:
        raise ValueError(
            f"{num!r} training classes were asked for; {dataset.name} has "
            f"{train.num_classes}. Ask for 1 to {train.num_classes}."
        )
    kept = spread_classes(train.num_classes, num)
    return dataclasses.replace(dataset, train=only_classes(train, kept))


def spread_classes(total: int, num: int) -> np.ndarray:
    """Numbers of `num` of `total` classes, evenly spaced and all different."""
    return np.arange(num) * total // num


def only_classes(classes: ImageClasses, kept: np.ndarray) -> ImageClasses:
    """Some of the classes of a part, in their order.

    Args:
      classes: The part.
      kept: Numbers of the classes to keep, rising.
    """
    rows = np.isin(classes.labels, kept)
    return dataclasses.replace(
        classes,
        images=classes.images[rows],
        labels=np.searchsorted(kept, classes.labels[rows]).astype(np.int32),
        class_names=tuple(classes.class_names[i] for i in kept),
        groups=classes.groups[kept],
    )


def from_arrays(
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    *,
    class_names: Sequence[str] | None = None,
    groups: Sequence[int] | np.ndarray | None = None,
    group_names: Sequence[str] = ("all",),
    rotations: bool = False,
) -> ImageClasses:
    """Builds `ImageClasses` from unsorted arrays.

    Args:
      images: Images, uint8 `[I, H, W, C]` or `[I, H, W]`, in any order.
      labels: Class of each image, integers `[I]` in `0..num_classes-1`, or names.
      class_names: Name of each class; default "class_0", "class_1", ... Where labels are
        names: the order of the classes; default sorted.
      groups: Group of each class, integers `[num_classes]` into `group_names`; default
        all 0.
      group_names: Name of each group.
      rotations: Whether rotations count as further classes, see `ImageClasses`.

    Returns:
      The classes, images sorted by class and otherwise in the order given.

    Raises:
      TypeError: Images are not uint8, or labels neither integers nor names.
      ValueError: Shapes, order or lengths do not agree.
    """
    images, labels = np.asarray(images), as_labels(labels)
    if images.ndim == 3:
        images = images[..., None]
    _check_images(images)
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}; expected [I].")
    if labels.dtype.kind == "U":
        labels, class_names = _numbered(labels, class_names)
    order = np.argsort(labels, kind="stable")
    num_classes = int(labels.max()) + 1 if labels.size else 0
    if class_names is None:
        if num_classes > max(len(labels), 10**6):  # no name for each of a billion
            raise ValueError(
                f"labels run to {num_classes - 1} for {len(labels)} images; expected every "
                "value of 0..num_classes-1. Number them by numpy.unique(labels, "
                "return_inverse=True)[1]."
            )
        class_names = [f"class_{i}" for i in range(num_classes)]
    if groups is None:
        groups = np.zeros(len(class_names))
    return ImageClasses(
        images=images[order] if len(labels) == len(images) else images,
        labels=labels[order].astype(np.int32),
        class_names=tuple(class_names),
        groups=np.asarray(groups).astype(np.int32),
        group_names=tuple(group_names),
        rotations=rotations,
    )


def _check_dataset(dataset, caller):
    if not isinstance(dataset, ImageDataset):
        raise TypeError(
            f"{caller} was given a {type(dataset).__name__}; expected a whole data set, as "
            f"of ml.data.load. Write {caller}(dataset, ...) and take the part afterwards."
        )


def _numbered(labels, class_names):
    """Names of classes as numbers, and the name of each number."""
    found = np.unique(labels).tolist()
    names = found if class_names is None else [str(name) for name in class_names]
    if missing := sorted(set(found) - set(names)):
        raise ValueError(
            f"labels hold {missing[:5]}, which class_names lacks; expected the name of "
            "every class. Leave class_names out to take those of the labels."
        )
    number = {name: i for i, name in enumerate(names)}
    return np.asarray([number[name] for name in labels.tolist()], np.int64), names


def _check_images(images):
    if not isinstance(images, np.ndarray):
        raise TypeError(
            f"images are {type(images).__name__}; expected a NumPy array "
            "uint8 [I, H, W, C]. Use np.asarray."
        )
    if images.dtype != np.uint8:
        hint = "Convert them to bytes 0..255 first."
        if np.issubdtype(images.dtype, np.floating):
            if not np.isfinite(images).all():
                count = int(np.size(images) - np.isfinite(images).sum())
                hint = f"{count} values are NaN or infinite: find where they come from."
            else:
                low, high = images.min(initial=0), images.max(initial=0)
                hint = (
                    f"They run from {low:g} to {high:g}: scale them to 0..255 and use "
                    ".round().astype(np.uint8)."
                )
        raise TypeError(f"images have dtype {images.dtype}; expected uint8. {hint}")
    if images.ndim != 4:
        raise ValueError(
            f"images have shape {images.shape}; expected [I, H, W, C]. "
            "Add the missing axis (greyscale: images[..., None])."
        )
    if images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images have shape {images.shape}; expected [I, H, W, C] with C = 1 or 3 "
            "and no empty axis. Put the channels last and leave out empty parts."
        )


def _check_labels(labels, num_images, num_classes):
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int32:
        kind = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(f"labels are {kind}; expected a NumPy int32 array [I].")
    if labels.shape != (num_images,):
        raise ValueError(
            f"labels have shape {labels.shape} for {num_images} images; expected "
            f"({num_images},), one label per image."
        )
    if (np.diff(labels) < 0).any():
        raise ValueError(
            "labels are not sorted; expected all images of class 0 first, then of "
            "class 1, and so on. Build the record with image_sets.from_arrays."
        )
    counts = np.bincount(labels, minlength=num_classes) if labels.min() >= 0 else ()
    if len(counts) != num_classes or not np.all(counts):
        present = np.unique(labels)
        missing = np.setdiff1d(np.arange(num_classes), present)
        raise ValueError(
            f"labels run from {present[0]} to {present[-1]} with {len(present)} "
            f"different values for {num_classes} class names; expected every value of "
            f"0..{num_classes - 1}. Classes without an image: {missing[:10].tolist()}."
        )


def _check_names(class_names):
    if not isinstance(class_names, tuple) or not all(
        isinstance(name, str) for name in class_names
    ):
        raise TypeError("class_names must be a tuple of str, one name per class.")
    if len(set(class_names)) != len(class_names):
        twice = sorted({name for name in class_names if class_names.count(name) > 1})
        raise ValueError(
            f"class_names holds {twice[:5]} more than once; expected different names."
        )


def _check_groups(groups, num_classes, num_groups):
    if not isinstance(groups, np.ndarray) or groups.dtype != np.int32:
        kind = getattr(groups, "dtype", type(groups).__name__)
        raise TypeError(f"groups are {kind}; expected a NumPy int32 array [num_classes].")
    if groups.shape != (num_classes,):
        raise ValueError(
            f"groups have shape {groups.shape} for {num_classes} classes; expected "
            f"({num_classes},), one group per class."
        )
    if num_classes and not (groups.min() >= 0 and groups.max() < num_groups):
        raise ValueError(
            f"groups run from {groups.min()} to {groups.max()} but there are "
            f"{num_groups} group_names; expected indices into group_names."
        )
