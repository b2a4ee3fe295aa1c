"""Learners of a posterior over the weights of a task."""

from metalearn.algorithms.bayesian.bmaml import bmaml, emaml
from metalearn.algorithms.bayesian.llama import llama
from metalearn.algorithms.bayesian.platipus import platipus

__all__ = [
    "bmaml",
    "emaml",
    "llama",
    "platipus",
]
