"""Domain generalisation: each domain left out in turn, learners against joint training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _harness, _runs
from benchmarks._domain_runs import Workshop, recipe_of, with_settings
from benchmarks._intervals import student
from benchmarks.against import spread
from metalearn.apps import UnseenDomain, find


@dataclasses.dataclass(frozen=True)
class Domains:
    """Trains recipes with each domain left out in turn, and judges them on that domain.

    A run is judged on every image of its target once. The unit of an interval is the
    training seed: the accuracies of a seed are averaged over the targets, and the interval
    of a difference is Student's over the seeds. Targets are not drawn from anything, and
    those of one seed share their images, so they are no sample.

    With `choose`, each recipe has several settings. For every target the one is taken whose
    run with seed 0 is best in validation, which is on the sources of that target; the
    target takes no part in it.

    Attributes:
      recipes: Recipes of domains, the first of which is compared with the others.
      targets: Domains to leave out.
      seeds: Training runs of each recipe and target.
      set: Fields to override in all recipes, such as `--set steps=100`.
      choose: Settings to choose from: RECIPE:FIELD=VALUE, and further FIELD=VALUE after
        commas. RECIPE: alone is the recipe as it is, which is all that a recipe has of
        which nothing is said.
      data_dir: Folder of the sets.
      runs: Where the files of runs go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/domains-SET.json` by default.
    """

    recipes: tuple[str, ...] = ("domains-pacs-erm", "domains-pacs-mldg")
    targets: tuple[str, ...] = ("art_painting", "cartoon", "photo", "sketch")
    seeds: int = 3
    set: tuple[str, ...] = ()
    choose: tuple[str, ...] = ()
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        plans, dataset = self._check()
        shop = Workshop(self.runs, self.data_dir)
        origin = _runs.here()
        origins = {"this benchmark": origin}
        found: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in plans}
        chosen: dict[tuple[str, str], _runs.Plan] = {}
        tasks: dict[str, dict[str, Any]] = {target: {} for target in self.targets}
        tried: dict[str, dict[str, dict[str, float]]] = {name: {} for name in self.recipes}
        # Seed by seed, so that what is there when time ends is a comparison.
        for seed in range(self.seeds):
            for target in self.targets:
                for name in self.recipes:
                    key = name, target
                    if not seed:
                        runs = {plan: shop.run(plan, 0) for plan in plans[key]}
                        chosen[key] = best_of(runs)
                        held = {p.label: r["source_validation"] for p, r in runs.items()}
                        tried[name][target] = held
                    run = shop.run(chosen[key], seed)
                    label = f"{chosen[key].label} seed {seed}"
                    origins[label] = run["origin"]
                    tasks[target][label] = tuple(run["tasks"])
                    found[key].append(run)
                    print(f"{label}: {run['accuracy']:.4f}", flush=True)
            _runs.check_origins(origins)
            self._store(found, tried, tasks, (dataset, origin), seed + 1)

    def _store(self, found, tried, tasks, made: tuple[str, Any], seeds: int) -> None:
        """Writes what the seeds so far tell."""
        dataset, origin = made
        accuracy, rows = {}, {}
        for name in self.recipes:
            runs = [found[name, target] for target in self.targets]
            accuracy[name] = _table(runs, "accuracy")
            rows[name] = {
                "settings": runs[0][0]["settings"],
                "tried": tried[name],
                "source_validation": _table(runs, "source_validation").tolist(),
                "seconds": _table(runs, "seconds").tolist(),
            }
        for name, told in compared(accuracy, self.recipes[0]).items():
            rows[name] |= told
            print(f"{name}: {told['mean']:.4f}, {told.get('difference')}", flush=True)
        _harness.store(
            f"domains-{dataset}",
            {
                "kind": "domains",
                "dataset": dataset,
                "targets": list(self.targets),
                "seeds": seeds,
                "overrides": list(self.set),
                "choose": list(self.choose),
                "fingerprints": {t: _runs.check_tasks(seen) for t, seen in tasks.items()},
                "origin": origin,
                "rows": rows,
            },
            self.json,
        )

    def _check(self) -> tuple[dict[tuple[str, str], list[_runs.Plan]], str]:
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
        settings: dict[str, list[tuple[str, ...]]] = {name: [] for name in self.recipes}
        for item in self.choose:
            name, colon, fields = item.partition(":")
            if not colon or name not in settings:
                raise SystemExit(
                    f"--choose has {item!r}; expected RECIPE:FIELD=VALUE, where RECIPE is "
                    f"one of {', '.join(self.recipes)}."
                )
            settings[name].append(tuple(fields.split(",")) if fields else ())
        plans: dict[tuple[str, str], list[_runs.Plan]] = {}
        seen: dict[str, UnseenDomain] = {}
        for name in self.recipes:
            if find(name).recipe.app.kind != UnseenDomain.kind:
                raise SystemExit(f"{name} is no recipe of domains.")
            for target in self.targets:
                plan = _runs.Plan(name, self.seeds, (*self.set, f"app.target={target}"))
                plans[name, target] = [
                    with_settings(plan, more) for more in settings[name] or [()]
                ]
                for one in plans[name, target]:
                    # Images without labels are the learner's; all else is to be shared.
                    app = dataclasses.replace(recipe_of(one).app, unlabelled=None)
                    if seen.setdefault(target, app) != app:
                        raise SystemExit(
                            "the recipes are of different data; expected the same."
                        )
        return plans, seen[self.targets[0]].dataset


def best_of(runs: dict[_runs.Plan, dict[str, Any]]) -> _runs.Plan:
    """The plan whose run is best in validation on its sources; of equal ones the first."""
    return max(runs, key=lambda plan: runs[plan]["source_validation"])


def _table(runs: list[list[dict[str, Any]]], what: str) -> np.ndarray:
    """One number of every run, `[targets, seeds]`."""
    return np.asarray([[run[what] for run in of_target] for of_target in runs])


def compared(accuracy: dict[str, np.ndarray], first: str) -> dict[str, dict[str, Any]]:
    """Means of accuracies `[targets, seeds]`, and what each is above those of `first`.

    Returns:
      By recipe: `accuracy`, `mean`, `by_target`, `spread` of the mean over targets among
      seeds; of all but the first `difference` with `mean`, the mean `by_target` and
      `by_seed`, and `ci95`, the half-width of Student's interval over the means of seeds.
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
            found[name]["difference"] = {
                "mean": float(apart.mean()),
                "ci95": student(apart.mean(0)),
                "unit": "training seeds, of the mean over targets",
                "by_target": apart.mean(1).tolist(),
                "by_seed": apart.mean(0).tolist(),
            }
    return found


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`: recipes down, targets across."""
    first = next(iter(row["rows"]))
    changed = "".join(f" `{pair}`" for pair in row.get("overrides", ()))
    lines = [
        f"Accuracy on a domain of `{row['dataset']}` whose labels training has not seen,"
        f"{changed}; training seeds: {row['seeds']}; settings were chosen on the sources. "
        f"In brackets, how far above {first}: the mean over targets of each seed, with "
        "Student's interval over the seeds:",
        "",
        f"| recipe | {' | '.join(row['targets'])} | mean |",
        "|---" * (2 + len(row["targets"])) + "|",
    ]
    for name, found in row["rows"].items():
        cells = [f"{100 * value:.1f} %" for value in (*found["by_target"], found["mean"])]
        if told := found.get("difference"):
            half = "" if told["ci95"] is None else f" ± {100 * told['ci95']:.1f}"
            cells[-1] += f" ({100 * told['mean']:+.1f}{half} points)"
        lines.append(f"| {name}{_seen(found)} | {' | '.join(cells)} |")
    return lines


def _seen(row: dict[str, Any]) -> str:
    """A word where images of the target were seen without labels."""
    app = row.get("settings", {}).get("app", {})
    return ", transductive" if app.get("unlabelled") else ", inductive"
