"""Prepared TFDS image-classification sets, and TFDS' downloader.

A set of the TFDS catalogue that lies on this machine in the array_record format can
be read without TensorFlow; to prepare a set needs TensorFlow (extra `tf`). Catalogue
sets split the examples, but few-shot learning splits the classes. So all examples are
pooled, and the classes are split anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.data.images.archives import decode_image
from metalearn.data.images.image_sets import PARTS, ImageDataset, from_arrays
from metalearn.data.images.splits import check_splits, random_split


def load_tfds(
    name: str,
    *,
    data_dir: str | Path | None = None,
    splits: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> ImageDataset:
    """Reads a prepared TFDS set.

    Args:
      name: Name in the catalogue: "mnist", "name/config" or "name:version".
      data_dir: Folder of TFDS. Default: `TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      splits: Class names by part. Default: a seeded 64/16/20 split.
      seed: Seed of the random split.

    Returns:
      The data set; images are in memory.

    Raises:
      FileNotFoundError: The set is not prepared.
      ValueError: The name is none of a set, or the set has no image or label, or has
        images of several sizes.
    """
    _check_name(name)
    import tensorflow_datasets as tfds

    directory = _prepared_dir(name, data_dir)
    builder = tfds.builder_from_directory(directory)
    image_key = _feature(builder, tfds.features.Image, "image", name)
    label_key = _feature(builder, tfds.features.ClassLabel, "label", name)
    label_feature = builder.info.features[label_key]
    mode = "L" if builder.info.features[image_key].shape[-1] == 1 else "RGB"
    images, labels = [], []
    # In a fixed order, so that equal sets give equal arrays.
    for split in sorted(builder.info.splits):
        rows = builder.as_data_source(
            split=split, decoders={image_key: tfds.decode.SkipDecoding()}
        )
        for i in range(len(rows)):
            row = rows[i]
            where = f"record {i} of {name}, split {split}"
            image = decode_image(row[image_key], mode=mode, where=where)
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"{where} has shape {image.shape}, others {images[0].shape}; "
                    "expected images of one size. Write them into a folder of "
                    "class/image.png and load that with the option image_size."
                )
            images.append(image)
            labels.append(int(row[label_key]))
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
            "protocol": (
                "All examples pooled, classes split anew: "
                f"{ {part: len(found) for part, found in chosen.items()} }, {origin}. "
                "Not a published few-shot split."
            ),
        },
    )


def download_omniglot(folder: Path) -> None:
    """Fetches Omniglot's archives into `folder` with TFDS' download manager."""
    import tensorflow_datasets as tfds

    names = ("images_background.zip", "images_evaluation.zip")
    base = "https://github.com/brendenlake/omniglot/raw/master/python"
    manager = tfds.download.DownloadManager(download_dir=folder / "downloads")
    found = manager.download({name: f"{base}/{name}" for name in names})
    for name in names:
        os.replace(found[name], folder / name)


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


# A name becomes a path below the folder of TFDS, and must not lead out of it.
_NAME = re.compile(r"[A-Za-z0-9]\w*(/\w[\w.+-]*)?(:\w[\w.]*)?", re.ASCII)


def _check_name(name):
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{f'tfds:{name}'!r} is no name of a TFDS set; expected tfds:NAME, "
            "tfds:NAME/CONFIG or tfds:NAME:VERSION. For a folder of images give "
            "folder:PATH."
        )


def _prepared_dir(name, data_dir):
    root = Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    path, _, version = name.partition(":")
    found = {}
    for file in (
        *root.glob(f"{path}/*/dataset_info.json"),
        *root.glob(f"{path}/*/*/dataset_info.json"),
    ):
        if not version or file.parent.name == version:
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


def _feature(builder, kind, usual, name):
    features = {k: v for k, v in builder.info.features.items() if isinstance(v, kind)}
    if usual in features:
        return usual
    if len(features) == 1:
        return next(iter(features))
    raise ValueError(
        f"TFDS set {name!r} has {len(features)} features of kind {kind.__name__} among "
        f"{sorted(builder.info.features)}; expected one, or one called {usual!r}. "
        "Only image-classification sets can be loaded."
    )
