"""Recipes of curves, which need no data and take minutes."""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.curves.functions import Curves
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, sgd


def _sinusoid(learner: Learner, **settings: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=1e-3),
        "tasks_per_step": 25,
        "steps": 10_000,
        "log_every": 500,
        "validate_every": 2000,
        "checkpoint_every": 2000,
    }
    return Recipe(app=Curves(), learner=learner, **shared | settings)


def _families(learner: Learner) -> Recipe:
    """The protocol of Yao et al. 2019, section 5.1; `--app.shots 5` gives 5 shots."""
    return Recipe(
        app=Curves(functions="families", eval_queries=10),
        learner=learner,
        outer=Outer(rate=1e-3),  # the paper keeps the rate constant
        tasks_per_step=25,
        steps=70_000,
        test_tasks=4000,
        log_every=1000,
        validate_every=5000,
        validation_tasks=1000,
        checkpoint_every=5000,
    )


def _emo(**settings: Any) -> Learner:
    # Outputs mean the same in all tasks, so gradients of the head are stored too.
    return learners.EMO(remember="all", aggregate="transformer", **settings)


RECIPES: dict[str, Entry] = {
    "sinusoid-maml": Entry(
        "MAML on sine waves, 10-shot regression; done in a minute",
        _sinusoid(learners.MAML(inner_opt=sgd(0.01), num_steps=5)),
        "MSE 0.237 ± 0.030 after 5 steps; under a minute on two cores",
    ),
    "sinusoid-cavia": Entry(
        "CAVIA (a context of five numbers adapts) on sine waves, one inner step",
        _sinusoid(learners.CAVIA(rate=1.0, num_steps=1, clip=10.0)),
    ),
    "sinusoid-es-maml": Entry(
        "ES-MAML: MAML's adaptation, the initialisation found by values of the loss alone",
        _sinusoid(
            learners.ESMAML(
                inner_opt=sgd(0.01), num_steps=5, num_perturbations=50, sigma=0.03
            )
        ),
    ),
    "sinusoid-kfo": Entry(
        "KFO (a learned map of the gradients adapts with the weights) on sine waves",
        _sinusoid(learners.KFO(rate=0.005, num_steps=5)),
    ),
    "sinusoid-meta-sgd": Entry(
        "Meta-SGD (an inner rate for every weight is learned) on sine waves, one step",
        _sinusoid(learners.MetaSGD(initial_rate=0.005, num_steps=1)),
    ),
    "sinusoid-emo": Entry(
        "EMO (inner gradients of similar past tasks are recalled) on sine waves, one step",
        _sinusoid(_emo(inner_rate=0.003)),
    ),
    "sinusoid-emo-rates": Entry(
        "EMO with a learned inner rate for every weight, as Meta-SGD has them",
        _sinusoid(_emo(inner_rate=0.005, learn_rates=True)),
    ),
    "families-maml": Entry(
        "MAML on sines, lines, quadratics and cubics, 10-shot regression",
        _families(learners.MAML(inner_opt=sgd(1e-3), num_steps=5)),
    ),
    "families-mumomaml": Entry(
        "a task embedding gates the initialisation, on the same four families",
        _families(learners.MuMoMAML(inner_opt=sgd(1e-3), num_steps=5)),
    ),
    "families-hsml": Entry(
        "HSML (a learned hierarchy of tasks) on the same four families",
        _families(learners.HSML(inner_opt=sgd(1e-3), num_steps=5)),
    ),
    "sinusoid-cavia-paper": Entry(
        "Zintgraf et al. 2019: CAVIA on sine waves, 10-shot regression",
        _sinusoid(
            learners.CAVIA(rate=1.0, num_steps=1, clip=10.0),
            outer=Outer(rate=1e-3, schedule="constant"),
            steps=50_000,
            validate_every=5000,
            checkpoint_every=5000,
        ),
    ),
}
