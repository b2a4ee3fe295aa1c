"""Learners of a space in which distances classify."""

from metalearn.algorithms.metric.arc import attentive_recurrent_comparator
from metalearn.algorithms.metric.feat import feat
from metalearn.algorithms.metric.frn import frn
from metalearn.algorithms.metric.gnn import few_shot_gnn
from metalearn.algorithms.metric.matching import matching_networks
from metalearn.algorithms.metric.mixture import infinite_mixture_prototypes
from metalearn.algorithms.metric.protonet import protonet
from metalearn.algorithms.metric.relation import relation_network
from metalearn.algorithms.metric.siamese import siamese_network

__all__ = [
    "attentive_recurrent_comparator",
    "feat",
    "few_shot_gnn",
    "frn",
    "infinite_mixture_prototypes",
    "matching_networks",
    "protonet",
    "relation_network",
    "siamese_network",
]
