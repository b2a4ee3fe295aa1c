"""Records of learners that read a sequence or write to a memory."""

from __future__ import annotations

from metalearn.algorithms import memory
from metalearn.algorithms.record import Record, record

RECORDS: tuple[Record, ...] = (
    record(
        memory.rnn,
        "RNN",
        "Hochreiter et al., ICANN 2001",
        good_for="streams: the state of a recurrent network is what it has learned",
        result="streams",
        start=False,
        tiny={"hidden": 4},
        traits={"order_invariant": False},
    ),
    record(
        memory.mann,
        "MANN",
        "Santoro et al., ICML 2016",
        good_for="streams: an external memory binds examples to labels at once",
        result="streams",
        published="Omniglot 5-class streams: 2nd 82.8, 5th 94.9 [S]",
        start=False,
        tiny={"hidden": 5, "rows": 8, "width": 4, "reads": 2},
        traits={"order_invariant": False},
    ),
    record(
        memory.snail,
        "SNAIL",
        "Mishra et al., ICLR 2018",
        good_for="sequences: causal convolutions and attention over all that was seen",
        published="mini 55.71 ± 0.99 [S]",
        result="omniglot-snail-seed0",
        start=False,
        tiny={"key_sizes": (3,), "value_sizes": (2,), "filters": 2, "length": 3},
        traits={"order_invariant": False},
    ),
    record(
        memory.meta_networks,
        "Meta Networks",
        "Munkhdalai & Yu, ICML 2017",
        good_for="fast weights that are generated from the gradients of the examples",
        published="mini 49.21 ± 0.96 [S]",
        start=False,
        tiny={"representation": 4, "hidden": 3, "generator": 3},
        traits={"order_invariant": False},
    ),
)
