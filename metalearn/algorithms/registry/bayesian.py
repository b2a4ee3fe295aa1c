"""Records of learners with a posterior of the weights."""

from __future__ import annotations

from metalearn.algorithms import bayesian
from metalearn.algorithms.record import Record, record

RECORDS: tuple[Record, ...] = (
    record(
        bayesian.llama,
        "LLAMA",
        "Grant et al., ICLR 2018",
        good_for="MAML as empirical Bayes: a Laplace posterior around the adapted weights",
        published="mini 49.40 ± 1.83 [S]",
        result="calibration-ambiguous-maml",
        start=False,
    ),
    record(
        bayesian.platipus,
        "PLATIPUS",
        "Finn et al., NeurIPS 2018",
        good_for="ambiguous tasks: a Gaussian of initialisations",
        published="mini 50.13 ± 1.86 [S]",
        result="calibration-ambiguous-maml",
        start=False,
        tiny={"combine": "mean", "num_samples": 2},
    ),
    record(
        bayesian.bmaml,
        "BMAML",
        "Yoon et al., NeurIPS 2018",
        good_for="ambiguous tasks: particles that sample the posterior",
        result="calibration-ambiguous-maml",
        start=False,
        tiny={"num_particles": 2},
    ),
    record(
        bayesian.emaml,
        "EMAML",
        "baseline of Yoon et al., NeurIPS 2018",
        good_for="an ensemble of MAML learners",
        result="calibration-ambiguous-maml",
        start=False,
        tiny={"num_particles": 2},
    ),
)
