"""Families of curves that arrive one after another: HSML that grows, HSML, and MAML."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import jax
import numpy as np
import optax

import metalearn as ml
from benchmarks import _harness
from metalearn.core.metrics import mean_ci95

METHODS = ("maml", "hsml, growing", "hsml")
FAMILIES = ml.tasks.FAMILIES
Losses = list[dict[str, np.ndarray]]  # of every stage: by family, those of the test tasks


@dataclasses.dataclass(frozen=True)
class ContinualFamilies:
    """Trains each method on the same stages; stage s has the first s + 2 families.

    Attributes:
      shots: Support points.
      steps: Outer steps of a stage for each of its families, so that all stages show as
        many tasks of a family.
      decay: Of the average of the weights that is judged.
      leaves: Leaf clusters at the start.
      medians: Parts of a window whose median tells whether to grow.
      methods: Which to train.
      tasks: Meta-test tasks of each family.
      seeds: Training runs of each method.
      json: Where to write; `benchmarks/results/continual-SHOTSshot.json` by default.
    """

    shots: int = 10
    steps: int = 10_000
    decay: float = 0.999
    leaves: int = 2
    medians: int = 20
    tasks: int = 4000
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    json: str | None = None

    def run_benchmark(self) -> None:
        rows = {}
        for method in self.methods:
            each: list[tuple[Losses, dict[str, Any]]] = []
            for seed in self.seeds:
                each.append(self._trained(method, seed))
                print(method, seed, each[-1][1], flush=True)
                rows[method] = {
                    **_judged(_pooled([losses for losses, _ in each])),
                    "by_seed": [found for _, found in each],
                }
                # After each run, so that what ends the next one costs no finished work.
                _harness.store(
                    f"continual-{self.shots}shot",
                    {
                        "kind": "continual",
                        "settings": dataclasses.asdict(self),
                        "families": FAMILIES,
                        "rows": rows,
                    },
                    self.json,
                )

    def _trained(self, method: str, seed: int) -> tuple[Losses, dict[str, Any]]:
        """Errors of every test task after each stage, and what is stored of a run."""
        names = [FAMILIES[: last + 1] for last in range(1, len(FAMILIES))]
        stages = [
            (ml.tasks.function_families(self.shots, 10, known), self.steps * len(known))
            for known in names
        ]
        began = time.perf_counter()
        learner = self._learner(method)
        found = ml.fit_continually(
            learner,
            ml.averaging(optax.adam(1e-3), self.decay),
            stages,
            tasks_per_step=25,
            key=jax.random.key(seed),
            grow=ml.add_leaf if "growing" in method else None,
            medians=self.medians,
            progress=False,
        )
        seconds = round(time.perf_counter() - began, 1)
        losses = [
            {name: self._losses(learner, variables, name) for name in known}
            for known, variables in zip(names, found.stages, strict=True)
        ]
        return losses, {"grown": found.grown, "seconds": seconds, **_judged(losses)}

    def _learner(self, method: str) -> ml.MetaLearner:
        model = ml.from_linen(ml.models.MLP(1))
        shared: dict[str, Any] = {"num_steps": 5}
        if method == "maml":
            return ml.maml(model, ml.losses.mse, optax.sgd(1e-3), **shared)
        tree = (self.leaves, 2, 1)
        shared["ordered"] = False  # as the stored results were trained
        return ml.hsml(model, ml.losses.mse, optax.sgd(1e-3), tree=tree, **shared)

    def _losses(self, learner: Any, variables: ml.Variables, family: str) -> np.ndarray:
        """Of every test task; always the same tasks."""
        result = ml.evaluate(
            learner,
            variables,
            ml.tasks.function_families(self.shots, 10, (family,)),
            ml.losses.mse,
            num_tasks=self.tasks,
            key=jax.random.key(0),
        )
        return np.asarray(result.values["query/loss"])


def _pooled(runs: list[Losses]) -> Losses:
    """Means over training runs."""
    return [
        {name: np.mean([run[stage][name] for run in runs], 0) for name in known}
        for stage, known in enumerate(runs[0])
    ]


def _judged(losses: Losses) -> dict[str, Any]:
    return {
        "mse": [
            {name: _interval(values) for name, values in stage.items()} for stage in losses
        ],
        "old": [_changed(before, after) for before, after in itertools.pairwise(losses)],
    }


def _interval(values: np.ndarray) -> dict[str, float]:
    mean, half = mean_ci95(values)
    return {"mean": mean, "ci95": half}


def _changed(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """How the error on families known before changed, as shares of what it was.

    The interval is that of the difference, paired over tasks.
    """
    together = {"all": list(before), **{name: [name] for name in before}}
    found = {}
    for name, parts in together.items():
        was, now = (np.concatenate([s[part] for part in parts]) for s in (before, after))
        mean, half = mean_ci95(now - was)
        whole = float(was.mean())
        found[name] = {"mean": mean / whole, "ci95": half / whole}
    return found
