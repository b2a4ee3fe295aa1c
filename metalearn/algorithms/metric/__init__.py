"""Learners of a space in which distances classify."""

from metalearn.algorithms.metric.protonet import protonet

__all__ = [
    "protonet",
]
