"""Published configurations on images, for an accelerator; none of them was run here.

Some released code sums the loss over the classes. Its printed inner rates are multiplied by
the number of ways here. On mini-ImageNet the released code clips every coordinate of the
meta-gradient to ±10. mini-ImageNet is `--app.dataset folder:PATH` with class/image files
and a splits.json.

What differs from the released code: that of MAML has norms without a scale and holds their
offsets inside; here scale and offset of norms adapt, but for MT-net, MAML++ and CAVIA.
`--learner.adapt-filter '^(?!.*Norm)'` holds them, where the learner takes it.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.images.features import FewShotFeatures
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.apps.images.recipes import REPTILE, REPTILE_APP, reptile
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, sgd

_NORM = r"(^|/)Batch(Norm|Renorm)"  # each step has its own, which no inner step moves


def _omniglot(learner: Learner, app: dict[str, Any] | None = None, **rest: Any) -> Recipe:
    images: dict[str, Any] = {
        "dataset": "omniglot",
        "split": "random",
        "downsample": "stride",
    }
    shared: dict[str, Any] = {
        "outer": Outer(rate=1e-3),
        "validate_every": 1000,
        "validation_tasks": 600,
        "checkpoint_every": 2000,
    }
    app = images | (app or {})
    return Recipe(app=FewShotImages(**app), learner=learner, **shared | rest)


def _mini(learner: Learner, app: dict[str, Any] | None = None, **rest: Any) -> Recipe:
    images: dict[str, Any] = {
        "dataset": "folder:mini_imagenet",
        "image_size": 84,
        "queries": 15,
    }
    images["width"] = 32
    shared: dict[str, Any] = {
        "outer": Outer(rate=1e-3, schedule="constant", clip_value=10.0),
        "tasks_per_step": 4,
        "steps": 60_000,
        "validate_every": 1000,
        "validation_tasks": 600,
        "checkpoint_every": 2000,
    }
    app = images | (app or {})
    return Recipe(app=FewShotImages(**app), learner=learner, **shared | rest)


RECIPES: dict[str, Entry] = {
    "omniglot-maml-paper": Entry(
        "Finn et al. 2017: MAML, transductive batch norm, 60,000 steps",
        _omniglot(
            # 0.4 in the paper's code, whose loss is a sum over the five classes.
            learners.MAML(inner_opt=sgd(2.0), norm="batch"),
            {"eval_queries": 1},
            outer=Outer(rate=1e-3, schedule="constant"),
            eval_steps=3,
            tasks_per_step=32,
            steps=60_000,
        ),
    ),
    "omniglot-protonet-paper": Entry(
        "Snell et al. 2017: prototypical networks, 60-way training",
        _omniglot(
            learners.ProtoNet(),
            {
                "downsample": "pool",
                "ways": 60,
                "queries": 5,
                "eval_ways": 5,
                "eval_queries": 5,
            },
            outer=Outer(rate=1e-3, schedule="halving", halve_every=2000),
            tasks_per_step=1,
            steps=60_000,
            validate_every=100,
            validation_tasks=100,
            patience=200,
            test_tasks=1000,
        ),
    ),
    "omniglot-reptile-paper": Entry(
        "Nichol et al. 2018: Reptile, 100,000 steps, inductive batch norm",
        _omniglot(
            reptile(1e-3),
            REPTILE_APP,
            **REPTILE,
            steps=100_000,
            validate_every=2000,
            validation_tasks=200,
            test_tasks=1000,
            checkpoint_every=5000,
            log_every=500,
        ),
    ),
    "mini-maml-paper": Entry(
        "Finn et al. 2017: MAML on mini-ImageNet, 5-way 1-shot, transductive",
        _mini(learners.MAML(inner_opt=sgd(0.05), num_steps=5, norm="batch"), eval_steps=10),
    ),
    "mini-maml-plus-plus-paper": Entry(
        "Antoniou et al. 2019: MAML++ on mini-ImageNet, 5-way 1-shot, transductive",
        _mini(
            # The released code starts from 0.1: it never reads the 0.01 of its settings.
            learners.MAMLPlusPlus(
                initial_rate=0.1,
                num_steps=5,
                norm="batch",
                norm_weights=_NORM,
                msl_steps=7500,
                first_order_until=25_000,
            ),
            {"width": 48},
            tasks_per_step=2,
            steps=50_000,
        ),
    ),
    "omniglot-maml-plus-plus-paper": Entry(
        "Antoniou et al. 2019: MAML++ on Omniglot, 20-way 1-shot, transductive",
        _omniglot(
            learners.MAMLPlusPlus(
                initial_rate=0.1,
                num_steps=5,
                norm="batch",
                norm_weights=_NORM,
                msl_steps=5000,
                first_order_until=25_000,
            ),
            {"ways": 20, "eval_queries": 1, "downsample": "pool"},
            tasks_per_step=8,
            steps=50_000,
        ),
    ),
    "omniglot-imaml-paper": Entry(
        "Rajeswaran et al. 2019: iMAML as its released code trains, Omniglot 5-way 1-shot",
        _omniglot(
            # Two things differ from the released code: its Adam has an eps of 1e-3, and
            # its evaluation has no pull back. Its direction is six times as long, see
            # `imaml`, which makes no difference to Adam.
            learners.IMAML(
                inner_opt=sgd(0.1),
                num_steps=16,
                lam=2.0,
                cg_steps=5,
                damping=22.0,
                pull_back=True,
            ),
            outer=Outer(rate=1e-3, schedule="constant"),
            tasks_per_step=32,
            steps=20_000,
        ),
    ),
    "mini-cavia-paper": Entry(
        "Zintgraf et al. 2019: CAVIA on mini-ImageNet, 5-way 1-shot, 32 filters",
        _mini(
            learners.CAVIA(rate=1.0, num_steps=2, norm="batch"),
            outer=Outer(
                rate=1e-3,
                schedule="halving",
                halve_every=5000,
                halve_by=0.9,
                clip_value=10.0,
            ),
            tasks_per_step=16,
        ),
    ),
    "mini-mt-net-paper": Entry(
        "Lee & Choi 2018: MT-net on mini-ImageNet, 5-way 1-shot",
        _mini(learners.MTNet(inner_opt=sgd(0.05), num_steps=5, norm="batch")),
    ),
    "mini-meta-curvature-paper": Entry(
        "Park & Oliva 2019: Meta-Curvature on mini-ImageNet, 5-way 1-shot",
        _mini(learners.MetaCurvature(rate=0.05, num_steps=5, norm="batch")),
    ),
    "mini-warpgrad-paper": Entry(
        "Flennerhag et al. 2020: Warp-MAML on mini-ImageNet, 5-way 1-shot",
        _mini(
            learners.WarpGrad(inner_opt=sgd(0.1), num_steps=5, norm="batch"), {"width": 64}
        ),
    ),
    "features-leo-paper": Entry(
        "Rusu et al. 2019: LEO on features of mini-ImageNet, 5-way 1-shot",
        Recipe(
            app=FewShotFeatures(queries=15),
            # 1 and 1e-3 in the released code, whose losses are sums over the five classes.
            learner=learners.LEO(
                latent_rate=5.0,
                fine_tune_rate=5e-3,
                codes="example",
                l2=3.62e-10,
                orthogonality=0.188,
                dropout=0.308,
                kl_weight=0.756,
                encoder_penalty=5.76e-6,
            ),
            outer=Outer(rate=2.739e-4, schedule="constant", clip_value=0.1, clip_array=0.1),
            tasks_per_step=12,
            steps=100_000,
            validate_every=5000,
            checkpoint_every=5000,
        ),
    ),
}
