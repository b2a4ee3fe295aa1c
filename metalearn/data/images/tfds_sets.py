"""Prepared TFDS image-classification sets, and TFDS' downloader.

A set of the TFDS catalogue that lies on this machine in the array_record format can
be read without TensorFlow; to prepare a set needs TensorFlow (extra `tf`). Catalogue
sets split the examples, but few-shot learning splits the classes. So all examples are
pooled, and the classes are split anew.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.core.optional import check, require
from metalearn.data import records
from metalearn.data.images.decoding import HOW, decode_image
from metalearn.data.images.image_sets import PARTS, ImageDataset, from_arrays
from metalearn.data.images.limits import check_total, limits_of
from metalearn.data.images.splits import check_splits, random_split

OMNIGLOT = ("images_background.zip", "images_evaluation.zip")
# No "/" at either end, no ".." and no wildcard: the name becomes a path below `data_dir`.
_NAME = re.compile(r"\w+(/\w[\w.+-]*)?(:\d+\.\d+\.\d+)?", flags=re.ASCII)


def load_tfds(
    name: str,
    *,
    data_dir: str | Path | None = None,
    splits: Mapping[str, Any] | None = None,
    seed: int = 0,
    max_bytes: int | None = None,
    max_pixels: int | None = None,
) -> ImageDataset:
    """Reads a prepared TFDS set.

    A set that this library wrote keeps its parts. In other sets the examples of all splits
    are pooled, and the classes are split.

    Args:
      name: Name in the catalogue: "mnist", "name/config" or "name:version".
      data_dir: Folder of TFDS. Default: `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      splits: Class names by part. Default: the parts that this library wrote, or else a
        seeded 64/16/20 split.
      seed: Seed of the random split.
      max_bytes: Largest size of all images together; see `Limits`.
      max_pixels: Largest number of pixels of one image.

    Returns:
      The data set; images are in memory.

    Raises:
      ImportError: tensorflow_datasets is not installed.
      FileNotFoundError: The set is not prepared.
      ValueError: The name is no name of TFDS, the set is damaged or too large, has no
        image or label, or has images of several sizes.
    """
    limits = limits_of(max_bytes=max_bytes, max_pixels=max_pixels)
    check("to read its sets", "tensorflow_datasets", "array_record")
    directory = _prepared_dir(name, data_dir)
    if splits is None and (directory / "metadata.json").is_file():
        # Written by this library, whose parts are a split of the classes already.
        return records.load_records(directory)
    with _one_message(name, directory):
        builder = _tfds().builder_from_directory(directory)
        features = dict(builder.info.features.items())
    image_key = _feature(features, "Image", "image", name)
    label_key = _feature(features, "ClassLabel", "label", name)
    label_feature = features[label_key]
    mode = "L" if features[image_key].shape[-1] == 1 else "RGB"
    stored = np.dtype(features[image_key].np_dtype)
    if stored not in (np.uint8, np.uint16):
        raise ValueError(
            f"The images of TFDS set {name!r} are {stored}; expected uint8 or uint16. "
            "Write them into a folder of class/image.png and load that."
        )
    images, labels = _examples(builder, name, directory, image_key, label_key, mode, limits)
    # Test sets of competitions have the label -1, which Python would take as the last.
    known = [0 <= label < label_feature.num_classes for label in labels]
    unlabelled = known.count(False)
    images, labels = (list(itertools.compress(v, known)) for v in (images, labels))
    names = [label_feature.int2str(i) for i in range(label_feature.num_classes)]
    present = [names[i] for i in sorted(set(labels))]
    if splits is None:
        chosen, origin = random_split(present, seed), f"random 64/16/20, seed {seed}"
    else:
        origin = "the option splits"
        chosen = check_splits(splits, present, origin)
    pixels, class_of = np.stack(images), np.asarray(labels)
    return ImageDataset(
        name=f"tfds:{name}",
        **{part: _select(pixels, class_of, names, chosen.get(part)) for part in PARTS},
        info={
            "source": f"TFDS {builder.info.full_name}",
            "licence": builder.info.redistribution_info.license or "see TFDS",
            "split": origin,
            "preprocessing": f"{HOW}; not resized",
            "protocol": (
                "All examples pooled, classes split anew: "
                f"{ {part: len(found) for part, found in chosen.items()} }, {origin}; "
                f"{unlabelled} examples without a label left out. "
                "Not a published few-shot split."
            ),
        },
    )


def download_omniglot(folder: Path) -> None:
    """Fetches those of Omniglot's archives that are not in `folder`.

    TFDS' download manager fetches them into a folder of its own, from where whole archives
    are moved. So nothing that lies in `folder` is lost if a download fails.
    """
    missing = [name for name in OMNIGLOT if not (folder / name).is_file()]
    if not missing:
        return
    base = "https://github.com/brendenlake/omniglot/raw/master/python"
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=folder) as scratch:
        manager = _tfds().download.DownloadManager(download_dir=Path(scratch))
        for name in missing:
            # One after the other, so that the first is kept if the second fails.
            found = manager.download({name: f"{base}/{name}"})
            os.replace(found[name], folder / name)


def _examples(builder, name, directory, image_key, label_key, mode, limits):
    """Pixels and labels of all examples, in a fixed order for equal arrays."""
    decoders = {image_key: _tfds().decode.SkipDecoding()}
    images, labels = [], []
    with _one_message(name, directory):
        sources = {
            split: builder.as_data_source(split=split, decoders=decoders)
            for split in sorted(builder.info.splits)
        }
        count = sum(map(len, sources.values()))
    for split, rows in sources.items():
        for i in range(len(rows)):
            with _one_message(name, directory):
                row = rows[i]
            where = f"record {i} of {name}, split {split}"
            image = decode_image(row[image_key], mode=mode, where=where, limits=limits)
            if not images:
                check_total(count, image.shape, limits, f"tfds:{name}")
            elif image.shape != images[0].shape:
                raise ValueError(
                    f"{where} has shape {image.shape}, others {images[0].shape}; "
                    "expected images of one size. Write them into a folder of "
                    "class/image.png and load that with the option image_size."
                )
            images.append(image)
            labels.append(int(row[label_key]))
    if not images:
        raise ValueError(f"TFDS set {name!r} in {directory} has no example.")
    return images, labels


def _tfds():
    return require("tensorflow_datasets", "to read its sets")


@contextlib.contextmanager
def _one_message(name, directory):
    """Turns whatever TFDS raises into one message."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"TFDS set {name!r} in {directory} cannot be read ({type(error).__name__}: "
            f"{str(error)[:200]}); expected an undamaged set. Delete that folder and "
            "prepare the set again."
        ) from error


def _select(images, labels, names, chosen):
    if chosen is None:
        return None
    ids = [names.index(name) for name in chosen]
    rows = np.isin(labels, ids)
    # Labels of a part count from 0, in the order of its class names.
    new = {old: i for i, old in enumerate(ids)}
    return from_arrays(
        images[rows],
        np.asarray([new[label] for label in labels[rows].tolist()]),
        class_names=chosen,
    )


def _prepared_dir(name, data_dir):
    root = Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"'tfds:{name}' was given; expected tfds:NAME, tfds:NAME/CONFIG or "
            "tfds:NAME:VERSION, such as tfds:mnist or tfds:mnist:3.0.1. Give a path of "
            "images as folder:PATH, and the folder of TFDS as data_dir."
        )
    path, _, version = name.partition(":")
    found = {}
    for file in (
        *root.glob(f"{path}/*/dataset_info.json"),
        *root.glob(f"{path}/*/*/dataset_info.json"),
    ):
        if not version or file.parent.name == version:
            with _one_message(name, file.parent):
                stored = json.loads(file.read_text()).get("fileFormat", "tfrecord")
            found[file.parent] = stored
    usable = [folder for folder, stored in found.items() if stored == "array_record"]
    if not usable:
        state = f"only as {sorted(set(found.values()))}" if found else "not"
        raise FileNotFoundError(
            f"TFDS set {name!r} is {state} prepared in {root}; expected the format "
            "array_record. Prepare it once, which needs TensorFlow (pip install "
            "'metalearn-jax[tf]'): python -c \"import tensorflow_datasets as tfds; "
            f"tfds.builder({name!r}, data_dir={str(root)!r}, "
            "file_format='array_record').download_and_prepare()\""
        )
    configs = {folder.relative_to(root).parent for folder in usable}
    if len(configs) > 1:
        raise ValueError(
            f"TFDS set {name!r} is prepared in {len(configs)} configurations: "
            f"{sorted(map(str, configs))}; expected one. Load it as tfds:name/config."
        )
    return max(usable, key=lambda folder: _version_numbers(folder.name))


def _version_numbers(version):
    return tuple(int(n) if n.isdigit() else 0 for n in version.split("."))


def _feature(features, kind, usual, name):
    wanted = getattr(_tfds().features, kind)
    found = [key for key, feature in features.items() if isinstance(feature, wanted)]
    if usual in found:
        return usual
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"TFDS set {name!r} has {len(found)} features of kind {kind} among "
        f"{sorted(features)}; expected one, or one called {usual!r}. "
        "Only image-classification sets can be loaded."
    )
