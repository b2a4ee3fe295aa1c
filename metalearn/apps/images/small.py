"""Comparisons that take minutes on two cores: each system beside its baseline.

Images are 14x14 characters of Omniglot and the network is a strided Conv4 of width 16, so
that several seeds of a system and of its baseline fit into a quarter of an hour. These
recipes compare systems on the same tasks after the same number of steps. The recipes on
whole images show the accuracy that a system reaches. In MAML and its relatives scale and
offset of norm layers adapt with the rest.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import sgd


def _recipe(learner: Learner, app: dict[str, Any], **rest: Any) -> Recipe:
    images: dict[str, Any] = {
        "dataset": "omniglot",
        "split": "lake",
        "shrink": 2,
        "width": 16,
        "downsample": "stride",
    }
    shared: dict[str, Any] = {
        "steps": 4000,
        "validate_every": 1000,
        "checkpoint_every": 2000,
        "log_every": 500,
    }
    return Recipe(app=FewShotImages(**images | app), learner=learner, **shared | rest)


def _five(learner: Learner, description: str, **rest: Any) -> Entry:
    recipe = _recipe(learner, {}, **rest)
    return Entry(f"{description}; Omniglot at 14x14, 5-way 1-shot", recipe)


def _twenty(learner: Learner, description: str) -> Entry:
    app: dict[str, Any] = {"ways": 20, "eval_queries": 5}
    recipe = _recipe(learner, app, tasks_per_step=8, validation_tasks=100)
    return Entry(f"{description}; Omniglot at 14x14, 20-way 1-shot", recipe)


def _ambiguous(learner: Learner, description: str) -> Entry:
    recipe = _recipe(learner, {"shrink": 4, "train_classes": 25, "queries": 5})
    return Entry(f"{description}; 100 classes of Omniglot at 7x7, 5-way 1-shot", recipe)


def _rules(learner: Learner, description: str) -> Entry:
    app: dict[str, Any] = {"ways": 2, "shots": 5, "queries": 5}
    app["ambiguous_styles"] = ("original", "inverted")
    recipe = _recipe(learner, app, steps=2000, validate_every=500)
    return Entry(f"{description}; by character or by style, 14x14, 2-way 5-shot", recipe)


_SGD = sgd(0.4)

RECIPES: dict[str, Entry] = {
    "small-maml": _five(
        learners.MAML(inner_opt=_SGD), "MAML, one inner step: the baseline"
    ),
    "small-maml-5-steps": _five(
        learners.MAML(inner_opt=sgd(0.1), num_steps=5), "MAML, five inner steps"
    ),
    "small-fomaml": _five(
        learners.FOMAML(inner_opt=_SGD), "MAML without second derivatives"
    ),
    "small-boil": _five(
        learners.BOIL(inner_opt=_SGD), "BOIL (the body adapts, the head does not)"
    ),
    "small-meta-sgd": _five(
        learners.MetaSGD(initial_rate=0.4), "Meta-SGD (learned inner rates)"
    ),
    "small-meta-curvature": _five(
        learners.MetaCurvature(rate=0.4),
        "Meta-Curvature (learned matrices transform the inner gradient)",
    ),
    "small-t-net": _five(
        learners.TNet(inner_opt=_SGD), "T-net (a learned matrix after every layer)"
    ),
    "small-mt-net": _five(
        learners.MTNet(inner_opt=_SGD), "MT-net (the same, and a learned choice of units)"
    ),
    "small-cavia": _five(
        learners.CAVIA(rate=1.0, num_steps=2), "CAVIA (a context vector adapts)"
    ),
    # What is left of CAVIA's network without the context: the norm that stands before its
    # FiLM layer.
    "small-maml-norm": _five(
        learners.MAML(inner_opt=sgd(1.0), num_steps=2, adapt_filter=r"(^|/)Norm_2/"),
        "MAML of the third norm's scale and offset alone: a control of CAVIA",
    ),
    "small-alpha-maml": _five(
        learners.AlphaMAML(initial_rate=0.4),
        "Alpha MAML (inner and outer rate follow hypergradients)",
        outer=learners.AlphaMAMLOuter(
            learning_rate=2e-3, rule="multiplicative", alpha_rate=0.02, beta_rate=0.02
        ),
    ),
    "small-imaml": _five(
        # The settings of the released code. Without the damping conjugate gradients meet
        # negative curvature in four tasks of five.
        learners.IMAML(
            inner_opt=sgd(0.1), num_steps=16, lam=2.0, pull_back=True, damping=22.0
        ),
        "iMAML (the meta-gradient of a proximal minimum)",
    ),
    "small-warpgrad": _five(
        learners.WarpGrad(inner_opt=sgd(0.1), num_steps=5),
        "WarpGrad (layers that make every inner step better)",
    ),
    "small-bmg": _five(
        learners.BMG(inner_opt=_SGD, target_steps=3, target_rate=0.4),
        "BMG (bootstrapped meta-gradients)",
    ),
    "small-sharp-maml": _five(
        learners.SharpMAML(inner_opt=_SGD, inner_radius=0.005, outer_radius=0.0),
        "Sharp-MAML (flat minima inside)",
    ),
    "small20-maml": _twenty(
        learners.MAML(inner_opt=sgd(0.1), num_steps=5),
        "MAML, five inner steps: the baseline",
    ),
    "small20-maml-plus-plus": _twenty(
        learners.MAMLPlusPlus(initial_rate=0.1, num_steps=5, msl_steps=2000), "MAML++"
    ),
    # At 7x7 many characters look the same, and a learner that has seen a hundred classes,
    # 25 in four rotations, is too sure of new ones. Every inner rate has the best
    # likelihood on validation classes.
    "ambiguous-maml": _ambiguous(learners.MAML(inner_opt=sgd(0.1)), "MAML: the baseline"),
    "ambiguous-emaml": _ambiguous(
        learners.EMAML(inner_opt=sgd(0.2), num_particles=5), "five MAML learners, averaged"
    ),
    "ambiguous-bmaml": _ambiguous(
        learners.BMAML(inner_opt=_SGD, num_particles=5), "BMAML with the chaser loss"
    ),
    "ambiguous-bmaml-query": _ambiguous(
        learners.BMAML(inner_opt=_SGD, num_particles=5, objective="query"),
        "BMAML with the loss of its averaged predictions",
    ),
    "ambiguous-platipus": _ambiguous(
        learners.PLATIPUS(inner_opt=sgd(0.2), combine="mean", kl_weight=0.01),
        "PLATIPUS",
    ),
    "ambiguous-llama": _ambiguous(
        learners.LLAMA(
            inner_opt=sgd(0.2),
            num_samples=10,
            curvature="last_layer",
            prior_precision=100.0,
        ),
        "LLAMA, with samples of the head",
    ),
    # The support set fits two rules; one of them labels all queries of a task.
    "rules-maml": _rules(learners.MAML(inner_opt=_SGD), "MAML: the baseline"),
    "rules-emaml": _rules(
        learners.EMAML(inner_opt=_SGD, num_particles=5), "five MAML learners, averaged"
    ),
    "rules-bmaml": _rules(
        learners.BMAML(inner_opt=_SGD, num_particles=5, objective="joint"),
        "BMAML with the likelihood of whole query sets",
    ),
    "rules-platipus": _rules(
        learners.PLATIPUS(inner_opt=_SGD, combine="probabilities", kl_weight=0.01),
        "PLATIPUS",
    ),
    "rules-llama": _rules(
        learners.LLAMA(
            inner_opt=_SGD, num_samples=10, curvature="last_layer", prior_precision=100.0
        ),
        "LLAMA, with samples of the head",
    ),
}
