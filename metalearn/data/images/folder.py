"""Images of the user: a folder or zip of `class/image.png`, and lists of classes.

A `splits.json` inside or beside the folder lists the classes for meta-training,
meta-validation and meta-test. Folders may be nested (`domain/class/image.jpg`). Then the
class is the whole path, and the group of the class is the first folder.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from metalearn.core.optional import require
from metalearn.data.builders import PartSource, RecordSource
from metalearn.data.images.archives import IMAGE_SUFFIXES, ImageTree, fingerprint
from metalearn.data.images.image_sets import PARTS
from metalearn.data.images.splits import EXAMPLE, check_splits, random_split, read_splits

MIN_SIDE = 8
_MODES = {1: "L", 3: "RGB"}
# Part of the cache key: raise it when the same images would give other records.
_FORMAT = 1


def folder_source(
    path: str | Path,
    *,
    split: str | None = None,
    splits: Mapping[str, Any] | str | Path | None = None,
    image_size: int | None = None,
    channels: int = 3,
    seed: int = 0,
    stack: contextlib.ExitStack,
) -> RecordSource:
    """Describes a folder or zip of images.

    Args:
      path: The folder or zip; images are png, jpg, jpeg or bmp.
      split: Name of a split in the splits file; or "random" for a seeded 64/16/20
        split of the classes; or "train", "validation" or "test" to put all classes into
        that part (for evaluation on another data set).
      splits: Class names by part, or the path of a splits file. Default: `splits.json`
        in the folder or zip, or beside it.
      image_size: Side of the images in pixels; images of other sizes are cut to their
        central square and resized. Default: all images must have one size already.
      channels: 3 for colour, 1 for greyscale; images are converted.
      seed: Seed of a random split.
      stack: Stack that closes the archive when the caller is done with the source.

    Returns:
      The source.

    Raises:
      FileNotFoundError: The path or the splits file does not exist.
      ValueError: The contents or the options do not fit.
    """
    if channels not in _MODES:
        raise ValueError(f"channels={channels!r} was given; expected 1 or 3.")
    if image_size is not None and not (
        isinstance(image_size, int) and image_size >= MIN_SIDE
    ):
        raise ValueError(
            f"image_size={image_size!r} was given; expected a whole number of pixels, "
            f"at least {MIN_SIDE}."
        )
    tree = stack.enter_context(ImageTree(path))
    files, groups = _classes(tree)
    parts, origin = _parts(tree, list(files), split, splits, seed)
    reader = _Reader(tree, image_size, _MODES[channels])
    first = files[next(iter(parts.values()))[0]][0]
    shape = reader.read(first).shape
    reader.expected = shape, first
    # Images alone: a changed README does not make another data set.
    used = {path: tree.paths[path] for members in files.values() for path in members}
    key = fingerprint(
        [*used.items(), *parts.items(), image_size, channels, ("format", _FORMAT)]
    )
    stem = re.sub(r"\W+", "_", tree.root.resolve().stem, flags=re.ASCII).strip("_")
    counts = {part: len(names) for part, names in parts.items()}
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
        info={
            "source": tree.root.name,
            "licence": "unknown: the user's own images",
            "split": origin,
            "protocol": (
                f"Classes by part: {counts}; split: {origin}; "
                f"{len(files) - sum(counts.values())} further classes unused."
            ),
            "preprocessing": "none"
            if image_size is None
            else f"central square, resized to {image_size}x{image_size} (Lanczos)",
        },
    )


class _Reader:
    """Reads and resizes images; all must have the shape of the first."""

    def __init__(self, tree, image_size, mode):
        self.tree, self.image_size, self.mode = tree, image_size, mode
        self.expected = None

    def read(self, path):
        pixels = self.tree.read_image(path, mode=self.mode)
        if min(pixels.shape[:2]) < MIN_SIDE:
            raise ValueError(
                f"{path!r} in {self.tree.root} is {pixels.shape[1]}x{pixels.shape[0]} "
                f"pixels; expected at least {MIN_SIDE}x{MIN_SIDE}. Remove the image."
            )
        if self.image_size is not None:
            pixels = _resize(pixels, self.image_size)
        if self.expected is not None and pixels.shape != self.expected[0]:
            raise ValueError(
                f"{path!r} in {self.tree.root} is {pixels.shape[1]}x{pixels.shape[0]} "
                f"pixels, but {self.expected[1]!r} is {self.expected[0][1]}x"
                f"{self.expected[0][0]}; expected one size. Give the option image_size "
                "to resize all."
            )
        return pixels


def _resize(pixels, size):
    """Central square of `[H, W, C]`, resized to `[size, size, C]`."""
    height, width, channels = pixels.shape
    if (height, width) == (size, size):
        return pixels
    # The central square keeps proportions, which a direct resize would not.
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    Image = require("PIL.Image", "to resize images")
    image = Image.fromarray(square[..., 0] if channels == 1 else square)
    resized = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
    return resized.reshape(size, size, channels)


def _classes(tree):
    """Maps class names to their image paths, and to their groups."""
    paths = tree.image_paths()
    split_paths = [PurePosixPath(path).parts for path in paths]
    # A zip often holds one folder that holds everything.
    depth = 0
    while (
        split_paths
        and min(map(len, split_paths)) > depth + 2
        and len({parts[depth] for parts in split_paths}) == 1
    ):
        depth += 1
    files: dict[str, list[str]] = {}
    for path, parts in zip(paths, split_paths):
        if len(parts) < depth + 2:
            raise ValueError(
                f"{path!r} in {tree.root} is in no class folder; expected "
                "class/image.png. Move it into the folder of its class."
            )
        files.setdefault("/".join(parts[depth:-1]), []).append(path)
    if not files:
        raise ValueError(
            f"{tree.root} holds no image among {len(tree.paths)} files; expected "
            f"class/image with one of {', '.join(IMAGE_SUFFIXES)}."
        )
    groups = {name: name.split("/")[0] if "/" in name else "all" for name in files}
    return files, groups


def _parts(tree, class_names, split, splits, seed):
    """Class names by part, and the origin of the split in words."""
    if splits is None and split == "random":
        return random_split(class_names, seed), f"random 64/16/20, seed {seed}"
    if splits is None and split in PARTS:
        return {split: sorted(class_names)}, f"all classes in {split}"
    if isinstance(splits, Mapping):
        given = "the option splits"
        return check_splits(splits, class_names, given), given
    path, text = _splits_file(tree, splits)
    chosen = read_splits(path, text, split)
    origin = Path(path).name if split is None else f"{Path(path).name}, {split}"
    return check_splits(chosen, class_names, str(path)), origin


def _splits_file(tree, splits):
    beside = tree.root.resolve().parent / "splits.json"
    if splits is not None:
        path = Path(splits)
        if not path.is_file():
            raise FileNotFoundError(
                f"splits={str(path)!r} does not exist; expected a file like {EXAMPLE}"
            )
        return path, path.read_text()
    inside = sorted(
        (p for p in tree.paths if PurePosixPath(p).name == "splits.json"), key=len
    )
    if inside:
        return tree.root / inside[0], tree.read(inside[0])
    if beside.is_file():
        return beside, beside.read_text()
    raise FileNotFoundError(
        f"{tree.root} has no splits.json, neither inside nor beside it; expected one "
        f"that says which classes are for what. Write {beside} like {EXAMPLE}, or give "
        "the option split='random' for a seeded 64/16/20 split, or split='test' to "
        "use all classes for testing."
    )
