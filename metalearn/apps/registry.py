"""The table of recipes: one entry a recipe, only what differs from the defaults.

The defaults are those of `Recipe`, `ImageRecipe` and `SinusoidRecipe`.
"""

from __future__ import annotations

import difflib

from metalearn.apps.base import Entry, Recipe
from metalearn.apps.curves.recipe import SinusoidRecipe
from metalearn.apps.images.features import FeatureRecipe
from metalearn.apps.images.mixed import MixedImageRecipe
from metalearn.apps.images.recipe import ImageRecipe
from metalearn.apps.images.small import SMALL
from metalearn.apps.published import PUBLISHED

DEFAULT = "glyphs-maml"


# Pooling costs a task twice what strides do (Finn et al. 2017) and learns more from it.
_OMNIGLOT = {
    "dataset": "omniglot",
    "split": "lake",
    "steps": 12_000,
    "log_every": 200,
    "validate_every": 1000,
    "checkpoint_every": 1000,
}
_OMNIGLOT_RANDOM = {"dataset": "omniglot", "split": "random"}
# Reptile learns from support and query together: ten examples of a class.
_REPTILE = {
    "algorithm": "reptile",
    "inner_optimizer": "adam",
    "inner_b1": 0.0,
    "inner_rate": 5e-3,  # 1e-3 in the paper, for eight times as many steps
    "inner_steps": 5,
    "inner_batch": 10,
    "eval_inner_steps": 50,
    "eval_inner_batch": 5,
    "carry_opt_state": True,
    "shots": 5,
    "queries": 5,
    "eval_shots": 1,
    "outer_optimizer": "sgd",
    "outer_rate": 1.0,
    "schedule": "linear",
    "tasks_per_step": 5,
}
_PROTONET = {
    "algorithm": "protonet",
    "ways": 20,
    "eval_ways": 5,
    "queries": 5,
    "tasks_per_step": 4,
}
_OMNIGLOT_PROTONET = {**_PROTONET, "steps": 5000, "downsample": "stride"}
# A head needs more steps than a whole network, and small ones: it sees large features.
_ANIL = {"algorithm": "anil", "inner_rate": 0.1, "inner_steps": 5}
_FINE_TUNE = {
    "algorithm": "fine_tune",
    "inner_rate": 0.1,
    "inner_steps": 100,
}

_SINUSOID = {
    "outer_rate": 1e-3,
    "tasks_per_step": 25,
    "steps": 10_000,
    "log_every": 500,
    "validate_every": 2000,
    "checkpoint_every": 2000,
}

# The protocol of Yao et al. 2019, section 5.1; 5 shots with --shots 5.
_FAMILIES = {
    "functions": "families",
    "inner_rate": 1e-3,
    "inner_steps": 5,
    "outer_rate": 1e-3,
    "schedule": "cosine",  # constant in the paper
    "tasks_per_step": 25,
    "steps": 70_000,
    "eval_queries": 10,
    "test_tasks": 4000,
    "log_every": 1000,
    "validate_every": 5000,
    "validation_tasks": 1000,
    "checkpoint_every": 5000,
}

_FEATURES = {
    "steps": 5000,
    "outer_rate": 1e-3,
    "validate_every": 1000,
    "checkpoint_every": 5000,
}

# After Plain-Multi of Yao et al. 2019, section 5.2, with the image sets at hand.
_MIXED = {
    "inner_rate": 0.1,
    "inner_steps": 3,
    "queries": 5,
    "outer_rate": 1e-3,
    "steps": 6000,
    "validate_every": 1000,
    "validation_tasks": 800,
    "test_tasks": 2000,
    "checkpoint_every": 1000,
}
_STYLED = {**_MIXED, "styles": ("original", "blurred", "edges")}

