"""Learners of an initialisation, of rates or of a metric for gradient descent."""

from metalearn.algorithms.gradient.alpha_maml import (
    alpha_maml,
    alpha_maml_optimiser,
    hypergradient_descent,
)
from metalearn.algorithms.gradient.bmg import bmg
from metalearn.algorithms.gradient.chaml import Pool, chaml
from metalearn.algorithms.gradient.es_maml import es_maml
from metalearn.algorithms.gradient.g_meta import g_meta
from metalearn.algorithms.gradient.imaml import imaml
from metalearn.algorithms.gradient.kfo import kfo
from metalearn.algorithms.gradient.maml import anil, boil, fomaml, maml, meta_sgd
from metalearn.algorithms.gradient.maml_plus_plus import maml_plus_plus
from metalearn.algorithms.gradient.melu import evidence, melu
from metalearn.algorithms.gradient.meta_curvature import meta_curvature
from metalearn.algorithms.gradient.meta_embedding import meta_embedding
from metalearn.algorithms.gradient.reptile import reptile
from metalearn.algorithms.gradient.sharp_maml import sharp_maml
from metalearn.algorithms.gradient.tnet import mt_net, t_net
from metalearn.algorithms.gradient.warpgrad import warpgrad

__all__ = [
    "Pool",
    "alpha_maml",
    "alpha_maml_optimiser",
    "anil",
    "bmg",
    "boil",
    "chaml",
    "es_maml",
    "evidence",
    "fomaml",
    "g_meta",
    "hypergradient_descent",
    "imaml",
    "kfo",
    "maml",
    "maml_plus_plus",
    "melu",
    "meta_curvature",
    "meta_embedding",
    "meta_sgd",
    "mt_net",
    "reptile",
    "sharp_maml",
    "t_net",
    "warpgrad",
]
