"""Records of learners on frozen features: strong baselines."""

from __future__ import annotations

from typing import Any

from metalearn import models
from metalearn.algorithms import frozen
from metalearn.algorithms.record import Record, record

_SHARED: dict[str, Any] = {"start": False, "fixed_head": False}
_RENAMED = {"relabelling": True}

RECORDS: tuple[Record, ...] = (
    record(
        frozen.nearest_centroid,
        "Classifier-Baseline",
        "Chen et al., ICCV 2021",
        good_for="baseline: cosines to class means of a trained classifier's features",
        published="mini 58.91 (ResNet-12) [P]",
        traits=_RENAMED,
        **_SHARED,
    ),
    record(
        frozen.meta_baseline,
        "Meta-Baseline",
        "Chen et al., ICCV 2021",
        good_for="the same, fine-tuned on episodes",
        published="mini 63.17 (ResNet-12) [P]",
        result="against-small-meta-baseline",
        tiny={"pretrain_steps": 1},
        traits=_RENAMED,
        **_SHARED,
    ),
    record(
        frozen.simple_shot,
        "SimpleShot",
        "Wang et al., arXiv 2019",
        good_for="baseline: nearest mean of centred features of length one",
        traits=_RENAMED,
        **_SHARED,
    ),
    record(
        frozen.nearest_neighbours,
        "Nearest neighbours",
        "",
        good_for="baseline: a vote of the nearest frozen features",
        traits=_RENAMED,
        **_SHARED,
    ),
    record(
        frozen.linear_probe,
        "Linear probe",
        "",
        good_for="baseline: logistic regression on frozen features, to convergence",
        tiny={"num_steps": 4},
        traits=_RENAMED,
        **_SHARED,
    ),
    record(
        frozen.baseline_plus_plus,
        "Baseline++",
        "Chen et al., ICLR 2019",
        good_for="baseline: a cosine classifier, in training and in a task",
        published="mini 48.24 ± 0.75 (Conv4) [P]",
        tiny={"num_epochs": 3},
        **_SHARED,
    ),
    record(
        frozen.transductive_fine_tune,
        "Transductive fine-tuning",
        "Dhillon et al., ICLR 2020",
        good_for="all queries of a task at once: their entropy is lowered (transductive)",
        published="mini 65.73 ± 0.68 (WRN-28-10) [P]",
        tiny={"rate": 0.1, "num_steps": 2, "eps": 1e-2},
        traits={"relabelling": True, "transductive": True},
        **_SHARED,
    ),
    record(
        frozen.tsa,
        "TSA",
        "Li et al., CVPR 2022",
        good_for="other domains: small adapters in a frozen network fit a task",
        networks={"conv4": models.AdapterConv4, "mlp": models.AdapterMLP},
        tiny={"num_steps": 2},
        traits=_RENAMED,
        **_SHARED,
    ),
)
