"""Learners that recall past episodes from a memory of keys and values."""

from metalearn.algorithms.episodic.emo import emo
from metalearn.algorithms.episodic.lstm import episodic_lstm

__all__ = [
    "emo",
    "episodic_lstm",
]
