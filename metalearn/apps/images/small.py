"""Comparisons that take minutes on two cores: each system beside its baseline.

Images are 14x14 characters of Omniglot and the network is a strided Conv4 of width 16, so
that several seeds of a system and of its baseline fit into a quarter of an hour. What is
asked is which is better on the same tasks after the same number of steps; for the level
that a system reaches take the recipes on whole images.
"""

from __future__ import annotations

from metalearn.apps.base import Entry
from metalearn.apps.images.recipe import ImageRecipe

_SMALL = {
    "dataset": "omniglot",
    "split": "lake",
    "shrink": 2,
    "width": 16,
    "downsample": "stride",
    "steps": 4000,
    "validate_every": 1000,
    "checkpoint_every": 2000,
    "log_every": 500,
}
_TWENTY = {
    **_SMALL,
    "ways": 20,
    "inner_steps": 5,
    "inner_rate": 0.1,
    "eval_queries": 5,
    "tasks_per_step": 8,
    "validation_tasks": 100,
}


def _five(algorithm: str, description: str, **settings: object) -> Entry:
    recipe = ImageRecipe(algorithm=algorithm, **_SMALL | settings)
    return Entry(f"{description}; Omniglot at 14x14, 5-way 1-shot", recipe)


def _twenty(algorithm: str, description: str, **settings: object) -> Entry:
    recipe = ImageRecipe(algorithm=algorithm, **_TWENTY | settings)
    return Entry(f"{description}; Omniglot at 14x14, 20-way 1-shot", recipe)


def _ambiguous(algorithm: str, description: str, **settings: object) -> Entry:
    few = {"shrink": 4, "train_classes": 25, "queries": 5}
    recipe = ImageRecipe(algorithm=algorithm, **_SMALL | few | settings)
    return Entry(f"{description}; 100 classes of Omniglot at 7x7, 5-way 1-shot", recipe)


def _rules(algorithm: str, description: str, **settings: object) -> Entry:
    two = {"ways": 2, "shots": 5, "queries": 5, "steps": 2000, "validate_every": 500}
    two["ambiguous_styles"] = ("original", "inverted")
    recipe = ImageRecipe(algorithm=algorithm, **_SMALL | two | settings)
    return Entry(f"{description}; by character or by style, 14x14, 2-way 5-shot", recipe)


SMALL: dict[str, Entry] = {
    "small-maml": _five("maml", "MAML, one inner step: the baseline"),
    "small-maml-5-steps": _five(
        "maml", "MAML, five inner steps", inner_rate=0.1, inner_steps=5
    ),
    "small-fomaml": _five("fomaml", "MAML without second derivatives"),
    "small-boil": _five("boil", "BOIL (the body adapts, the head does not)"),
    "small-meta-sgd": _five("meta_sgd", "Meta-SGD (learned inner rates)"),
    "small-meta-curvature": _five(
        "meta_curvature", "Meta-Curvature (learned matrices transform the inner gradient)"
    ),
    "small-t-net": _five("t_net", "T-net (a learned matrix after every layer)"),
    "small-mt-net": _five("mt_net", "MT-net (the same, and a learned choice of units)"),
    "small-cavia": _five(
        "cavia", "CAVIA (a context vector adapts)", inner_rate=1.0, inner_steps=2
    ),
    "small-alpha-maml": _five(
        "alpha_maml",
        "Alpha MAML (inner and outer rate follow hypergradients)",
        options=("rule=multiplicative", "alpha_rate=0.02", "beta_rate=0.02"),
    ),
    "small-imaml": _five(
        "imaml",
        "iMAML (the meta-gradient of a proximal minimum)",
        inner_rate=0.1,
        inner_steps=16,
        # As in the released code: without the damping conjugate gradients meet negative
        # curvature in four tasks of five.
        options=("lam=2.0", "pull_back=true", "damping=22.0"),
    ),
    "small-warpgrad": _five(
        "warpgrad",
        "WarpGrad (layers that make every inner step better)",
        inner_rate=0.1,
        inner_steps=5,
    ),
    "small-bmg": _five(
        "bmg",
        "BMG (bootstrapped meta-gradients)",
        options=("target_steps=3", "target_rate=0.4"),
    ),
    "small-sharp-maml": _five(
        "sharp_maml",
        "Sharp-MAML (flat minima inside)",
        options=("inner_radius=0.005", "outer_radius=0.0"),
    ),
    "small20-maml": _twenty("maml", "MAML, five inner steps: the baseline"),
    "small20-maml-plus-plus": _twenty(
        "maml_plus_plus", "MAML++", options=("msl_steps=2000",)
    ),
    # At 7x7 many characters look the same, and a learner that has seen a hundred classes,
    # 25 in four rotations, is too sure of new ones. Inner rates of MAML and BMAML: those of
    # the best likelihood on validation classes.
    "ambiguous-maml": _ambiguous("maml", "MAML: the baseline", inner_rate=0.1),
    "ambiguous-emaml": _ambiguous(
        "emaml", "five MAML learners, averaged", options=("num_particles=5",)
    ),
    "ambiguous-bmaml": _ambiguous(
        "bmaml",
        "BMAML with the chaser loss",
        options=("num_particles=5",),
    ),
    "ambiguous-bmaml-query": _ambiguous(
        "bmaml",
        "BMAML with the loss of its averaged predictions",
        options=("num_particles=5", "objective=query"),
    ),
    "ambiguous-platipus": _ambiguous(
        "platipus", "PLATIPUS", options=("combine=mean", "kl_weight=0.01")
    ),
    "ambiguous-llama": _ambiguous(
        "llama",
        "LLAMA, with samples of the head",
        options=("num_samples=10", "curvature=last_layer", "prior_precision=100.0"),
    ),
    # The support set fits two rules; one of them labels all queries of a task.
    "rules-maml": _rules("maml", "MAML: the baseline"),
    "rules-emaml": _rules(
        "emaml", "five MAML learners, averaged", options=("num_particles=5",)
    ),
    "rules-bmaml": _rules(
        "bmaml",
        "BMAML with the likelihood of whole query sets",
        options=("num_particles=5", "objective=joint"),
    ),
    "rules-platipus": _rules(
        "platipus", "PLATIPUS", options=("combine=probabilities", "kl_weight=0.01")
    ),
    "rules-llama": _rules(
        "llama",
        "LLAMA, with samples of the head",
        options=("num_samples=10", "curvature=last_layer", "prior_precision=100.0"),
    ),
}
