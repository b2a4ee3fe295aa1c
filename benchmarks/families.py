"""Runs on heterogeneous curves: error of each family, and what the clusters have found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import metalearn as ml
from benchmarks import _clusters, _harness, _runs
from metalearn import runs
from metalearn.runs import folder as run_folder


@dataclasses.dataclass(frozen=True)
class Families:
    """Compares runs of the families-* recipes task by task, the first being the baseline.

    Attributes:
      runs: Run folders of the same number of shots.
      tasks: Meta-test tasks.
      json: Where to write; `benchmarks/results/families-SHOTSshot.json` by default. A
        picture of each tree of clusters is written beside.
    """

    runs: tuple[str, ...]
    tasks: int = 4000
    json: str | None = None

    def run_benchmark(self) -> None:
        rows: dict[str, Any] = {}
        baseline, seen = None, {}
        _runs.check_finished([Path(folder) for folder in self.runs])
        for folder in map(Path, self.runs):
            run = run_folder.load(folder)
            variables, _ = runs.best(run)
            recipe = dataclasses.replace(run.recipe, test_tasks=self.tasks)
            evaluation = runs.judge(run, variables, None, recipe=recipe, seed=0)
            seen[str(folder)] = _runs.told(evaluation)
            _runs.check_tasks(seen)
            info, route = _clusters.routes(
                recipe.build_judged(run.record),
                variables,
                recipe.app.tasks(None, "test"),
                self.tasks,
            )
            families, names = info["family"], ml.tasks.FAMILIES
            losses = np.asarray(evaluation.values["query/loss"])
            row: dict[str, Any] = {
                "training_seed": run.seed,
                "settings": recipe.settings(),
                "query_mse": _clusters.mean(losses),
                "by_family": {
                    name: _clusters.mean(losses[families == i])
                    for i, name in enumerate(names)
                },
            }
            if baseline is None:
                baseline = losses
            else:
                row["paired_with_first"] = _clusters.mean(losses - baseline)
                row["times_first"] = float(losses.mean() / baseline.mean())
            if route is not None:
                row["clusters"] = _clusters.information(families, route.leaves, len(names))
                shots = recipe.app.test_shots
                beside = Path(self.json).parent if self.json else _harness.RESULTS
                _clusters.draw(
                    beside / f"clusters-families-{shots}shot.png",
                    families,
                    route,
                    names,
                    f"Clusters of {run.name}, {shots} points: shares of families",
                )
            rows[run.name] = row
            print(run.name, {k: v for k, v in row.items() if k != "settings"})
        _harness.store(
            f"families-{recipe.app.test_shots}shot",
            {"kind": "families", "test_seed": 0, "num_tasks": self.tasks, "rows": rows},
            self.json,
        )
