"""Records of learners that recall what they met in earlier tasks or episodes."""

from __future__ import annotations

from metalearn.algorithms import episodic
from metalearn.algorithms.record import Record, record

RECORDS: tuple[Record, ...] = (
    record(
        episodic.emo,
        "EMO",
        "Du et al., CoLLAs 2023",
        good_for="inner gradients of past tasks are recalled; nothing is earned by it here",
        result="against-sinusoid-emo-meta-sgd",
        tiny={"capacity": 4, "recall": 2},
    ),
    record(
        episodic.episodic_lstm,
        "Episodic LSTM",
        "Ritter et al., ICML 2018",
        good_for="bandits that come back: a solved one is recalled and not explored again",
        result="bandits",
        start=False,
        tiny={"pulls": 2, "hidden": 4},
        traits={"order_invariant": False},
    ),
)
