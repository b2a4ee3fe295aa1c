"""Learners that read a task as a sequence, or write it to a memory."""

from metalearn.algorithms.memory.mann import mann
from metalearn.algorithms.memory.meta_networks import meta_networks
from metalearn.algorithms.memory.rnn import rnn
from metalearn.algorithms.memory.snail import snail
from metalearn.algorithms.memory.stream import presentations

__all__ = [
    "mann",
    "meta_networks",
    "presentations",
    "rnn",
    "snail",
]
