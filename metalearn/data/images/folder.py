"""Images of the user: a folder or zip of `class/image.png`, and lists of classes.

A `splits.json` inside or beside the folder lists the classes for meta-training,
meta-validation and meta-test, or the first folders are named as these parts. `layout` says
which folders are classes. Where folders have numbers for names, the key "names" of the
file says what they are: `{"names": {"n02129165": "lion, king of beasts"}, ...}`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from metalearn.data.builders import PartSource, RecordSource
from metalearn.data.images.archives import fingerprint
from metalearn.data.images.decoding import HOW, IMAGE_SUFFIXES, pillow
from metalearn.data.images.image_sets import PARTS
from metalearn.data.images.layout import layout_of, open_images
from metalearn.data.images.limits import check_total, limits_of
from metalearn.data.images.splits import (
    EXAMPLE,
    check_splits,
    normal,
    parsed,
    random_split,
    read_splits,
    read_words,
)

MIN_SIDE = 8
_MODES = {1: "L", 3: "RGB"}
# Part of the cache key: raise it when the same images would give other records.
_FORMAT = 2


def folder_source(
    path: str | Path,
    *,
    split: str | None = None,
    splits: Mapping[str, Any] | str | Path | None = None,
    image_size: int | None = None,
    channels: int = 3,
    seed: int = 0,
    max_pixels: int | None = None,
    max_bytes: int | None = None,
    max_file_bytes: int | None = None,
    max_files: int | None = None,
    stack: contextlib.ExitStack,
) -> RecordSource:
    """Describes a folder or zip of images.

    Args:
      path: The folder or zip, or a folder that holds one zip. Images are those of
        `IMAGE_SUFFIXES`, and are read as a viewer shows them (see `decoding`).
      split: Name of a split in the splits file; or "random" for a seeded 64/16/20
        split of the classes; or "train", "validation" or "test" to put all classes into
        that part (for evaluation on another data set).
      splits: Class names by part, or the path of a splits file. Default: `splits.json`
        in the folder or zip, or beside it; or else the first folders if all are named as
        parts ("train", "val", "test" and the like).
      image_size: Side of the images in pixels; images of other sizes are cut to their
        central square and resized. Default: all images must have one size already.
      channels: 3 for colour, 1 for greyscale; images are converted.
      seed: Seed of a random split.
      max_pixels: Largest number of pixels of one image; see `Limits`, also for the default.
      max_bytes: Largest size of all prepared images together.
      max_file_bytes: Largest size of one image file.
      max_files: Largest number of files.
      stack: Stack that closes the archive when the caller is done with the source.

    Returns:
      The source.

    Raises:
      FileNotFoundError: The path or the splits file does not exist.
      ValueError: The contents or the options do not fit.
    """
    if channels not in tuple(_MODES):
        raise ValueError(f"channels={channels!r} was given; expected 1 or 3.")
    limits = limits_of(
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        max_file_bytes=max_file_bytes,
        max_files=max_files,
    )
    check_size(image_size, limits)
    tree = stack.enter_context(open_images(path, limits))
    explicit = splits is not None or (
        split not in ("random", *PARTS) and _splits_nearby(tree) is not None
    )
    found = layout_of(tree, by_parts=not explicit)
    parts, origin = _parts(tree, found, split, splits, seed)
    files, groups = found.files, found.groups
    used = [path for names in parts.values() for name in names for path in files[name]]
    if image_size is not None:
        shape = (image_size, image_size, channels)
        check_total(len(used), shape, limits, str(tree.root))
    reader = _Reader(tree, image_size, _MODES[channels])
    first = files[next(iter(parts.values()))[0]][0]
    shape = reader.read(first).shape
    check_total(len(used), shape, limits, str(tree.root))
    reader.expected = shape, first
    # Images alone: a changed README does not make another data set.
    stamps = [(path, tree.paths[path]) for paths in files.values() for path in paths]
    words = _words(tree, splits, [name for names in parts.values() for name in names])
    contents = [*stamps, *parts.items(), image_size, channels, ("format", _FORMAT)]
    # Only where there are words, so that other sets keep their cache entries.
    key = fingerprint([*contents, *([("words", words)] if words else [])])
    stem = re.sub(r"\W+", "_", tree.root.resolve().stem, flags=re.ASCII).strip("_")
    counts = {part: len(names) for part, names in parts.items()}
    reader.info.update(
        source=tree.root.name,
        licence="unknown: the user's own images",
        split=origin,
        protocol=(
            f"Classes by part: {counts}; split: {origin}; "
            f"{len(files) - sum(counts.values())} further classes unused; "
            f"{found.left_out}."
        ),
        words=words,
    )
    return RecordSource(
        name=f"folder_{stem}".lower(),
        config=f"{shape[0]}x{shape[1]}-{key}",
        description=f"Images of {tree.root.name}.",
        image_shape=shape,
        parts={
            part: PartSource(
                class_names=tuple(names),
                class_groups=tuple(groups[name] for name in names),
                images=lambda i, names=names: map(reader.read, files[names[i]]),
            )
            for part, names in parts.items()
        },
        info=reader.info,
    )


def check_size(image_size, limits):
    if image_size is None:
        return
    whole = isinstance(image_size, int) and not isinstance(image_size, bool)
    if not whole or image_size < MIN_SIDE:
        raise ValueError(
            f"image_size={image_size!r} was given; expected a whole number of pixels, "
            f"at least {MIN_SIDE}."
        )
    if image_size**2 > limits.max_pixels:
        raise ValueError(
            f"image_size={image_size} gives images of {image_size**2} pixels; expected "
            f"at most max_pixels={limits.max_pixels} in one image. Choose a smaller side."
        )


class _Reader:
    """Reads and resizes images; all must have the shape of the first.

    Attributes:
      done: Paths of the images that needed more than decoding, by what was done to them.
      info: Facts of the source; "preprocessing" counts the images read so far.
    """

    def __init__(self, tree, image_size, mode):
        self.tree, self.image_size, self.mode = tree, image_size, mode
        self.expected = None
        self.done: dict[str, set[str]] = {}
        self.info: dict[str, Any] = {"preprocessing": self.told()}

    def read(self, path):
        pixels, notes = self.tree.decode(path, mode=self.mode)
        for note in notes:
            self.done.setdefault(note, set()).add(path)
            self.info["preprocessing"] = self.told()
        if min(pixels.shape[:2]) < MIN_SIDE:
            raise ValueError(
                f"{path!r} in {self.tree.root} is {pixels.shape[1]}x{pixels.shape[0]} "
                f"pixels; expected at least {MIN_SIDE}x{MIN_SIDE}. Remove the image."
            )
        if self.image_size is not None:
            pixels = resize(pixels, self.image_size)
        if self.expected is not None and pixels.shape != self.expected[0]:
            raise ValueError(
                f"{path!r} in {self.tree.root} is {pixels.shape[1]}x{pixels.shape[0]} "
                f"pixels, but {self.expected[1]!r} is {self.expected[0][1]}x"
                f"{self.expected[0][0]}; expected one size. Give the option image_size "
                "to resize all."
            )
        return pixels

    def told(self):
        """What was done to the images read so far."""
        size = self.image_size
        resized = (
            "not resized"
            if size is None
            else f"central square, resized to {size}x{size} (Lanczos)"
        )
        counts = [f"{len(paths)} {note}" for note, paths in sorted(self.done.items())]
        return f"{HOW}; {resized}; found: {', '.join(counts) or 'nothing of the kind'}"


def resize(pixels: np.ndarray, size: int, kind: str = "LANCZOS") -> np.ndarray:
    """Central square of `[H, W, C]`, resized to `[size, size, C]`.

    Args:
      pixels: Pixels, uint8 `[H, W, C]`.
      size: Side of the result.
      kind: Name of a filter of Pillow.
    """
    height, width, channels = pixels.shape
    if (height, width) == (size, size):
        return pixels
    # The central square keeps proportions, which a direct resize would not.
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    Image = pillow()
    image = Image.fromarray(square[..., 0] if channels == 1 else square)
    resized = np.asarray(image.resize((size, size), Image.Resampling[kind]))
    return resized.reshape(size, size, channels)


def _parts(tree, found, split, splits, seed):
    """Class names by part, and the origin of the split in words."""
    names = list(found.files)
    if splits is None and split in ("random", *PARTS):
        refuse_lost(tree, found)
    if splits is None and split == "random":
        pooled = f", classes of {found.folders} pooled" if found.folders else ""
        return random_split(names, seed), f"random 64/16/20, seed {seed}{pooled}"
    if splits is None and split in PARTS:
        if found.parts is not None:
            raise ValueError(
                f"split={split!r} puts all classes into one part, but {tree.root} has "
                f"folders of parts: {found.folders}. Leave split out to take them, and "
                f"choose with parts=({split!r},); or give split='random'."
            )
        return {split: sorted(names)}, f"all classes in {split}"
    if isinstance(splits, Mapping):
        given = "the option splits"
        return check_splits(splits, names, given, found.absent), given
    if splits is None and split is None and found.parts is not None:
        refuse_lost(tree, found)
        if found.shared:
            raise ValueError(
                f"{len(found.shared)} classes of {tree.root} stand in several of the "
                f"folders {found.folders}, such as {found.shared[:3]}; few-shot learning "
                "is tested on classes that training has not seen. Give split='random' to "
                "pool the images of each class and to split the classes."
            )
        return found.parts, f"the folders {found.folders}"
    path, text = _splits_file(tree, splits)
    chosen = read_splits(path, text, split)
    origin = Path(path).name if split is None else f"{Path(path).name}, {split}"
    return check_splits(chosen, names, str(path), found.absent), origin


def _words(tree, splits, names):
    """What the classes are called, from the key "names" of the splits file."""
    content: Any = splits
    if not isinstance(splits, Mapping):
        file = _splits_file(tree, splits) if splits is not None else _splits_nearby(tree)
        content = {}
        # A file that gave the parts can be read; another may be anything.
        with contextlib.suppress(ValueError):
            content = {} if file is None else parsed(*file)
    words = read_words(content)
    return {name: words[normal(name)] for name in names if normal(name) in words}


def refuse_lost(
    tree, found, remedy="move the folder away, or list the classes in a splits.json"
):
    """Where all folders are classes, a folder without a readable image is a lost class."""
    if found.lost:
        first = found.lost[0]
        raise ValueError(
            f"{len(found.lost)} folders of {tree.root} would be lost as classes: "
            f"{first!r} {found.absent[first]}; expected images with one of "
            f"{', '.join(IMAGE_SUFFIXES)}. Convert the files, {remedy}."
        )


def _splits_file(tree, splits):
    """Path and bytes of the lists of classes."""
    if splits is not None:
        path = _path_of(splits)
        if not path.is_file():
            raise FileNotFoundError(
                f"splits={str(path)!r} does not exist; expected a file like {EXAMPLE}"
            )
        return path, path.read_bytes()
    found = _splits_nearby(tree)
    if found is not None:
        return found
    beside = tree.root.resolve().parent / "splits.json"
    raise FileNotFoundError(
        f"{tree.root} has no splits.json, neither inside nor beside it; expected one "
        f"that says which classes are for what. Write {beside} like {EXAMPLE}, or give "
        "the option split='random' for a seeded 64/16/20 split, or split='test' to "
        "use all classes for testing."
    )


def _splits_nearby(tree):
    inside = sorted(
        (p for p in tree.paths if PurePosixPath(p).name == "splits.json"), key=len
    )
    if inside:
        return tree.root / inside[0], tree.read(inside[0])
    beside = tree.root.resolve().parent / "splits.json"
    return (beside, beside.read_bytes()) if beside.is_file() else None


def _path_of(splits):
    if isinstance(splits, (str, os.PathLike)):
        return Path(splits)
    raise TypeError(
        f"splits is a {type(splits).__name__}; expected class names by part, "
        f"{EXAMPLE}, or the path of a file with them."
    )
