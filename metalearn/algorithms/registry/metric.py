"""Records of learners of a space in which distances classify."""

from __future__ import annotations

from metalearn import models
from metalearn.algorithms import metric
from metalearn.algorithms.record import Record, record

RECORDS: tuple[Record, ...] = (
    record(
        metric.protonet,
        "ProtoNet",
        "Snell et al., NeurIPS 2017",
        good_for="class means in a learned space; any number of ways",
        result="omniglot-protonet-seed0",
        start=False,
        fixed_head=False,
        traits={"relabelling": True},
    ),
    record(
        metric.matching_networks,
        "Matching Networks",
        "Vinyals et al., NeurIPS 2016",
        good_for="attention over single support examples, or LSTMs that read them",
        published="mini 43.56 ± 0.84 (FCE) [S]",
        result="against-small-matching",
        start=False,
        fixed_head=False,
        tiny={"context": "full", "read_steps": 2, "scale": 2.0},
        traits={"relabelling": True, "order_invariant": False},
    ),
    record(
        metric.relation_network,
        "Relation Network",
        "Sung et al., CVPR 2018",
        good_for="a learned comparison of maps",
        published="mini 50.44 ± 0.82 [S]",
        result="against-small-relation",
        start=False,
        fixed_head=False,
        networks={"conv4": models.ConvMaps},
        traits={"relabelling": True},
    ),
    record(
        metric.siamese_network,
        "Siamese network",
        "Koch et al., ICML workshop 2015",
        good_for="whether two examples are of one class, learned from pairs",
        result="against-small-siamese",
        start=False,
        fixed_head=False,
        traits={"relabelling": True},
    ),
    record(
        metric.infinite_mixture_prototypes,
        "IMP",
        "Allen et al., ICML 2019",
        good_for="classes of several kinds: as many prototypes as they need",
        published="mini 49.60 ± 0.80 [S]",
        result="against-small-imp",
        start=False,
        fixed_head=False,
        tiny={"alpha": 10.0, "sigma": 2.0},
        traits={"relabelling": True, "order_invariant": False},
    ),
)
