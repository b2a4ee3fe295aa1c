"""Meta-learning algorithms, one family a file; none imports another."""

from metalearn.algorithms.baselines import fine_tune, no_adaptation
from metalearn.algorithms.hsml import hsml, mumomaml
from metalearn.algorithms.maml import anil, boil, fomaml, maml, meta_sgd
from metalearn.algorithms.protonet import protonet
from metalearn.algorithms.reptile import reptile

__all__ = [
    "anil",
    "boil",
    "fine_tune",
    "fomaml",
    "hsml",
    "maml",
    "meta_sgd",
    "mumomaml",
    "no_adaptation",
    "protonet",
    "reptile",
]
