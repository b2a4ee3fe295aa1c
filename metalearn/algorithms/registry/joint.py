"""Records of learners of one persistent model."""

from __future__ import annotations

from metalearn.algorithms.joint import metareg, mldg
from metalearn.algorithms.record import Record, record

RECORDS: tuple[Record, ...] = (
    record(
        mldg,
        "MLDG",
        "Li et al., AAAI 2018",
        good_for="domains that training has not seen",
        tiny={"inner_rate": 0.1},
    ),
    record(
        metareg,
        "MetaReg",
        "Balaji et al., NeurIPS 2018",
        good_for="domains that training has not seen: a learned regulariser",
        tiny={"pretrain_steps": 2, "inner_steps": 2},
    ),
)