RECIPES: dict[str, Entry] = {
    # Two cores, no download.
    "glyphs-maml": Entry(
        "MAML on printed characters, 5-way 1-shot; the default",
        ImageRecipe(),
        "91.4 ± 0.7 % inductive; 5 minutes of training on two cores",
    ),
    "glyphs-maml-long": Entry(
        "the same for longer",
        ImageRecipe(steps=10_000),
    ),
    "glyphs-protonet": Entry(
        "prototypical networks on printed characters, 5-way 1-shot",
        ImageRecipe(**_PROTONET),
    ),
    "glyphs-anil": Entry(
        "ANIL (only the head adapts) on printed characters, 5-way 1-shot",
        ImageRecipe(**_ANIL),
        "90.7 ± 0.7 % inductive; paired with glyphs-maml -0.7 ± 0.6 points",
    ),
    "glyphs-meta-sgd": Entry(
        "Meta-SGD (learned inner rates) on printed characters, 5-way 1-shot",
        ImageRecipe(algorithm="meta_sgd"),
        "92.5 ± 0.6 % inductive; paired with glyphs-maml +1.2 ± 0.4 points",
    ),
    "glyphs-reptile": Entry(
        "Reptile on printed characters, 5-way 1-shot",
        ImageRecipe(**_REPTILE),
    ),
    # Two cores, with the Omniglot archives.
    "omniglot-maml": Entry(
        "MAML on Omniglot, alphabets disjoint, 5-way 1-shot",
        ImageRecipe(**_OMNIGLOT),
        "96.0 ± 0.4 % inductive on two cores",
    ),
    "omniglot-fomaml": Entry(
        "first-order MAML on Omniglot, 5-way 1-shot",
        ImageRecipe(**_OMNIGLOT, algorithm="fomaml"),
    ),
    "omniglot-anil": Entry(
        "ANIL (only the head adapts) on Omniglot, 5-way 1-shot",
        ImageRecipe(**_OMNIGLOT | _ANIL),
    ),
    "omniglot-boil": Entry(
        "BOIL (all but the head adapts) on Omniglot, 5-way 1-shot",
        ImageRecipe(**_OMNIGLOT, algorithm="boil"),
    ),
    "omniglot-meta-sgd": Entry(
        "Meta-SGD (learned inner rates) on Omniglot, 5-way 1-shot",
        ImageRecipe(**_OMNIGLOT, algorithm="meta_sgd"),
    ),
    "omniglot-reptile": Entry(
        "Reptile on Omniglot, 5-way 1-shot",
        ImageRecipe(**_OMNIGLOT | _REPTILE | {"validate_every": 2000}),
        "93.9 ± 0.5 % inductive, 95.4 ± 0.4 % transductive; two cores",
    ),
    "omniglot-protonet": Entry(
        "prototypical networks on Omniglot, 5-way 1-shot",
        ImageRecipe(**_OMNIGLOT | _OMNIGLOT_PROTONET),
        "96.6 ± 0.4 % inductive on two cores",
    ),
    "omniglot-protonet-20way": Entry(
        "prototypical networks on Omniglot, 20-way 1-shot",
        ImageRecipe(
            **_OMNIGLOT | _OMNIGLOT_PROTONET | {"eval_ways": 20, "eval_queries": 5}
        ),
        "89.7 ± 0.4 % inductive; 9 minutes of training on two cores",
    ),
    "omniglot-fine-tune": Entry(
        "baseline: joint classifier, then a new head fitted to each task",
        ImageRecipe(**_OMNIGLOT | _FINE_TUNE),
    ),
    # Published configurations, for an accelerator.
    "omniglot-maml-paper": Entry(
        "Finn et al. 2017: MAML, transductive batch norm, 60,000 steps",
        ImageRecipe(
            **_OMNIGLOT_RANDOM,
            downsample="stride",
            # 0.4 in the paper's code, whose loss is a sum over the five classes.
            inner_rate=2.0,
            eval_inner_steps=3,
            norm_policy="batch",
            eval_queries=1,
            outer_rate=1e-3,
            schedule="constant",
            tasks_per_step=32,
            steps=60_000,
            validate_every=1000,
            validation_tasks=600,
            checkpoint_every=2000,
        ),
    ),
    "omniglot-protonet-paper": Entry(
        "Snell et al. 2017: prototypical networks, 60-way training",
        ImageRecipe(
            **_OMNIGLOT_RANDOM,
            algorithm="protonet",
            downsample="pool",
            ways=60,
            queries=5,
            eval_ways=5,
            eval_queries=5,
            outer_rate=1e-3,
            tasks_per_step=1,
            schedule="halving",
            halve_every=2000,
            steps=60_000,
            validate_every=100,
            validation_tasks=100,
            patience=200,
            test_tasks=1000,
            checkpoint_every=2000,
        ),
    ),
    "omniglot-reptile-paper": Entry(
        "Nichol et al. 2018: Reptile, 100,000 steps, inductive batch norm",
        ImageRecipe(
            **_OMNIGLOT_RANDOM | _REPTILE | {"inner_rate": 1e-3},
            downsample="stride",
            steps=100_000,
            validate_every=2000,
            test_tasks=1000,
            checkpoint_every=5000,
            log_every=500,
        ),
    ),
    # No images at all.
    "sinusoid-maml": Entry(
        "MAML on sine waves, 10-shot regression; done in a minute",
        SinusoidRecipe(
            **_SINUSOID,
            inner_rate=0.01,
            inner_steps=5,
        ),
        "MSE 0.237 ± 0.030 after 5 steps; under a minute on two cores",
    ),
    "sinusoid-cavia": Entry(
        "CAVIA (a context of five numbers adapts) on sine waves, one inner step",
        SinusoidRecipe(
            **_SINUSOID,
            algorithm="cavia",
            inner_rate=1.0,
            inner_steps=1,
            options=("clip=10.0",),
        ),
    ),
    "sinusoid-es-maml": Entry(
        "ES-MAML: MAML's adaptation, the initialisation found by values of the loss alone",
        SinusoidRecipe(
            **_SINUSOID,
            algorithm="es_maml",
            inner_rate=0.01,
            inner_steps=5,
            options=("num_perturbations=50", "sigma=0.03"),
        ),
    ),
    "families-maml": Entry(
        "MAML on sines, lines, quadratics and cubics, 10-shot regression",
        SinusoidRecipe(**_FAMILIES, algorithm="maml"),
    ),
    "families-mumomaml": Entry(
        "a task embedding gates the initialisation, on the same four families",
        SinusoidRecipe(**_FAMILIES, algorithm="mumomaml"),
    ),
    "families-hsml": Entry(
        "HSML (a learned hierarchy of tasks) on the same four families",
        SinusoidRecipe(**_FAMILIES, algorithm="hsml"),
    ),
    # Several image sets at once, in the folders of --data-dir.
    "mixed-maml": Entry(
        "MAML on tasks from four image sets, 28x28 grey, 5-way 1-shot",
        MixedImageRecipe(**_MIXED, algorithm="maml"),
    ),
    "mixed-mumomaml": Entry(
        "a task embedding gates the initialisation, on the same mixture of image sets",
        MixedImageRecipe(**_MIXED, algorithm="mumomaml", options=("hidden=40",)),
    ),
    "mixed-hsml": Entry(
        "HSML (a learned hierarchy of tasks) on the same mixture of image sets",
        MixedImageRecipe(**_MIXED, algorithm="hsml", options=("hidden=40",)),
    ),
    "styled-maml": Entry(
        "MAML on tasks from four image sets in three styles, 28x28 grey, 5-way 1-shot",
        MixedImageRecipe(**_STYLED, algorithm="maml"),
    ),
    "styled-hsml": Entry(
        "HSML (a learned hierarchy of tasks) on the same twelve kinds of images",
        MixedImageRecipe(**_STYLED, algorithm="hsml", options=("hidden=40",)),
    ),
    # Features of `python -m benchmarks features`.
    "features-maml": Entry(
        "MAML of a linear classifier on fixed features, 5-way 1-shot",
        FeatureRecipe(algorithm="maml", inner_rate=4.0, inner_steps=5, **_FEATURES),
    ),
    "features-leo": Entry(
        "LEO (a code of each class is adapted) on fixed features, 5-way 1-shot",
        FeatureRecipe(**_FEATURES, options=("latents=64", "kl_weight=0.01")),
    ),
    # A system and its baseline in minutes.
    **SMALL,
    **PUBLISHED,
}

KINDS: dict[str, type[Recipe]] = {
    cls.kind: cls for cls in (ImageRecipe, MixedImageRecipe, FeatureRecipe, SinusoidRecipe)
}


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
      ValueError: there is none; suggests the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"unknown recipe {name!r}.{hint} See them all with: metalearn list")
