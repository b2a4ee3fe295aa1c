"""Folders and archives of small images for the tests of data sets."""

import contextlib
import io
import json
import zipfile

import numpy as np
from PIL import Image

from metalearn import data
from metalearn.data.images.folder import folder_source
from metalearn.data.images.image_sets import PARTS


def picture(seed=0, kind="png", size=(10, 10)):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


ONE = picture()
BASE = {
    f"{c}/{i}.png": picture([n, i])
    for n, c in enumerate(("ant", "bee", "cat"))
    for i in (0, 1)
}


def folder(root, content, splits=None):
    root.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(value)
    if splits is not None:
        text = splits if isinstance(splits, bytes) else json.dumps(splits).encode()
        (root / "splits.json").write_bytes(text)
    return root


def packed(path, content, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return path


def described(path, **options):
    """Classes and numbers of images by part, and the protocol; every image is read."""
    with contextlib.ExitStack() as stack:
        source = folder_source(path, stack=stack, **options)
        classes = {
            part: {
                name: sum(1 for _ in found.images(i))
                for i, name in enumerate(found.class_names)
            }
            for part, found in source.parts.items()
        }
        return classes, source.info


def image_set(parts, **info):
    """A set with these class names, an image of one pixel each: the number of the class."""

    def part(names):
        pixels = np.arange(len(names), dtype=np.uint8).reshape(-1, 1, 1, 1)
        return data.from_arrays(pixels, np.arange(len(names)), class_names=names)

    made = {p: part(parts[p]) if parts.get(p) else None for p in PARTS}
    return data.ImageDataset(name="made", info=info, **made)
