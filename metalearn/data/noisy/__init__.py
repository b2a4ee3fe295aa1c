"""Sets of images with wrong labels or few of some classes, and a clean part beside them."""

from metalearn.data.noisy.corruption import FLIPS, flipped, long_tail
from metalearn.data.noisy.parts import (
    Labelled,
    NoisySet,
    check_labels,
    check_set,
    split_of,
)
from metalearn.data.noisy.reading import SETS, load_labelled, load_own

__all__ = [
    "FLIPS",
    "SETS",
    "Labelled",
    "NoisySet",
    "check_labels",
    "check_set",
    "flipped",
    "load_labelled",
    "load_own",
    "long_tail",
    "split_of",
]
