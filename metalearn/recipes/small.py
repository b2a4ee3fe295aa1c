"""Comparisons that take minutes on two cores: each system beside its baseline.

Images are 14x14 characters of Omniglot and the network is a strided Conv4 of width 16, so
that several seeds of a system and of its baseline fit into a quarter of an hour. What is
asked is which is better on the same tasks after the same number of steps; for the level
that a system reaches take the recipes on whole images.
"""

from __future__ import annotations

from metalearn.recipes.base import Entry
from metalearn.recipes.images import ImageRecipe

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


SMALL: dict[str, Entry] = {
    "small-maml": _five("maml", "MAML, one inner step: the baseline"),
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
        schedule="constant",
        options=("rule=multiplicative", "alpha_rate=0.02", "beta_rate=0.02"),
    ),
    "small-imaml": _five(
        "imaml",
        "iMAML (the meta-gradient of a proximal minimum)",
        inner_rate=0.1,
        inner_steps=16,
        options=("lam=0.5",),
    ),
    "small20-maml": _twenty("maml", "MAML, five inner steps: the baseline"),
    "small20-maml-plus-plus": _twenty(
        "maml_plus_plus", "MAML++", options=("msl_steps=2000",)
    ),
}
