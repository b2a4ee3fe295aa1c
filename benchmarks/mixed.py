"""Runs on a mixture of image sets: accuracy of each, and what the clusters have found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _clusters, _harness
from metalearn import run_folder, runs


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Compares runs of the mixed-* recipes task by task, the first being the baseline.

    Attributes:
      runs: Run folders of the same image sets, ways and shots.
      data_dir: Folder of the image sets; that of the first run if None.
      tasks: Meta-test tasks over all sets.
      json: Where to write; `benchmarks/results/mixed.json` by default. A picture of the
        tree of clusters is written beside.
    """

    runs: tuple[str, ...]
    data_dir: str | None = None
    tasks: int = 4000
    json: str | None = None

    def run_benchmark(self) -> None:
        rows: dict[str, Any] = {}
        loaded = [run_folder.load(Path(folder)) for folder in self.runs]
        baseline = data = None
        for run in loaded:
            variables, progress = runs.best(run)
            recipe = dataclasses.replace(run.recipe, test_tasks=self.tasks)
            if data is None:
                data_dir = self.data_dir or runs.stored_data_dir(run.folder)
                data = recipe.load_data(data_dir, ("test",))
                names = tuple(data.sets)
            evaluation = runs.judge(run, variables, data, recipe=recipe, seed=0)
            info, route = _clusters.routes(
                recipe.evaluation_learner(run.record),
                variables,
                recipe.tasks(data, "test"),
                self.tasks,
            )
            groups = _groups(info, names, recipe.styles)
            accuracy = 100 * np.asarray(evaluation.values["query/accuracy"])
            row: dict[str, Any] = {
                "training_seed": run.seed,
                "settings": recipe.settings(),
                **progress,
                "transductive": evaluation.transductive,
                "tasks_fingerprint": evaluation.fingerprint,
                "accuracy_points": _clusters.mean(accuracy),
                "by_group": _by_group(accuracy, groups),
            }
            if baseline is None:
                baseline, first = accuracy, evaluation.fingerprint
            else:
                if evaluation.fingerprint != first:
                    raise ValueError(
                        f"{run.folder} has other test tasks than {loaded[0].folder}. Give "
                        "runs of the same image sets, ways, shots, queries and styles."
                    )
                row["paired_with_first"] = _clusters.mean(accuracy - baseline)
                row["paired_by_group"] = _by_group(accuracy - baseline, groups)
            if route is not None:
                row["clusters"] = _clusters.information(
                    info["family"], route.leaves, len(names)
                )
                if "style" in info:
                    row["clusters_and_styles"] = _clusters.information(
                        info["style"], route.leaves, len(recipe.styles)
                    )
                picture = Path(self.json or _harness.RESULTS / "mixed.json").parent
                _clusters.draw(
                    picture / "clusters-mixed.png",
                    info["family"],
                    route,
                    names,
                    f"Clusters of {run.name}: shares of image sets",
                )
            rows[run.name] = row
            print(run.name, {k: v for k, v in row.items() if k != "settings"})
        _harness.store(
            "mixed",
            {"kind": "mixed", "test_seed": 0, "num_tasks": self.tasks, "rows": rows},
            self.json,
        )


def _groups(
    info: dict[str, np.ndarray], names: tuple[str, ...], styles: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Which tasks are of each image set and, where there are several, of each style."""
    found = {name: info["family"] == i for i, name in enumerate(names)}
    if "style" in info:
        shown = {style: info["style"] == i for i, style in enumerate(styles)}
        found = {
            f"{name}, {style}": mine & so
            for name, mine in found.items()
            for style, so in shown.items()
        }
    return found


def _by_group(values: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: _clusters.mean(values[rows]) for name, rows in groups.items()}


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`."""
    groups = list(next(iter(row["rows"].values()))["by_group"])
    lines = [
        f"Accuracy on {row['num_tasks']} meta-test tasks of several image sets, 5-way "
        "1-shot, inductive, one training seed; differences are paired with the first row, "
        "the information is that of the strongest leaf with the image set (of shuffled "
        "sets at most):",
        "",
        f"| | all | {' | '.join(groups)} | information |",
        "|---" * (3 + len(groups)) + "|",
    ]

    def cells(mean: dict[str, float], by_group: dict[str, Any], sign: str) -> list[str]:
        values = [mean, *by_group.values()]
        return [f"{v['mean']:{sign}.2f} ± {v['ci95']:.2f}" for v in values]

    for name, found in row["rows"].items():
        clusters, information = found.get("clusters"), ""
        if clusters:
            control = clusters["nmi_shuffled_max_of_100"]
            information = f"{clusters['nmi']:.3f} ({control:.3f})"
        values = cells(found["accuracy_points"], found["by_group"], "")
        lines.append(f"| {' | '.join([name, *values, information])} |")
        if "paired_with_first" in found:
            apart = cells(found["paired_with_first"], found["paired_by_group"], "+")
            lines.append(f"| {' | '.join([f'{name}, difference', *apart, ''])} |")
    return [*lines, "", "![Clusters and the image sets](results/clusters-mixed.png)"]
