"""One model for all tasks, which a second level trains: it does not adapt at test."""

from metalearn.algorithms.joint.dann import dann
from metalearn.algorithms.joint.l2rw import clean_weights, l2rw
from metalearn.algorithms.joint.meta_dann import meta_dann
from metalearn.algorithms.joint.meta_distil import meta_distil, soft_loss
from metalearn.algorithms.joint.meta_weight_net import loss_weights, meta_weight_net
from metalearn.algorithms.joint.metareg import metareg
from metalearn.algorithms.joint.mldg import mldg

__all__ = [
    "clean_weights",
    "dann",
    "l2rw",
    "loss_weights",
    "meta_dann",
    "meta_distil",
    "meta_weight_net",
    "metareg",
    "mldg",
    "soft_loss",
]
