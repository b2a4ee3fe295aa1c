"""Image sets for few-shot learning, as NumPy arrays on the host."""

from metalearn.data.catalogue import CatalogueRow, available, load, prepare
from metalearn.data.image_sets import ImageClasses, ImageDataset, from_arrays

__all__ = [
    "CatalogueRow",
    "ImageClasses",
    "ImageDataset",
    "available",
    "from_arrays",
    "load",
    "prepare",
]
