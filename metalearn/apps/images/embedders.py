"""Recipes of learners that embed examples and classify among the embeddings.

`omniglot-NAME` are on whole images, 28x28, and show the accuracy that a system reaches.
`small-NAME` are on images of 14x14 with a network of width 16; they take a minute on a
core, so that three seeds of each can be compared with prototypical networks.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.apps.learners import Learner

_OMNIGLOT: dict[str, Any] = {"dataset": "omniglot", "split": "lake", "downsample": "stride"}
# More classes in training than at test, as Snell et al. 2017 have it.
_MANY = {"ways": 20, "eval_ways": 5, "queries": 5}
_FIVE = {"ways": 5, "queries": 5}
# A task of five classes is a batch whose statistics are its own: a network that trains by
# them does not find them in its running averages. Relation networks and SNAIL gained points
# on validation classes, one seed each; the other learners of five ways were not tried.
_RENORM = _FIVE | {"norm": "renorm"}
# Features of both signs, for directions and regressions: they gain points for matching
# networks and R2-D2 on validation classes, one seed; for the others that is assumed.
_SIGNED = _MANY | {"last_relu": False}


def _whole(learner: Learner, app: dict[str, Any], **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "steps": 5000,
        "tasks_per_step": 4 if app["ways"] == 20 else 16,
        "log_every": 200,
        "validate_every": 1000,
        "checkpoint_every": 1000,
    }
    return Recipe(app=FewShotImages(**_OMNIGLOT | app), learner=learner, **shared | rest)


def _small(learner: Learner, app: dict[str, Any], **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "steps": 2000,
        "tasks_per_step": 4 if app["ways"] == 20 else 16,
        "log_every": 500,
        "validate_every": 500,
        "checkpoint_every": 2000,
    }
    images = _OMNIGLOT | {"shrink": 2, "width": 16} | app
    return Recipe(app=FewShotImages(**images), learner=learner, **shared | rest)


_SYSTEMS: dict[str, tuple[str, Learner, dict[str, Any]]] = {
    "matching": ("matching networks", learners.MatchingNetworks(learn_scale=True), _SIGNED),
    "matching-fce": (
        "matching networks with full context embeddings",
        learners.MatchingNetworks(context="full", learn_scale=True),
        _SIGNED,
    ),
    # Each pair of a query and a class goes through a network: at 20 ways, sixteen times as
    # many pairs as at five.
    "relation": ("a relation network", learners.RelationNetwork(), _RENORM),
    "siamese": ("a siamese network", learners.SiameseNetwork(), _MANY),
    "imp": ("infinite mixture prototypes", learners.IMP(), _MANY),
    # The published penalty of 50 belongs to thousands of features. Few and small ones are
    # all but ignored by it, and training stalls.
    "r2d2": ("R2-D2", learners.R2D2(regularisation=0.1, learn="all"), _SIGNED),
    "lr-d2": ("LR-D2", learners.LRD2(regularisation=0.1, learn="all"), _SIGNED),
    "metaoptnet": ("MetaOptNet with an SVM", learners.MetaOptNet(scale=10.0), _SIGNED),
    "metaoptnet-ridge": (
        "MetaOptNet with ridge regression",
        learners.MetaOptNetRidge(regularisation=1.0, scale=5.0),
        _SIGNED,
    ),
    "dkt": ("deep kernel transfer", learners.DKT(), _MANY),
    "gnn": ("a graph network of the examples", learners.FewShotGNN(), _FIVE),
    "arc": ("an attentive recurrent comparator", learners.ARC(), _FIVE),
    "feat": ("FEAT", learners.FEAT(), _MANY),
    "frn": ("FRN", learners.FRN(), _MANY),
    "rnn": ("an LSTM as the learner", learners.RNN(), _FIVE),
    "mann": ("MANN", learners.MANN(rows=32), _FIVE),
    "snail": ("SNAIL", learners.SNAIL(), _RENORM),
    "meta-networks": ("meta networks", learners.MetaNetworks(), _FIVE),
    "meta-baseline": (
        "Meta-Baseline",
        learners.MetaBaseline(pretrain_steps=2500),
        _SIGNED,
    ),
}

# Half of the steps of each are those of the classifier.
_FEWER: dict[str, Learner] = {"meta-baseline": learners.MetaBaseline(pretrain_steps=1000)}
# Its accuracy on validation classes rose to the last step.
_LONGER = {"snail": {"steps": 16_000, "validate_every": 2000}}
# Distorted characters gained 0.3 points on validation classes after 1,000 steps, one seed,
# although training classes were told apart 0.9 points less often.
_TWENTY = _MANY | {"eval_ways": 20, "eval_queries": 5, "distort": 0.15}

RECIPES: dict[str, Entry] = {
    **{
        f"omniglot-{name}": Entry(
            f"{title} on Omniglot, 5-way 1-shot",
            _whole(learner, app, **_LONGER.get(name, {})),
        )
        for name, (title, learner, app) in _SYSTEMS.items()
        if name not in ("rnn", "mann")  # streams are what these are for
    },
    "omniglot-frn-20way": Entry(
        "FRN on Omniglot, 20-way 1-shot",
        _whole(learners.FRN(), _TWENTY, steps=3500, validate_every=500),
        "95.15 ± 0.25 % inductive; 68 minutes on one core",
    ),
    "omniglot-relation-many-ways": Entry(
        "a relation network trained on 20 ways, on Omniglot, 5-way 1-shot",
        _whole(learners.RelationNetwork(), _MANY),
        "for an accelerator",
    ),
    "small-protonet": Entry(
        "prototypical networks; Omniglot at 14x14, 5-way 1-shot",
        _small(learners.ProtoNet(), _MANY),
    ),
    **{
        f"small-{name}": Entry(
            f"{title}; Omniglot at 14x14, 5-way 1-shot",
            _small(_FEWER.get(name, learner), app),
        )
        for name, (title, learner, app) in _SYSTEMS.items()
    },
}
