"""A setting chosen on validation classes, so that a baseline is tuned as a system is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks import _harness, _runs
from benchmarks.against import spread
from metalearn.apps import find
from metalearn.core.metrics import higher_is_better, mean_ci95


@dataclasses.dataclass(frozen=True)
class Choose:
    """Trains a recipe with each value of a field and judges on validation classes.

    Attributes:
      recipe: The recipe; see `metalearn list`.
      field: Field to vary, such as `learner.outer_radius`; `inner_rate` is the rate of the
        inner loop, wherever a learner has it.
      values: Its values.
      seeds: Training runs of each.
      set: Further fields to override, such as `--set steps=1500`.
      measure: What decides: `query/loss`, where likelihoods do. The metric of the
        application by default.
      tasks: Validation tasks.
      data_dir: Folder of the original archives, where the data set needs them.
      runs: Where run folders go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/choose-RECIPE-FIELD.json` by default.
    """

    recipe: str
    field: str
    values: tuple[str, ...]
    seeds: int = 1
    set: tuple[str, ...] = ()
    measure: str | None = None
    tasks: int = 600
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        pairs = [(value, f"{self.field}={value}") for value in self.values]
        plans = {
            value: _runs.Plan(self.recipe, self.seeds, (*self.set, pair))
            for value, pair in pairs
        }
        measure = self.measure or find(self.recipe).recipe.app.metric
        higher_is_better(measure)  # refused before anything is trained
        origin = _runs.planned(list(plans.values()), self.runs)
        rows: dict[str, Any] = {}
        seen = {}
        for value, plan in plans.items():
            each = []
            for seed in range(self.seeds):
                folder = _runs.trained(plan, seed, self.runs, self.data_dir)
                found = _runs.judged(
                    folder, self.data_dir, part="validation", tasks=self.tasks
                )
                print(f"{plan.label} seed {seed}: {found}", flush=True)
                seen[f"{plan.label} seed {seed}"] = _runs.told(found)
                each.append(np.asarray(found.values[measure]))
            mean, half = mean_ci95(np.mean(each, 0))
            by_seed = [float(values.mean()) for values in each]
            rows[value] = {
                "mean": mean,
                "ci95": half,
                "by_seed": by_seed,
                "spread": spread(by_seed),
            }
        best = choice(rows, measure)
        print(f"{self.recipe}: {self.field}={best} has the best {measure}")
        stored = {
            "kind": "choice",
            "recipe": self.recipe,
            "field": self.field,
            "overrides": list(self.set),
            "seeds": list(range(self.seeds)),
            "measure": measure,
            "tasks": next(iter(seen.values()))[0],
            "num_tasks": self.tasks,
            "fingerprint": _runs.check_tasks(seen),
            "origin": origin,
            # JSON knows no NaN: a mean of training that diverged is null.
            "rows": {value: _finite(row) for value, row in rows.items()},
            "best": best,
        }
        name = "-".join(["choose", self.recipe, self.field, *self.set])
        _harness.store(name, stored, self.json)


def _finite(value: Any) -> Any:
    """Numbers that are not finite as None, in lists and dicts too."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def choice(rows: dict[str, dict[str, Any]], measure: str) -> str:
    """The value with the best mean, by the direction that the library knows.

    Raises:
      ValueError: nothing says whether more of the measure is better, or no mean is finite.
    """
    more = higher_is_better(measure)
    # A value under which training has diverged is none to choose.
    finite = {value: row["mean"] for value, row in rows.items() if np.isfinite(row["mean"])}
    if not finite:
        raise ValueError(f"{measure} is finite under none of {list(rows)}.")
    return (max if more else min)(finite, key=lambda value: finite[value])
