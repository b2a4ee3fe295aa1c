"""Records of learners by reward."""

from __future__ import annotations

from metalearn.algorithms import reward
from metalearn.algorithms.record import Record, record

RECORDS: tuple[Record, ...] = (
    record(
        reward.maml_rl,
        "MAML-RL",
        "Finn et al., ICML 2017",
        batches="episodes",
        good_for="policies that a few policy gradients adapt to a new task",
        published="2-D navigation: return -20.3 ± 3.2 after adaptation [S]",
        result="control-navigation-maml-seed0",
        tiny={"inner_rate": 0.5},
        # The baseline is a least-squares fit to few episodes, which makes much of rounding.
        traits={"tolerance": 1e-3},
    ),
)
