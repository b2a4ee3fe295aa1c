"""Distributions of tasks in pure JAX."""

from metalearn.tasks.families import FAMILIES, function_families
from metalearn.tasks.sinusoid import sinusoid

__all__ = ["FAMILIES", "function_families", "sinusoid"]
