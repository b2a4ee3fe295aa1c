"""Learners of few-shot text over all folds of a set, beside the centroid of the vectors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _harness, _runs
from benchmarks.against import difference, spread
from benchmarks.recipe import summary
from metalearn.apps import FewShotText, find
from metalearn.cli.train_options import parse_train
from metalearn.core.metrics import mean_ci95
from metalearn.data.text import TextSet
from metalearn.runs import folder as run_folder

BASELINE = "text-centroid"
METRIC = "query/accuracy"
FOLDS = {
    "banking77": ("01", "02", "03", "04", "05"),
    "hwu64": ("01", "02", "03", "04", "05"),
    "liu54": ("01", "02", "03", "04", "05"),
    "fewrel": ("nyt", "pubmed", "wiki"),
    "huffpost41": ("bao",),
}


@dataclasses.dataclass(frozen=True)
class Texts:
    """Trains recipes of texts on every fold of a set, and judges each at several shots.

    A learner has to be above the nearest centroid of its own vectors, for which nothing is
    trained; the difference is paired over the test tasks of each fold.

    Attributes:
      dataset: Set of texts, one of banking77, hwu64, liu54, fewrel, huffpost41.
      recipes: Recipes of texts; see `metalearn list`.
      features: Kind of vectors, hashed or wordllama.
      folds: Folds of the classes; all of the set if none is given.
      shots: Numbers of support examples to judge at. Training is as the recipe has it.
      tasks: Number of test tasks of each fold.
      seeds: Training runs of each recipe on each fold.
      set: Fields to override in all recipes but the centroid, such as `--set steps=100`.
      data_dir: Folder of the sets.
      runs: Where run folders go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/texts-SET-FEATURES.json` by default.
    """

    dataset: str
    recipes: tuple[str, ...] = ("text-protonet", "text-matching", "text-r2d2", "text-maml")
    features: str = "hashed"
    folds: tuple[str, ...] = ()
    shots: tuple[int, ...] = (1, 5)
    tasks: int = 2000
    seeds: int = 1
    set: tuple[str, ...] = ()
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        folds = self._check()
        plans = {
            recipe: [self._plan(recipe, fold) for fold in folds]
            for recipe in (BASELINE, *self.recipes)
        }
        origin = _runs.planned(
            [plan for each in plans.values() for plan in each], self.runs
        )
        rows: dict[str, Any] = {}
        seen: dict[tuple[str, int], dict[str, Any]] = {}
        baseline: dict[int, np.ndarray] = {}
        for recipe, each in plans.items():
            rows[recipe], values = self._row(dict(zip(folds, each, strict=True)), seen)
            for shots, of_tasks in values.items():
                base = baseline.setdefault(shots, of_tasks)
                told = judged_at(of_tasks, None if recipe == BASELINE else base)
                rows[recipe]["shots"][str(shots)] = told
        found = {
            "kind": "texts",
            "dataset": self.dataset,
            "features": self.features,
            "folds": list(folds),
            "seeds": self.seeds,
            "tasks": self.tasks,
            "origin": origin,
            "rows": rows,
        }
        _harness.store(f"texts-{self.dataset}-{self.features}", found, self.json)

    def _check(self) -> tuple[str, ...]:
        """The folds, once all that is asked is seen to be possible.

        Raises:
          SystemExit: says what is not; nothing was trained.
        """
        if self.dataset not in FOLDS:
            raise SystemExit(
                f"the set is {self.dataset!r}; expected one of {', '.join(FOLDS)}."
            )
        folds = self.folds or FOLDS[self.dataset]
        if unknown := [fold for fold in folds if fold not in FOLDS[self.dataset]]:
            raise SystemExit(
                f"--folds names {', '.join(unknown)}; {self.dataset} has "
                f"{', '.join(FOLDS[self.dataset])}."
            )
        if not self.shots or min(self.shots) < 1:
            raise SystemExit(f"--shots is {self.shots}; expected numbers of 1 or more.")
        for name, least in (("tasks", 2), ("seeds", 1)):
            if getattr(self, name) < least:
                raise SystemExit(
                    f"--{name} is {getattr(self, name)}; expected {least} or more."
                )
        recipes = (BASELINE, *self.recipes)
        for name, values in (("folds", folds), ("shots", self.shots), ("recipes", recipes)):
            if len(set(values)) < len(values):
                raise SystemExit(
                    f"--{name} has one twice: {' '.join(map(str, values))}. Name each "
                    f"once; {BASELINE} is always there."
                )
        fixed = {"dataset", "fold", "features", "eval_shots"}
        for pair in self.set:
            name = pair.partition("=")[0].replace("-", "_")
            if name.removeprefix("app.") in fixed:
                raise SystemExit(f"--set {pair} is what the benchmark itself sets.")
        if self.json and Path(self.json).is_dir():
            raise SystemExit(f"--json is {self.json}, a folder; expected a file.")
        for recipe in recipes:
            plan = self._plan(recipe, folds[0])
            if find(recipe).recipe.app.kind != FewShotText.kind:
                raise SystemExit(f"{recipe} is no recipe of texts; see `metalearn list`.")
            parse_train([recipe, *plan.options()])[2].check()
        for fold, recipe in itertools.product(folds, self.recipes):
            options = self._plan(recipe, fold).options()
            app = parse_train([recipe, *options])[2].app
            assert isinstance(app, FewShotText)
            _check_ways(recipe, app, app.texts(self.data_dir))
        return folds

    def _plan(self, recipe: str, fold: str) -> _runs.Plan:
        settings = (
            f"app.dataset={self.dataset}",
            f"app.fold={fold}",
            f"app.features={self.features}",
        )
        if recipe == BASELINE:
            return _runs.Plan(recipe, 1, settings)
        return _runs.Plan(recipe, self.seeds, (*settings, *self.set))

    def _row(
        self,
        plans: Mapping[str, _runs.Plan],
        seen: dict[tuple[str, int], dict[str, Any]],
    ) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
        """Facts of the runs of a recipe, and accuracies `[folds, tasks]` by shots.

        Raises:
          ValueError: a fold's tasks are not those in `seen`, where those of each run are
            kept.
        """
        values: dict[int, list[np.ndarray]] = {shots: [] for shots in self.shots}
        seconds, best = [], []
        for fold, plan in plans.items():
            folders = [
                _runs.trained(plan, seed, self.runs, self.data_dir)
                for seed in range(plan.seeds)
            ]
            facts = [summary(folder) for folder in folders]
            seconds += [round(found["training_seconds"], 1) for found in facts]
            best += [found["result"]["best_step"] for found in facts]
            for shots in self.shots:
                accuracies = []
                for folder in folders:
                    evaluation = _runs.judged(
                        folder, self.data_dir, tasks=self.tasks, shots=shots
                    )
                    told = seen.setdefault((fold, shots), {})
                    told[folder.name] = _runs.told(evaluation)
                    _runs.check_tasks(told)
                    accuracies.append(np.asarray(evaluation.values[METRIC], np.float64))
                values[shots].append(np.mean(accuracies, 0))
                mean = values[shots][-1].mean()
                print(f"{plan.label}, {shots} shots: {mean:.4f}", flush=True)
        row: dict[str, Any] = {
            "settings": facts[-1]["settings"],  # of the last fold
            "ways": run_folder.load(folders[-1]).recipe.app.test_ways,
            "training_seconds": seconds,
            "best_steps": best,
            "shots": {},
        }
        return row, {shots: np.stack(each) for shots, each in values.items()}


def _check_ways(recipe: str, app: FewShotText, texts: TextSet) -> None:
    """Raises a `SystemExit` if a part of the set has fewer classes than a task has."""
    for part, found in texts.parts.items():
        option = "ways" if part == "train" or app.eval_ways is None else "eval_ways"
        if found.num_classes < (asked := getattr(app, option)):
            raise SystemExit(
                f"{recipe} has tasks of {asked} classes, and {texts.name} {texts.fold} has "
                f"{found.num_classes} in {part}; lower them by --set app.{option}=."
            )


def judged_at(values: np.ndarray, baseline: np.ndarray | None) -> dict[str, Any]:
    """Accuracy and its difference from a baseline.

    Args:
      values: Accuracies `[folds, tasks]`, of equal numbers of tasks.
      baseline: Accuracies of the baseline on the same tasks.
    """
    mean, half = mean_ci95(values.mean(0))
    by_fold = values.mean(1).tolist()
    row = {"mean": mean, "ci95": half, "by_fold": by_fold, "spread": spread(by_fold)}
    if baseline is not None:
        apart = difference(values, baseline)
        row["difference"] = {**apart, "by_fold": apart.pop("seeds")}
    return row


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`: learners down, numbers of shots across."""
    shots = list(next(iter(row["rows"].values()))["shots"])
    ways = next(iter(row["rows"].values()))["ways"]
    folds = len(row["folds"])
    of_folds = f"{folds} folds of the classes" if folds > 1 else "one fold of the classes"
    lines = [
        f"Accuracy (%) on {ways}-way tasks of `{row['dataset']}`, {row['features']} "
        f"vectors, {of_folds}, training seeds a fold: {row['seeds']}, test tasks a fold: "
        f"{row['tasks']:,}; inductive. "
        "Differences are paired with the centroid of the same vectors, for which nothing "
        "is trained; intervals are over tasks, σ is over folds:",
        "",
        "| | " + " | ".join(f"{n}-shot | difference" for n in shots) + " |",
        "|---" * (1 + 2 * len(shots)) + "|",
    ]
    for name, found in row["rows"].items():
        cells = [name]
        for told in found["shots"].values():
            cells.append(_points(told, sign=""))
            apart = told.get("difference")
            cells.append(_points(apart, sign="+") if apart else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _points(told: dict[str, Any], sign: str) -> str:
    text = f"{100 * told['mean']:{sign}.1f} ± {100 * told['ci95']:.1f}"
    sigma = told["spread"]
    return text if sigma is None else f"{text}, σ {100 * sigma:.1f}"
