"""Distributions of tasks in pure JAX."""

from metalearn.tasks.ambiguous import ambiguous
from metalearn.tasks.families import FAMILIES, function_families
from metalearn.tasks.mixtures import mixture
from metalearn.tasks.sinusoid import sinusoid
from metalearn.tasks.styles import STYLES, styled

__all__ = [
    "FAMILIES",
    "STYLES",
    "ambiguous",
    "function_families",
    "mixture",
    "sinusoid",
    "styled",
]
