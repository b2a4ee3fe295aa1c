"""Distributions of tasks in pure JAX, and tasks of the user drawn on the device."""

from metalearn.tasks.ambiguous import ambiguous
from metalearn.tasks.augmented import augmented
from metalearn.tasks.barcodes import barcodes
from metalearn.tasks.distorted import distorted
from metalearn.tasks.families import FAMILIES, function_families
from metalearn.tasks.generated import from_generator
from metalearn.tasks.histories import histories
from metalearn.tasks.mixtures import mixture
from metalearn.tasks.own import from_tasks, in_order
from metalearn.tasks.sinusoid import sinusoid
from metalearn.tasks.styles import STYLES, styled
from metalearn.tasks.table import from_table

__all__ = [
    "FAMILIES",
    "STYLES",
    "ambiguous",
    "augmented",
    "barcodes",
    "distorted",
    "from_generator",
    "from_table",
    "from_tasks",
    "function_families",
    "histories",
    "in_order",
    "mixture",
    "sinusoid",
    "styled",
]
