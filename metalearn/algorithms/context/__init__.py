"""Learners of a code or a gate that adapts to a task."""

from metalearn.algorithms.context.cavia import cavia
from metalearn.algorithms.context.hsml import add_leaf, hsml, mumomaml
from metalearn.algorithms.context.leo import leo

__all__ = [
    "add_leaf",
    "cavia",
    "hsml",
    "leo",
    "mumomaml",
]
