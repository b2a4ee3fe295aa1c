"""Recipes on CIFAR-FS: photographs of 32x32 pixels, 5-way.

`folder:cifar_fs` is a folder with class/image files, or one archive of these, and a
splits.json whose entry "cifar_fs" lists the classes of each part; another place is
`--app.dataset folder:PATH`. `cifar-NAME` have the network of four blocks of 64 channels,
without its last ReLU for R2-D2 and Meta-Baseline; `cifar-NAME-resnet12`, of all but MAML,
have the large one, for an accelerator. Tasks are 1-shot; those of
`cifar-NAME-5shot` are 5-shot. Meta-training sees shifted and mirrored images.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.images.few_shot import FewShotImages
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, sgd

_CIFAR: dict[str, Any] = {
    "dataset": "folder:cifar_fs",
    "split": "cifar_fs",
    "augment": True,
    "eval_ways": 5,
}
# More classes in training than at test, as Snell et al. 2017 and Bertinetto et al. 2019.
_MANY = {"ways": 20, "queries": 5}
_SIGNED = _MANY | {"last_relu": False}  # as on Omniglot, see `embedders`
_FIVE = {"ways": 5, "queries": 15}


def _cifar(learner: Learner, app: dict[str, Any], **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "steps": 8000,
        "tasks_per_step": 4,
        "log_every": 500,
        "validate_every": 1000,
        "validation_tasks": 600,
        "test_tasks": 2000,
        "checkpoint_every": 2000,
    }
    images = FewShotImages(**_CIFAR | app)
    return Recipe(app=images, learner=learner, **shared | rest)


_SYSTEMS: dict[str, tuple[str, Learner, dict[str, Any], dict[str, Any]]] = {
    "protonet": ("prototypical networks", learners.ProtoNet(), _MANY, {}),
    "r2d2": ("R2-D2", learners.R2D2(regularisation=0.1, learn="all"), _SIGNED, {}),
    "maml": (
        "MAML",
        learners.MAML(inner_opt=sgd(0.1), num_steps=5),
        _FIVE,
        {"outer": Outer(rate=1e-3)},
    ),
    "meta-baseline": (
        "Meta-Baseline",
        learners.MetaBaseline(pretrain_steps=6000),
        _SIGNED,
        {},
    ),
}


def _entries() -> dict[str, Entry]:
    found = {}
    for name, (title, learner, app, rest) in _SYSTEMS.items():
        for shots in (1, 5):
            end = "" if shots == 1 else f"-{shots}shot"
            found[f"cifar-{name}{end}"] = Entry(
                f"{title} on CIFAR-FS, 5-way {shots}-shot",
                # A 5-shot task has 200 images where one of 1 shot has 120. MAML, whose
                # tasks are smaller, goes over the support set again and again.
                _cifar(
                    learner,
                    app | {"shots": shots},
                    **{"tasks_per_step": 4 if shots == 1 else 2} | rest,
                ),
            )
        if name != "maml":
            found[f"cifar-{name}-resnet12"] = Entry(
                f"{title} with ResNet-12 on CIFAR-FS, 5-way 1-shot; for an accelerator",
                _cifar(learner, _MANY | {"model": "resnet12"}, **rest),
            )
    return found


RECIPES: dict[str, Entry] = _entries()
