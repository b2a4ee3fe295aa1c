"""Writing prepared records: one TFDS builder for every image set of this library.

A source (Omniglot's archives, rendered glyphs, a user's folder) describes its parts
and yields decoded images. This module writes the images as a TensorFlow Datasets (TFDS)
data set in the array_record format, which `records` reads back. No TensorFlow is
involved, because TFDS gets the images as PNG bytes.

A build happens in a scratch folder of the cache and is moved into place by one
rename. An interrupted or failed build therefore leaves nothing in place of the records,
and two processes that build the same set do not disturb each other. tensorflow_datasets
is imported only if something has to be built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from metalearn.core import files
from metalearn.core.cache import cache_root
from metalearn.core.optional import check, require
from metalearn.data.records import OLDER, VERSION, record_dir, sealed_metadata

_SCRATCH = ".building-"
_KEPT = "Nothing was left in the cache (METALEARN_CACHE names its folder)."
_SCRATCH_LIFETIME_S = 24 * 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartSource:
    """Contents of one part (train, validation or test) that is about to be written.

    Attributes:
      class_names: Name of each class.
      class_groups: Name of the group of each class.
      images: Function `images(class_index)` that yields the uint8 `[H, W, C]` images of one
        class.
      rotations: Whether multiples of 90 degrees are further classes.
    """

    class_names: tuple[str, ...]
    class_groups: tuple[str, ...]
    images: Callable[[int], Iterator[np.ndarray]]
    rotations: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSource:
    """A data set that is about to be written as records.

    Attributes:
      name: TFDS name of the set: lower-case letters, digits and "_".
      config: TFDS configuration: the options and a fingerprint of the contents, so
        that other contents make another cache entry.
      description: Description of the set in one paragraph.
      image_shape: Shape `(H, W, C)` of an image.
      parts: Parts that are present, by name.
      info: Facts for `ImageDataset.info`; JSON values only.
    """

    name: str
    config: str
    description: str
    image_shape: tuple[int, int, int]
    parts: Mapping[str, PartSource]
    info: Mapping[str, Any]


def prepare_records(source: RecordSource, *, force: bool = False) -> Path:
    """Writes the records of one source, unless the records exist.

    Args:
      source: Images and labels to write.
      force: Whether to build again even if the records exist.

    Returns:
      The folder of the records.

    Raises:
      ValueError: An image of the source is damaged or has the wrong shape, or a name
        cannot be stored. Nothing is left in the cache.
    """
    target = record_dir(source.name, source.config)
    if target.is_dir() and not force:
        return target
    _check_source(source)
    root = cache_root()
    with files.writing(root, kept=_KEPT):
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale_scratch(root)
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=root))
    try:
        with files.writing(scratch, kept=_KEPT):
            built = _run_builder(source, scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
        if force and target.is_dir():
            # Moved away and not deleted in place, so no process finds half of the old
            # records.
            target.rename(scratch / "replaced")
        # Another process may have finished first. The rename then fails, and the records
        # of that process are the same.
        with contextlib.suppress(OSError):
            built.rename(target)
        if not target.is_dir():
            raise OSError(f"{built} could not be moved to {target}.")
        for version in OLDER:  # the same contents, in a format that is not read any more
            shutil.rmtree(target.with_name(version), ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _run_builder(source, scratch):
    """Lets TFDS write the records into `scratch`; returns their folder."""
    tfds = require("tensorflow_datasets", "to prepare records")
    check("to prepare records", "array_record")
    tqdm_utils = require("tensorflow_datasets.core.utils.tqdm_utils", "to prepare records")

    counts = {part: [0] * len(p.class_names) for part, p in source.parts.items()}
    # Unregistered, because every source makes a class of the same name.
    with tfds.core.registered.skip_registration():
        builder_class = _builder_class(tfds, source, counts)
    total = sum(len(part.class_names) for part in source.parts.values())
    bars_were_active = tqdm_utils._active
    tfds.disable_progress_bar()  # TFDS counts files; the bar below counts classes
    try:
        with _progress(f"preparing {source.name}", total) as builder_class.advance:
            builder = builder_class(
                data_dir=scratch, config=source.config, file_format="array_record"
            )
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(
                    download_dir=scratch / "downloads",
                    download_config=tfds.download.DownloadConfig(
                        try_download_gcs=False, compute_stats="skip"
                    ),
                )
    finally:
        if bars_were_active:
            tfds.enable_progress_bar()
    built = Path(builder.data_dir)
    metadata = {
        "name": source.name,
        "image_shape": list(source.image_shape),
        "info": dict(source.info),
        "parts": {
            part: {
                "class_names": list(p.class_names),
                "class_groups": list(p.class_groups),
                "counts": counts[part],
                "rotations": p.rotations,
            }
            for part, p in source.parts.items()
        },
    }
    text = json.dumps(sealed_metadata(built, metadata), indent=1)
    files.write_text(built / "metadata.json", text)
    return built


def _builder_class(tfds, source, counts):
    """The TFDS builder of one source.

    The class is made inside a function, because the base class comes from a package that
    is imported only if something is built.
    """
    names = [name for part in source.parts.values() for name in part.class_names]
    groups = [group for part in source.parts.values() for group in part.class_groups]

    class ImageRecords(tfds.core.GeneratorBasedBuilder):
        """Images with a class and a group, in order of class."""

        name = source.name
        # Nothing is downloaded, so TFDS need not search beside this file for lists of
        # checksums (for which it would import a package it does not depend on).
        code_path = None
        url_infos = None
        BUILDER_CONFIGS: ClassVar = [
            tfds.core.BuilderConfig(
                name=source.config, version=VERSION, description=source.description
            )
        ]
        advance: Callable[[], None]

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=source.description,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(
                            shape=source.image_shape, encoding_format="png"
                        ),
                        "label": tfds.features.ClassLabel(names=names),
                        "group": tfds.features.ClassLabel(
                            names=list(dict.fromkeys(groups))
                        ),
                    }
                ),
                # Records in order of class are the layout that `ImageClasses` asks for.
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # nothing is downloaded here
            return {part: self._generate_examples(part) for part in source.parts}

        def _generate_examples(self, part):
            classes, key = source.parts[part], 0
            for index, name in enumerate(classes.class_names):
                for image in classes.images(index):
                    yield (
                        key,
                        {
                            "image": _encode_png(image, source.image_shape, name),
                            "label": name,
                            "group": classes.class_groups[index],
                        },
                    )
                    key += 1
                    counts[part][index] += 1
                if not counts[part][index]:
                    raise ValueError(
                        f"Class {name!r} of {source.name!r} ({part}) has no image; "
                        "expected at least one. Remove the class."
                    )
                type(self).advance()

    return ImageRecords


def _encode_png(image, shape, class_name):
    if image.dtype != np.uint8 or image.shape != shape:
        raise ValueError(
            f"An image of class {class_name!r} is {image.dtype} {image.shape}; "
            f"expected uint8 {shape}, as the others. Give image_size to resize all."
        )
    Image = require("PIL.Image", "to encode images")
    stream = io.BytesIO()
    pixels = image[..., 0] if shape[-1] == 1 else image
    Image.fromarray(pixels).save(stream, "png")
    stream.seek(0)
    return stream


def _check_source(source):
    seen: dict[str, str] = {}
    for part, classes in source.parts.items():
        for name in classes.class_names:
            if name in seen:
                raise ValueError(
                    f"Class {name!r} of {source.name!r} is in {seen[name]!r} and again "
                    f"in {part!r}; expected every class in one part only."
                )
            seen[name] = part
        for name in (*classes.class_names, *classes.class_groups):
            if not name or name != name.strip() or "\n" in name:
                raise ValueError(
                    f"{name!r} is the name of a class or group in {source.name!r}; "
                    "expected text without line breaks or outer spaces. Rename it."
                )


@contextlib.contextmanager
def _progress(title, total):
    """Yields a function that moves a progress bar one class on (terminals only)."""
    tqdm = require("tqdm", "to show progress").tqdm

    with tqdm(total=total, desc=title, unit="class", disable=None) as bar:
        yield bar.update


def _remove_stale_scratch(root):
    """Removes scratch folders of killed processes that are a day old or older."""
    for path in root.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _SCRATCH_LIFETIME_S:
                shutil.rmtree(path, ignore_errors=True)
