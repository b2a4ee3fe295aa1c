"""Runs on heterogeneous curves: error of each family, and what the clusters have found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import metalearn as ml
from benchmarks import _harness
from metalearn import plots, run_folder, runs
from metalearn.recipes.base import Recipe


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
        baseline = None
        for folder in map(Path, self.runs):
            run = run_folder.load(folder)
            variables, _ = runs.best(run)
            recipe = dataclasses.replace(run.recipe, test_tasks=self.tasks)
            evaluation = runs.judge(run, variables, None, recipe=recipe, seed=0)
            families, route = _routes(recipe, run.record, variables, self.tasks)
            losses = np.asarray(evaluation.values["query/loss"])
            row: dict[str, Any] = {
                "training_seed": run.seed,
                "settings": recipe.settings(),
                "query_mse": _mean(losses),
                "by_family": {
                    name: _mean(losses[families == i])
                    for i, name in enumerate(ml.tasks.FAMILIES)
                },
            }
            if baseline is None:
                baseline = losses
            else:
                row["paired_with_first"] = _mean(losses - baseline)
                row["times_first"] = float(losses.mean() / baseline.mean())
            if route is not None:
                row["clusters"] = _information(families, np.asarray(route.leaves))
                _draw(run.name, recipe, families, route)
            rows[run.name] = row
            print(run.name, {k: v for k, v in row.items() if k != "settings"})
        _harness.store(
            f"families-{recipe.test_shots}shot",
            {"kind": "families", "test_seed": 0, "num_tasks": self.tasks, "rows": rows},
            self.json,
        )


def _routes(recipe: Recipe, record: Any, variables: ml.Variables, num: int) -> tuple:
    """Families of the tasks that `evaluate` draws with seed 0, and their routes."""
    learner = recipe.evaluation_learner(record)
    sampler = recipe.tasks(None, "test")

    def one(number: Any) -> Any:
        key = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 3)[0]
        task = sampler.sample(sampler.data, key)
        return task.info["family"], learner.adapt(variables, task.support).info

    families, route = jax.jit(jax.vmap(one))(np.arange(num))
    tree = route is not None and route.upper
    return np.asarray(families), route if tree else None


def _mean(values: np.ndarray) -> dict[str, float]:
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return {"mean": float(values.mean()), "ci95": float(half), "tasks": len(values)}


def _information(families: np.ndarray, leaves: np.ndarray) -> dict[str, Any]:
    """Normalised mutual information of the strongest leaf with the family."""
    from sklearn.metrics import normalized_mutual_info_score

    strongest = leaves.argmax(-1)
    rng = np.random.default_rng(0)
    shuffled = [
        normalized_mutual_info_score(rng.permutation(families), strongest)
        for _ in range(100)
    ]
    return {
        "nmi": float(normalized_mutual_info_score(families, strongest)),
        "nmi_shuffled_max_of_100": float(max(shuffled)),
        "leaf_share_by_family": [
            leaves[families == i].mean(0).round(4).tolist()
            for i in range(len(ml.tasks.FAMILIES))
        ],
    }


def _draw(run: str, recipe: Recipe, families: np.ndarray, route: Any) -> None:
    by_family = lambda x: np.stack(
        [np.asarray(x)[families == i].mean(0) for i in range(len(ml.tasks.FAMILIES))]
    )
    name = f"clusters-families-{recipe.test_shots}shot.png"
    plots.cluster_tree(
        _harness.RESULTS / name,
        by_family(route.leaves),
        [by_family(a) for a in route.upper],
        ml.tasks.FAMILIES,
        title=f"Clusters of {run}, {recipe.test_shots} points: shares of families",
    )
