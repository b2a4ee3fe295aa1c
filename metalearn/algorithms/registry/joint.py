"""Records of learners of one persistent model."""

from __future__ import annotations

from metalearn.algorithms import joint
from metalearn.algorithms.record import Record, record

RECORDS: tuple[Record, ...] = (
    record(
        joint.mldg,
        "MLDG",
        "Li et al., AAAI 2018",
        batches="domains",
        good_for="domains that training has not seen",
        result="domains-pacs",
        tiny={"inner_rate": 0.1},
    ),
    record(
        joint.metareg,
        "MetaReg",
        "Balaji et al., NeurIPS 2018",
        batches="domains",
        good_for="domains that training has not seen: a learned regulariser",
        tiny={"pretrain_steps": 2, "inner_steps": 2},
    ),
    record(
        joint.dann,
        "DANN",
        "Ganin et al., JMLR 2016",
        batches="target",
        good_for="a domain of which only unlabelled images are there (transductive)",
        result="domains-rotated-mnist",
        tiny={"discriminator_width": 4},
    ),
    record(
        joint.meta_dann,
        "Meta-DANN",
        "Li and Hospedales, ECCV 2020",
        batches="target",
        good_for="the same, with steps for a good start of the adaptation (transductive)",
        result="domains-rotated-mnist",
        tiny={"discriminator_width": 4, "ahead_steps": 2},
    ),
    record(
        joint.l2rw,
        "L2RW",
        "Ren et al., ICML 2018",
        batches="clean",
        good_for="noisy or imbalanced labels: a few clean examples weigh the others",
        published="CIFAR-10, 40 % flips 86.92 ± 0.19 [S]",
        result="labels-plain",
    ),
    record(
        joint.meta_weight_net,
        "Meta-Weight-Net",
        "Shu et al., NeurIPS 2019",
        batches="clean",
        good_for="the same, by a learned function of the loss of an example",
        result="labels-plain",
        tiny={"hidden": 4},
    ),
    record(
        joint.meta_distil,
        "MetaDistil",
        "Zhou et al., ACL 2022",
        batches="quiz",
        good_for="a small student of a large teacher, who is trained to teach",
        result="distillation-banking77",
        tiny={"pretrain_steps": 0, "pilot_rate": 0.5},
    ),
)
