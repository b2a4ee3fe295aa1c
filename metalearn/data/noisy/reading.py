"""Images with labels: two known sets, and those of the user.

| name | files |
|---|---|
| mnist | t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz (10,000 digits) |
| cifar-fs | cifar100_test_images.zip, class/name.png (100 images of each of 100 classes) |
| own | labels.npz, or the folders train, clean, validation and test of class/image.png |

`labels.npz` has the arrays `train_images` `[I, H, W, C]` or `[I, H, W]`, `train_labels`
`[I]`, and so on for the four parts; `class_names` and `train_truth`, the true classes, are
optional.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metalearn.data.images.digits import IMAGES, LABELS, read_digits
from metalearn.data.images.layout import layout_of, open_images
from metalearn.data.images.limits import check_total, limits_of
from metalearn.data.lookup import check_name, place_of
from metalearn.data.noisy.parts import PARTS, Labelled, NoisySet, check_set
from metalearn.data.npz import read_arrays

SETS = {
    "mnist": (IMAGES, LABELS),
    "cifar-fs": ("cifar100_test_images.zip",),
    "own": ("labels.npz", "or train, clean, validation and test with class/image.png"),
}


def load_labelled(
    name: str, data_dir: str | Path | None, *, classes: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images of a known set, all with right labels.

    Args:
      name: "mnist" or "cifar-fs".
      data_dir: Folder of the files, or the folder that has them in a folder of that name.
      classes: Names of the classes to keep, in this order; all if empty.

    Returns:
      Images uint8 `[I, H, W, C]`, classes int32 `[I]`, and their names.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or a class is unknown or given twice.
    """
    folder = _folder(name, data_dir)
    if name == "mnist":
        images, labels = read_digits(folder)
        images, names = images[..., None], tuple("0123456789")
    else:
        images, labels, names = _classes(folder / SETS[name][0], channels=3)
    return _kept(images, labels.astype(np.int32), names, classes, name)


def load_own(data_dir: str | Path | None, *, channels: int = 3) -> NoisySet:
    """The user's own images, from `labels.npz` or from folders.

    Args:
      data_dir: Folder of the file, or of the four folders.
      channels: 3 for colour, 1 for greyscale, to which images of folders are converted.

    Raises:
      FileNotFoundError: no file and not all four folders are there.
      ValueError, TypeError: the contents do not fit; see `check_set`.
    """
    folder = _folder("own", data_dir)
    file = folder / "labels.npz"
    return check_set(_arrays(file) if file.is_file() else _folders(folder, channels))


def _folder(name: str, data_dir: str | Path | None) -> Path:
    check_name("set", name, SETS)
    return place_of(
        f"the set {name!r}",
        data_dir,
        SETS[name][:1] if name == "own" else SETS[name],
        within=(name, name.replace("-", "_")),
        folders=PARTS if name == "own" else (),
        told=", ".join(SETS[name]),
    )


def _classes(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images of `class/image.png` in a folder or zip, all of one size."""
    limits, images, labels = limits_of(), [], []
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(open_images(path, limits))
        found = layout_of(tree, by_parts=False)
        names = tuple(sorted(found.files))
        for number, name in enumerate(names):
            for place in found.files[name]:
                image, _ = tree.decode(place, mode={1: "L", 3: "RGB"}[channels])
                if not images:
                    total = sum(map(len, found.files.values()))
                    check_total(total, image.shape, limits, str(path))
                elif image.shape != images[0].shape:
                    raise ValueError(
                        f"{place!r} in {path} is {image.shape[1]}x{image.shape[0]} pixels; "
                        f"expected {images[0].shape[1]}x{images[0].shape[0]} as of the "
                        "first image. Resize them to one size."
                    )
                images.append(image)
                labels.append(number)
    stacked = np.stack(images)
    stacked = stacked.reshape((*stacked.shape[:3], channels))
    return stacked, np.asarray(labels, np.int32), names


def _kept(
    images: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    classes: Sequence[str],
    name: str,
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    if not classes:
        return images, labels, names
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes are {tuple(classes)}; expected each once.")
    for one in classes:
        if one not in names:
            near = difflib.get_close_matches(one, names, n=3, cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"{name} has no class {one!r}.{hint}")
    place = np.full(len(names), -1, np.int32)
    place[[names.index(one) for one in classes]] = np.arange(len(classes), dtype=np.int32)
    rows = np.flatnonzero(place[labels] >= 0)
    return images[rows], place[labels[rows]], tuple(classes)


def _arrays(path: Path) -> NoisySet:
    wanted = [f"{part}_{kind}" for part in PARTS for kind in ("images", "labels")]
    optional = ("train_truth", "class_names")
    try:
        arrays, unknown = read_arrays(path, (*wanted, *optional))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if missing := [name for name in wanted if name not in arrays]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; expected {', '.join(wanted)}."
        )
    if unknown:
        raise ValueError(
            f"{path} has {', '.join(unknown)}; expected {', '.join(wanted)}, and maybe "
            f"{' and '.join(optional)}."
        )
    parts = {}
    for part in PARTS:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype.kind == "f":
            images = images.astype(np.float32)
        truth = arrays.get("train_truth") if part == "train" else None
        parts[part] = Labelled(images=images, labels=_whole(labels), truth=_whole(truth))
    if "class_names" in arrays:
        names = _names(arrays["class_names"], path)
    else:
        # The test may not say how many classes there are.
        learned = (parts["train"].labels, parts["clean"].labels)
        top = max(
            (int(x.max()) for x in learned if x.size and x.dtype.kind in "iu"), default=0
        )
        names = tuple(map(str, range(min(top, 10**6) + 1)))
    return NoisySet(name="own", class_names=names, **parts)


def _names(given: np.ndarray, path: Path) -> tuple[str, ...]:
    if given.ndim != 1 or given.dtype.kind != "U":
        raise ValueError(
            f"{path} has class_names of {given.dtype}{list(given.shape)}; expected text, "
            "[C]."
        )
    names = tuple(given.tolist())
    for row, name in enumerate(names):
        if not name.strip() or not name.isprintable() or name in names[:row]:
            raise ValueError(
                f"{path} has the class name {name!r} in row {row}, counted from 0; "
                "expected printable text, each name once."
            )
    return names


def _whole(labels: np.ndarray | None) -> np.ndarray | None:
    """Whole numbers as int32, where they fit; others as they are, to be refused."""
    if labels is None or labels.dtype.kind not in "iu":
        return labels
    # Clipped and not wrapped: what is out of range has to stay so.
    return np.clip(labels, -1, 2**31 - 1).astype(np.int32)


def _folders(folder: Path, channels: int) -> NoisySet:
    found = {part: _classes(folder / part, channels) for part in PARTS}
    names = tuple(sorted({*found["train"][2], *found["clean"][2]}))
    parts = {}
    for part, (images, labels, own) in found.items():
        if unknown := [name for name in own if name not in names]:
            raise ValueError(
                f"{folder / part} has the class {unknown[0]!r}, which neither train nor "
                "clean has; expected classes of training."
            )
        place = np.asarray([names.index(name) for name in own], np.int32)
        parts[part] = Labelled(images=images, labels=place[labels])
    return NoisySet(name="own", class_names=names, **parts)
