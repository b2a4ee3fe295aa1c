"""Runs on a mixture of image sets: accuracy of each, and what the clusters have found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _clusters, _harness, _runs
from metalearn import runs
from metalearn.apps import find
from metalearn.runs import folder as run_folder


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Compares runs of mixed-* or styled-* task by task, the first being the baseline.

    Attributes:
      runs: Run folders of the same image sets, ways and shots; runs of one recipe differ by
        options of their learner.
      data_dir: Folder of the image sets; that of the first run if None.
      tasks: Meta-test tasks over all sets.
      json: Where to write; by default `mixed.json` in `benchmarks/results`, or
        `styled.json`. The name of the file is the name of the result. A picture of the
        first tree of clusters is written beside.
    """

    runs: tuple[str, ...]
    data_dir: str | None = None
    tasks: int = 4000
    json: str | None = None

    def run_benchmark(self) -> None:
        rows: dict[str, Any] = {}
        loaded = [run_folder.load(Path(folder)) for folder in self.runs]
        _runs.check_finished([run.folder for run in loaded])
        baseline = data = None
        kind = loaded[0].name.partition("-")[0]
        kind = Path(self.json).stem if self.json else kind
        drawn = False
        for run, label in zip(loaded, labels(loaded), strict=True):
            variables, progress = runs.best(run)
            recipe = dataclasses.replace(run.recipe, test_tasks=self.tasks)
            if data is None:
                data_dir = self.data_dir or runs.stored_data_dir(run.folder)
                data = recipe.app.load(data_dir, ("test",))
                names = tuple(data.sets)
            evaluation = runs.judge(run, variables, data, recipe=recipe, seed=0)
            info, route = _clusters.routes(
                recipe.build_judged(run.record),
                variables,
                recipe.app.tasks(data, "test"),
                self.tasks,
            )
            groups = _groups(info, names, recipe.app.styles)
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
                        info["style"], route.leaves, len(recipe.app.styles)
                    )
                folder = Path(self.json).parent if self.json else _harness.RESULTS
                if not drawn:
                    _clusters.draw(
                        folder / f"clusters-{kind}.png",
                        info["family"],
                        route,
                        names,
                        f"Clusters of {label}: shares of image sets",
                    )
                drawn = True
            rows[label] = row
            print(label, {k: v for k, v in row.items() if k != "settings"})
        _harness.store(
            kind,
            {"kind": "mixed", "test_seed": 0, "num_tasks": self.tasks, "rows": rows},
            self.json,
        )


def labels(loaded: Sequence[runs.Run]) -> list[str]:
    """A name for each run: that of its recipe, and options that the recipe has not.

    Raises:
      ValueError: two runs have the same recipe and options.
    """
    found = []
    for run in loaded:
        usual = find(run.name).recipe.settings()["learner"]
        mine = run.recipe.settings()["learner"]
        own = [f"{name}={mine[name]}" for name in mine if mine[name] != usual.get(name)]
        found.append(" ".join([run.name, *own]))
        if found.count(found[-1]) > 1:
            raise ValueError(
                f"{run.folder} and another run here are both {found[-1]}. Give runs of "
                "other recipes or of other options of the learner."
            )
    return found


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
    """Lines of `benchmarks/README.md`: kinds of images down, runs across."""
    runs, num, kind = row["rows"], row["num_tasks"], row["benchmark"]
    heads = [*runs, *(f"{n}, difference" for n in runs if "paired_with_first" in runs[n])]
    lines = [
        f"Accuracy on {num} meta-test tasks of several kinds of images, 5-way 1-shot, "
        "inductive, one training seed; differences are paired with the first run:",
        "",
        f"| | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
    ]

    def line(name: str, values: list[dict[str, float]], apart: list[dict]) -> str:
        cells = [f"{v['mean']:.2f} ± {v['ci95']:.2f}" for v in values]
        cells += [f"{v['mean']:+.2f} ± {v['ci95']:.2f}" for v in apart]
        return f"| {' | '.join([name, *cells])} |"

    paired = [found for found in runs.values() if "paired_with_first" in found]
    lines.append(
        line(
            "all",
            [found["accuracy_points"] for found in runs.values()],
            [found["paired_with_first"] for found in paired],
        )
    )
    lines += [
        line(
            group,
            [found["by_group"][group] for found in runs.values()],
            [found["paired_by_group"][group] for found in paired],
        )
        for group in next(iter(runs.values()))["by_group"]
    ]
    lines.append("")
    for name, found in runs.items():
        for key, what in (("clusters", "image set"), ("clusters_and_styles", "style")):
            if key in found:
                share, control = found[key]["nmi"], found[key]["nmi_shuffled_max_of_100"]
                lines.append(
                    f"Information of the strongest leaf of {name} with the {what}: "
                    f"{share:.3f} (of shuffled ones at most {control:.3f})."
                )
    return [*lines, "", f"![Clusters and the image sets](results/clusters-{kind}.png)"]
