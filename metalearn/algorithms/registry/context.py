"""Records of learners in which a code or a gate adapts."""

from __future__ import annotations

from metalearn import models
from metalearn.algorithms import context
from metalearn.algorithms.record import Record, record

RECORDS: tuple[Record, ...] = (
    record(
        context.cavia,
        "CAVIA",
        "Zintgraf et al., ICML 2019",
        good_for="a small vector that describes the task adapts",
        published="mini 47.24 ± 0.65 (32 filters) [S]",
        result="against-sinusoid-cavia",
        networks={"mlp": models.ContextMLP, "conv4": models.FilmConv4},
        curves=True,
    ),
    record(
        context.leo,
        "LEO",
        "Rusu et al., ICLR 2019",
        good_for="classifiers on features of a large pre-trained network",
        published="mini 61.76 ± 0.08 [P]",
        result="against-features-leo",
        start=False,
        tiny={"latents": 4, "num_steps": 2, "fine_tune_steps": 1, "latent_rate": 0.1},
    ),
    record(
        context.hsml,
        "HSML",
        "Yao et al., ICML 2019",
        good_for="tasks of several kinds: a learned tree of clusters gates the start",
        published="mini 50.38 [S]",
        result="families-10shot",
        since={"ordered": False},
        tiny={"num_steps": 1, "tree": (2, 1), "hidden": 4, "aggregator": "mean"},
    ),
    record(
        context.mumomaml,
        "MuMoMAML",
        "after Vuorio et al., NeurIPS 2019",
        good_for="tasks of several kinds: a task embedding gates the start",
        result="families-10shot",
        since={"ordered": False},
        tiny={"num_steps": 1, "hidden": 4, "aggregator": "mean"},
    ),
)
