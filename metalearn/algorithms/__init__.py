"""Meta-learning algorithms, one family a file; none imports another."""

from metalearn.algorithms.alpha_maml import alpha_maml
from metalearn.algorithms.baselines import fine_tune, no_adaptation
from metalearn.algorithms.bmaml import bmaml, emaml
from metalearn.algorithms.bmg import bmg
from metalearn.algorithms.cavia import cavia
from metalearn.algorithms.es_maml import es_maml
from metalearn.algorithms.hsml import hsml, mumomaml
from metalearn.algorithms.imaml import imaml
from metalearn.algorithms.leo import leo
from metalearn.algorithms.llama import llama
from metalearn.algorithms.maml import anil, boil, fomaml, maml, meta_sgd
from metalearn.algorithms.maml_plus_plus import maml_plus_plus
from metalearn.algorithms.meta_curvature import meta_curvature
from metalearn.algorithms.platipus import platipus
from metalearn.algorithms.protonet import protonet
from metalearn.algorithms.reptile import reptile
from metalearn.algorithms.sharp_maml import sharp_maml
from metalearn.algorithms.tnet import mt_net, t_net
from metalearn.algorithms.warpgrad import warpgrad

__all__ = [
    "alpha_maml",
    "anil",
    "bmaml",
    "bmg",
    "boil",
    "cavia",
    "emaml",
    "es_maml",
    "fine_tune",
    "fomaml",
    "hsml",
    "imaml",
    "leo",
    "llama",
    "maml",
    "maml_plus_plus",
    "meta_curvature",
    "meta_sgd",
    "mt_net",
    "mumomaml",
    "no_adaptation",
    "platipus",
    "protonet",
    "reptile",
    "sharp_maml",
    "t_net",
    "warpgrad",
]
