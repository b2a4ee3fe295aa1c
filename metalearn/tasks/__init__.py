"""Distributions of tasks in pure JAX."""

from metalearn.tasks.families import FAMILIES, function_families
from metalearn.tasks.mixtures import STYLES, mixture, styled
from metalearn.tasks.sinusoid import sinusoid

__all__ = ["FAMILIES", "STYLES", "function_families", "mixture", "sinusoid", "styled"]
