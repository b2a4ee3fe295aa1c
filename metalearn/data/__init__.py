"""Image sets on the host, and few-shot tasks drawn from them on the device."""

from metalearn.data.catalogue import CatalogueRow, available, load, open_records, prepare
from metalearn.data.few_shot import few_shot
from metalearn.data.images.image_sets import (
    ImageClasses,
    ImageDataset,
    fewer_classes,
    from_arrays,
    shrunk,
)
from metalearn.data.images.shared import disjoint, shared_classes
from metalearn.data.stream import stream

__all__ = [
    "CatalogueRow",
    "ImageClasses",
    "ImageDataset",
    "available",
    "disjoint",
    "few_shot",
    "fewer_classes",
    "from_arrays",
    "load",
    "open_records",
    "prepare",
    "shared_classes",
    "shrunk",
    "stream",
]
