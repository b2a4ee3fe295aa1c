"""Recipes of whole images and of features.

In MAML and its relatives scale and offset of norm layers adapt with the rest, where the
released code of MAML has no scale and holds the offset; see `--learner.adapt-filter`.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.images.features import FewShotFeatures
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.apps.images.mixed import MixedImages
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, adam, sgd

_MAML = learners.MAML(inner_opt=sgd(0.4))
# A head needs more steps than a whole network, and smaller ones, because its input
# features are large.
_ANIL = learners.ANIL(inner_opt=sgd(0.1), num_steps=5)
_META_SGD = learners.MetaSGD(initial_rate=0.4)
_FINE_TUNE = learners.FineTuning(opt=sgd(0.1), num_steps=100)
_PROTONET: dict[str, Any] = {"ways": 20, "eval_ways": 5, "queries": 5}


def _glyphs(learner: Learner, app: dict[str, Any] | None = None, **rest: Any) -> Recipe:
    return Recipe(app=FewShotImages(**app or {}), learner=learner, **rest)


def _omniglot(learner: Learner, app: dict[str, Any] | None = None, **rest: Any) -> Recipe:
    # With pooling a task costs twice as much as with strides (Finn et al. 2017), and more
    # is learned from a task.
    shared: dict[str, Any] = {
        "steps": 12_000,
        "log_every": 200,
        "validate_every": 1000,
        "checkpoint_every": 1000,
    }
    images: dict[str, Any] = {"dataset": "omniglot", "split": "lake"}
    images |= app or {}
    return Recipe(app=FewShotImages(**images), learner=learner, **shared | rest)


def reptile(rate: float) -> Learner:
    """Reptile of Nichol et al. 2018 with an inner rate."""
    return learners.Reptile(
        inner_opt=adam(rate, b1=0.0, eps_root=0.0),
        num_steps=5,
        batch_size=10,
        eval_steps=50,
        eval_batch_size=5,
        carry_opt_state=True,
    )


# Reptile learns from support and query together: ten examples of a class.
REPTILE_APP: dict[str, Any] = {"shots": 5, "queries": 5, "eval_shots": 1}
REPTILE: dict[str, Any] = {
    "outer": Outer(name="sgd", rate=1.0, schedule="linear"),
    "tasks_per_step": 5,
}
_REPTILE_RATE = 5e-3  # 1e-3 in the paper, for eight times as many steps


def _mixed(learner: Learner, **app: Any) -> Recipe:
    """Tasks like Plain-Multi of Yao et al. 2019, section 5.2, from other image sets.

    These sets share scripts and animals: the Greek of Omniglot, say, is what glyphs test.
    """
    app = {"queries": 5, "shared_classes": "leave_out"} | app
    return Recipe(
        app=MixedImages(**app),
        learner=learner,
        outer=Outer(rate=1e-3),
        steps=6000,
        validate_every=1000,
        validation_tasks=800,
        test_tasks=2000,
        checkpoint_every=1000,
    )


_STYLED: dict[str, Any] = {"styles": ("original", "blurred", "edges")}
_MIXED_MAML = learners.MAML(inner_opt=sgd(0.1), num_steps=3)
_MIXED_HSML = learners.HSML(inner_opt=sgd(0.1), num_steps=3, hidden=40)
_MIXED_MUMOMAML = learners.MuMoMAML(inner_opt=sgd(0.1), num_steps=3, hidden=40)


def _features(learner: Learner) -> Recipe:
    """Recipe on the features that `python -m benchmarks features` makes."""
    return Recipe(
        app=FewShotFeatures(),
        learner=learner,
        outer=Outer(rate=1e-3),
        steps=5000,
        validate_every=1000,
        checkpoint_every=5000,
    )


RECIPES: dict[str, Entry] = {
    # Two cores, no download.
    "glyphs-maml": Entry(
        "MAML on printed characters, 5-way 1-shot; the default",
        _glyphs(_MAML),
        "91.3 ± 0.7 % inductive; 5 minutes of training on two cores",
    ),
    "glyphs-maml-long": Entry("the same for longer", _glyphs(_MAML, steps=10_000)),
    "glyphs-protonet": Entry(
        "prototypical networks on printed characters, 5-way 1-shot",
        _glyphs(learners.ProtoNet(), _PROTONET, tasks_per_step=4),
    ),
    "glyphs-anil": Entry(
        "ANIL (only the head adapts) on printed characters, 5-way 1-shot",
        _glyphs(_ANIL),
        "90.7 ± 0.7 % inductive; paired with glyphs-maml -0.7 ± 0.6 points",
    ),
    "glyphs-meta-sgd": Entry(
        "Meta-SGD (learned inner rates) on printed characters, 5-way 1-shot",
        _glyphs(_META_SGD),
        "92.5 ± 0.6 % inductive; paired with glyphs-maml +1.2 ± 0.4 points",
    ),
    "glyphs-reptile": Entry(
        "Reptile on printed characters, 5-way 1-shot",
        _glyphs(reptile(_REPTILE_RATE), REPTILE_APP, **REPTILE),
    ),
    # Two cores, with the Omniglot archives.
    "omniglot-maml": Entry(
        "MAML on Omniglot, alphabets disjoint, 5-way 1-shot",
        _omniglot(_MAML),
        "96.0 ± 0.4 % inductive on two cores",
    ),
    "omniglot-fomaml": Entry(
        "first-order MAML on Omniglot, 5-way 1-shot",
        _omniglot(learners.FOMAML(inner_opt=sgd(0.4))),
    ),
    "omniglot-anil": Entry(
        "ANIL (only the head adapts) on Omniglot, 5-way 1-shot", _omniglot(_ANIL)
    ),
    "omniglot-boil": Entry(
        "BOIL (all but the head adapts) on Omniglot, 5-way 1-shot",
        _omniglot(learners.BOIL(inner_opt=sgd(0.4))),
    ),
    "omniglot-meta-sgd": Entry(
        "Meta-SGD (learned inner rates) on Omniglot, 5-way 1-shot", _omniglot(_META_SGD)
    ),
    "omniglot-reptile": Entry(
        "Reptile on Omniglot, 5-way 1-shot",
        _omniglot(
            reptile(_REPTILE_RATE), REPTILE_APP, **REPTILE | {"validate_every": 2000}
        ),
        "93.9 ± 0.5 % inductive, 95.4 ± 0.4 % transductive; two cores",
    ),
    "omniglot-protonet": Entry(
        "prototypical networks on Omniglot, 5-way 1-shot",
        _omniglot(
            learners.ProtoNet(),
            _PROTONET | {"downsample": "stride"},
            steps=5000,
            tasks_per_step=4,
        ),
        "96.6 ± 0.4 % inductive on two cores",
    ),
    "omniglot-protonet-20way": Entry(
        "prototypical networks on Omniglot, 20-way 1-shot",
        _omniglot(
            learners.ProtoNet(),
            _PROTONET | {"downsample": "stride", "eval_ways": 20, "eval_queries": 5},
            steps=5000,
            tasks_per_step=4,
        ),
        "89.7 ± 0.4 % inductive; 9 minutes of training on two cores",
    ),
    "omniglot-fine-tune": Entry(
        "baseline: joint classifier, then a new head fitted to each task",
        _omniglot(_FINE_TUNE),
    ),
    # Several image sets at once, in the folders of --data-dir.
    "mixed-maml": Entry(
        "MAML on tasks from four image sets, 28x28 grey, 5-way 1-shot", _mixed(_MIXED_MAML)
    ),
    "mixed-mumomaml": Entry(
        "a task embedding gates the initialisation, on the same mixture of image sets",
        _mixed(_MIXED_MUMOMAML),
    ),
    "mixed-hsml": Entry(
        "HSML (a learned hierarchy of tasks) on the same mixture of image sets",
        _mixed(_MIXED_HSML),
    ),
    "styled-maml": Entry(
        "MAML on tasks from four image sets in three styles, 28x28 grey, 5-way 1-shot",
        _mixed(_MIXED_MAML, **_STYLED),
    ),
    "styled-hsml": Entry(
        "HSML (a learned hierarchy of tasks) on the same twelve kinds of images",
        _mixed(_MIXED_HSML, **_STYLED),
    ),
    "features-maml": Entry(
        "MAML of a linear classifier on fixed features, 5-way 1-shot",
        _features(learners.MAML(inner_opt=sgd(4.0), num_steps=5)),
    ),
    "features-leo": Entry(
        "LEO (a code of each class is adapted) on fixed features, 5-way 1-shot",
        _features(learners.LEO(latents=64, kl_weight=0.01)),
    ),
}
