"""Families of curves that arrive one after another: HSML that grows, HSML, and MAML."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np
import optax

import metalearn as ml
from benchmarks import _harness

METHODS = ("maml", "hsml", "hsml, growing")


@dataclasses.dataclass(frozen=True)
class ContinualFamilies:
    """Trains each method on the same stages; stage s has the first s + 2 families.

    Attributes:
      shots: Support points.
      steps: Outer steps of a stage.
      leaves: Leaf clusters at the start.
      tasks: Meta-test tasks of each family.
      seed: Of training.
      json: Where to write; `benchmarks/results/continual-SHOTSshot.json` by default.
    """

    shots: int = 10
    steps: int = 20_000
    leaves: int = 2
    tasks: int = 1000
    seed: int = 0
    json: str | None = None

    def run_benchmark(self) -> None:
        families = ml.tasks.FAMILIES
        names = [families[: last + 1] for last in range(1, len(families))]
        stages = [
            (ml.tasks.function_families(self.shots, 10, known), self.steps)
            for known in names
        ]
        rows = {}
        for method in METHODS:
            began = time.perf_counter()
            learner = self._learner(method)
            found = ml.fit_continually(
                learner,
                optax.adam(1e-3),
                stages,
                tasks_per_step=25,
                key=jax.random.key(self.seed),
                grow=ml.add_leaf if "growing" in method else None,
                progress=False,
            )
            rows[method] = {
                "grown": found.grown,
                "seconds": round(time.perf_counter() - began, 1),
                "mse": [
                    {name: self._error(learner, variables, name) for name in known}
                    for known, variables in zip(names, found.stages, strict=True)
                ],
            }
            print(method, rows[method], flush=True)
        _harness.store(
            f"continual-{self.shots}shot",
            {
                "kind": "continual",
                "settings": dataclasses.asdict(self),
                "families": families,
                "rows": rows,
            },
            self.json,
        )

    def _learner(self, method: str) -> ml.MetaLearner:
        model = ml.from_linen(ml.models.MLP(1))
        shared: dict[str, Any] = {"num_steps": 5}
        if method == "maml":
            return ml.maml(model, ml.losses.mse, optax.sgd(1e-3), **shared)
        tree = (self.leaves, 2, 1)
        return ml.hsml(model, ml.losses.mse, optax.sgd(1e-3), tree=tree, **shared)

    def _error(
        self, learner: Any, variables: ml.Variables, family: str
    ) -> dict[str, float]:
        result = ml.evaluate(
            learner,
            variables,
            ml.tasks.function_families(self.shots, 10, (family,)),
            ml.losses.mse,
            num_tasks=self.tasks,
            key=jax.random.key(0),
        )
        losses = np.asarray(result.values["query/loss"])
        half = 1.96 * losses.std(ddof=1) / len(losses) ** 0.5
        return {"mean": float(losses.mean()), "ci95": float(half)}
