"""Domain generalisation: each domain left out in turn, learners against joint training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _harness, _runs
from benchmarks.against import spread
from benchmarks.recipe import summary
from metalearn.apps import UnseenDomain, find
from metalearn.cli.train_options import parse_train
from metalearn.core.metrics import mean_ci95

ACCURACY = "query/accuracy"


@dataclasses.dataclass(frozen=True)
class Domains:
    """Trains recipes with each domain left out in turn, and judges them on that domain.

    A run is judged on every image of its target once. Runs of the same target and seed are
    pairs; the interval of a difference is over these pairs. Validation, which chose the
    variables, was on the sources.

    Attributes:
      recipes: Recipes of domains, the first of which is compared with the others.
      targets: Domains to leave out.
      seeds: Training runs of each recipe and target.
      set: Fields to override in all recipes, such as `--set steps=100`.
      data_dir: Folder of the sets.
      runs: Where run folders go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/domains-SET.json` by default.
    """

    recipes: tuple[str, ...] = ("domains-pacs-erm", "domains-pacs-mldg")
    targets: tuple[str, ...] = ("art_painting", "cartoon", "photo", "sketch")
    seeds: int = 3
    set: tuple[str, ...] = ()
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        plans, dataset = self._check()
        origin = _runs.planned(list(plans.values()), self.runs)
        accuracy = {
            name: np.zeros((len(self.targets), self.seeds)) for name in self.recipes
        }
        held = {name: np.zeros_like(values) for name, values in accuracy.items()}
        rows: dict[str, Any] = {name: {"training_seconds": []} for name in self.recipes}
        tasks = {}
        # Seed by seed, so that what is there when time ends is a comparison.
        for seed in range(self.seeds):
            for place, target in enumerate(self.targets):
                seen = {}
                for name in self.recipes:
                    plan = plans[name, target]
                    folder = _runs.trained(plan, seed, self.runs, self.data_dir)
                    found = _runs.judged(folder, self.data_dir)
                    seen[f"{plan.label} seed {seed}"] = _runs.told(found)
                    told = summary(folder)
                    accuracy[name][place, seed] = float(np.mean(found.values[ACCURACY]))
                    held[name][place, seed] = max(
                        row[f"validation/{ACCURACY.partition('/')[2]}"]
                        for row in told["validation"]
                    )
                    rows[name]["settings"] = told["settings"]
                    rows[name]["training_seconds"].append(
                        round(told["training_seconds"], 1)
                    )
                    print(f"{plan.label} seed {seed}: {found}", flush=True)
                tasks[target] = _runs.check_tasks(seen)
        for name, told in compared(accuracy, self.recipes[0]).items():
            rows[name] |= told | {"source_validation": held[name].tolist()}
            print(f"{name}: {told['mean']:.4f}, {told.get('difference')}", flush=True)
        _harness.store(
            f"domains-{dataset}",
            {
                "kind": "domains",
                "dataset": dataset,
                "targets": list(self.targets),
                "seeds": self.seeds,
                "overrides": list(self.set),
                "fingerprints": tasks,
                "origin": origin,
                "rows": rows,
            },
            self.json,
        )

    def _check(self) -> tuple[dict[tuple[str, str], _runs.Plan], str]:
        """The plans by recipe and target, and the set, once all is seen to be possible.

        Raises:
          SystemExit: says what is not; nothing was trained.
        """
        for what, given in (("recipes", self.recipes), ("targets", self.targets)):
            if not given or len(set(given)) < len(given):
                raise SystemExit(f"--{what} is {given}; expected some, each once.")
        if self.seeds < 1:
            raise SystemExit(f"--seeds is {self.seeds}; expected 1 or more.")
        if self.json and Path(self.json).is_dir():
            raise SystemExit(f"--json is {self.json}, a folder; expected a file.")
        plans, seen = {}, {}
        for name in self.recipes:
            if find(name).recipe.app.kind != UnseenDomain.kind:
                raise SystemExit(f"{name} is no recipe of domains.")
            for target in self.targets:
                plan = _runs.Plan(name, self.seeds, (*self.set, f"app.target={target}"))
                recipe = parse_train([plan.recipe, *plan.options()])[2]
                recipe.check()
                if seen.setdefault(target, recipe.app) != recipe.app:
                    raise SystemExit(
                        "the recipes are of different data; expected the same."
                    )
                plans[name, target] = plan
        return plans, seen[self.targets[0]].dataset


def compared(accuracy: dict[str, np.ndarray], first: str) -> dict[str, dict[str, Any]]:
    """Means of accuracies `[targets, seeds]`, and what each is above those of `first`.

    Returns:
      By recipe: `accuracy`, `mean`, `by_target`, `spread` of the mean over targets among
      seeds; of all but the first `difference` with `mean` and `ci95` over pairs of target
      and seed, and the mean `by_target`.
    """
    found = {}
    for name, values in accuracy.items():
        found[name] = {
            "accuracy": values.tolist(),
            "mean": float(values.mean()),
            "by_target": values.mean(1).tolist(),
            "spread": spread(values.mean(0).tolist()),
        }
        if name != first:
            apart = values - accuracy[first]
            mean, half = float(apart.mean()), None
            if apart.size > 1:
                half = mean_ci95(apart.reshape(-1))[1]
            found[name]["difference"] = {
                "mean": mean,
                "ci95": half,
                "by_target": apart.mean(1).tolist(),
            }
    return found


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`: recipes down, targets across."""
    first = next(iter(row["rows"]))
    lines = [
        f"Accuracy on a domain of `{row['dataset']}` that training has not seen, training "
        f"seeds: {row['seeds']}; inductive. In brackets, how far above {first}, paired "
        "over targets and seeds:",
        "",
        f"| recipe | {' | '.join(row['targets'])} | mean |",
        "|---" * (2 + len(row["targets"])) + "|",
    ]
    for name, found in row["rows"].items():
        cells = [f"{100 * value:.1f} %" for value in (*found["by_target"], found["mean"])]
        if told := found.get("difference"):
            half = "" if told["ci95"] is None else f" ± {100 * told['ci95']:.1f}"
            cells[-1] += f" ({100 * told['mean']:+.1f}{half} points)"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines
