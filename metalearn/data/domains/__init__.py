"""Images of the same classes in several domains, such as photographs and sketches."""

from metalearn.data.domains.sets import DomainImages, domain_images, validation_rows
from metalearn.data.domains.sources import (
    ANGLES,
    DATASETS,
    LAYOUTS,
    domain_folder,
    load_domains,
    rotated,
    rotated_digits,
)

__all__ = [
    "ANGLES",
    "DATASETS",
    "LAYOUTS",
    "DomainImages",
    "domain_folder",
    "domain_images",
    "load_domains",
    "rotated",
    "rotated_digits",
    "validation_rows",
]
