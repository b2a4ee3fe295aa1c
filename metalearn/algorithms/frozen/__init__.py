"""Strong baselines: a network trained as a classifier, and what a task makes of it."""

from metalearn.algorithms.frozen.adapters import tsa
from metalearn.algorithms.frozen.baseline_plus_plus import baseline_plus_plus
from metalearn.algorithms.frozen.centroids import (
    nearest_centroid,
    nearest_neighbours,
    simple_shot,
)
from metalearn.algorithms.frozen.linear_probe import linear_probe
from metalearn.algorithms.frozen.meta_baseline import meta_baseline
from metalearn.algorithms.frozen.transductive import transductive_fine_tune

__all__ = [
    "baseline_plus_plus",
    "linear_probe",
    "meta_baseline",
    "nearest_centroid",
    "nearest_neighbours",
    "simple_shot",
    "transductive_fine_tune",
    "tsa",
]
