"""Records of learners whose classifier is the solution of a convex problem."""

from __future__ import annotations

from typing import Any

from metalearn.algorithms import closed_form
from metalearn.algorithms.record import Record, record

_SHARED: dict[str, Any] = {
    "start": False,
    "fixed_head": False,
    "traits": {"relabelling": True},
}

RECORDS: tuple[Record, ...] = (
    record(
        closed_form.r2d2,
        "R2-D2",
        "Bertinetto et al., ICLR 2019",
        good_for="ridge regression in closed form on learned features",
        published="mini 51.8 ± 0.2, CIFAR-FS 65.4 ± 0.2 [S]",
        result="against-small-r2d2",
        **_SHARED,
    ),
    record(
        closed_form.lr_d2,
        "LR-D2",
        "Bertinetto et al., ICLR 2019",
        good_for="logistic regressions by a few steps of Newton's",
        result="against-small-lr-d2",
        **_SHARED,
    ),
    record(
        closed_form.metaoptnet,
        "MetaOptNet",
        "Lee et al., CVPR 2019",
        good_for="support vector machines on learned features",
        published="mini 62.64 ± 0.61 (ResNet-12) [P]",
        result="against-small-metaoptnet",
        tiny={"iterations": 20},
        **_SHARED,
    ),
    record(
        closed_form.metaoptnet_ridge,
        "MetaOptNet-ridge",
        "Lee et al., CVPR 2019",
        good_for="the same with ridge regression",
        published="mini 61.41 ± 0.61 (ResNet-12) [P]",
        result="against-small-metaoptnet-ridge",
        **_SHARED,
    ),
    record(
        closed_form.dkt,
        "DKT",
        "Patacchiola et al., NeurIPS 2020",
        good_for="Gaussian processes whose kernel is learned by the marginal likelihood",
        result="against-small-dkt",
        **_SHARED,
    ),
)
