"""Distributions of tasks in pure JAX."""

from metalearn.tasks.sinusoid import sinusoid

__all__ = ["sinusoid"]
