"""Records of the baselines."""

from __future__ import annotations

from metalearn.algorithms import baselines
from metalearn.algorithms.record import Record, record

RECORDS: tuple[Record, ...] = (
    record(
        baselines.fine_tune,
        "Fine-tuning",
        "Chen et al., ICLR 2019",
        good_for="baseline: a new head on joint training",
        fixed_head=False,
        tiny={"num_steps": 2},
        traits={"relabelling": True},
    ),
    record(baselines.no_adaptation, "No adaptation", "", good_for="baseline: the floor"),
)
