"""A system against its baseline: all seeds trained, the same test tasks, paired."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _harness, _runs
from benchmarks.recipe import summary
from metalearn.core.metrics import mean_ci95
from metalearn.runs import folder as run_folder


@dataclasses.dataclass(frozen=True)
class Against:
    """Trains two recipes with the same seeds and compares them task by task.

    Runs of another machine or of other code are refused before anything is trained, and
    so are judgements on other tasks.

    Attributes:
      recipe: The system; see `metalearn list`.
      baseline: What it is compared with.
      seeds: Training runs of each.
      set: Fields to override in both recipes, such as `--set steps=100`; `inner_rate` is
        the rate of the inner loop, wherever a learner has it.
      set_system: Fields to override in the system alone.
      set_baseline: Fields to override in the baseline alone, such as the inner rate that
        `choose` found best for it.
      on: Another data set to judge on, of the same image shape, such as `glyphs` for runs
        on Omniglot.
      on_data_dir: Folder of its original archives, where it needs them.
      data_dir: Folder of the original archives, where the data set needs them.
      runs: Where run folders go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/against-RECIPE.json` by default. The name of
        the file is the name of the comparison.
    """

    recipe: str
    baseline: str
    seeds: int = 3
    set: tuple[str, ...] = ()
    set_system: tuple[str, ...] = ()
    set_baseline: tuple[str, ...] = ()
    on: str | None = None
    on_data_dir: str | None = None
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        system = _runs.Plan(self.recipe, self.seeds, (*self.set, *self.set_system))
        baseline = _runs.Plan(self.baseline, self.seeds, (*self.set, *self.set_baseline))
        origin = _runs.planned([system, baseline], self.runs)
        # The baseline first: its runs serve every system that is compared with it.
        base, mine = self._row(baseline), self._row(system)
        seen = {
            f"{plan.label} seed {seed}": told
            for plan, row in ((system, mine), (baseline, base))
            for seed, told in enumerate(row.pop("judged"))
        }
        fingerprint = _runs.check_tasks(seen)
        found = {
            "kind": "against",
            "system": self.recipe,
            "baseline": self.baseline,
            "seeds": list(range(self.seeds)),
            "overrides": list(system.overrides),
            "baseline_overrides": list(baseline.overrides),
            "on": self.on,
            "tasks": next(iter(seen.values()))[0],
            "fingerprint": fingerprint,
            "origin": origin,
            "difference": difference(mine.pop("values"), base.pop("values")),
            # Two rows, also where a recipe is compared with itself under other settings.
            "rows": {"system": mine, "baseline": base},
        }
        told = found["difference"]
        print(
            f"{system.label} - {baseline.label}: {told['mean']:+.4f} ± {told['ci95']:.4f} "
            f"over tasks; by seed {np.round(told['seeds'], 4)}, spread {told['spread']}"
        )
        suffix = "".join(f"-{pair}" for pair in system.overrides)
        name = f"against-{self.recipe}{suffix}" + (f"-on-{self.on}" if self.on else "")
        _harness.store(Path(self.json).stem if self.json else name, found, self.json)

    def _row(self, plan: _runs.Plan) -> dict[str, Any]:
        each, seconds, told, rates = [], [], [], []
        for seed in range(plan.seeds):
            folder = _runs.trained(plan, seed, self.runs, self.data_dir)
            data_dir = self.on_data_dir if self.on else self.data_dir
            evaluation = _runs.judged(folder, data_dir, on=self.on)
            print(f"{plan.label} seed {seed}: {evaluation}", flush=True)
            each.append({k: np.asarray(v) for k, v in evaluation.values.items()})
            told.append(_runs.told(evaluation))
            found = summary(folder)
            seconds.append(round(found["training_seconds"], 1))
            rates.append(_runs.learned_rates(folder))
        if rates[0]:
            print(f"{plan.label}: rates at the end {rates}", flush=True)
        metric = run_folder.load(folder).recipe.app.metric
        pooled = {
            key: mean_ci95(np.mean([e[key] for e in each], 0))
            for key in each[0]
            if key.startswith("query/")
        }
        by_seed = [float(e[metric].mean()) for e in each]
        return {
            "recipe": plan.recipe,
            "settings": found["settings"],
            "transductive": evaluation.transductive,
            "training_seconds": seconds,
            "metrics": {k: {"mean": m, "ci95": h} for k, (m, h) in pooled.items()},
            "by_seed": by_seed,
            "spread": spread(by_seed),
            "learned_rates": rates if rates[0] else None,
            "num_tasks": len(each[0][metric]),
            "judged": told,
            "values": np.stack([e[metric] for e in each]),
        }


def difference(system: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    """The paired difference of two arrays `[seeds, tasks]`.

    Returns:
      `mean` and `ci95` over tasks, of the mean over seeds; `seeds`, the mean of each; and
      `spread`, their standard deviation, which the interval leaves out.
    """
    apart = np.asarray(system, np.float64) - np.asarray(baseline, np.float64)
    mean, half = mean_ci95(apart.mean(0))
    seeds = apart.mean(1).tolist()
    return {"mean": mean, "ci95": half, "seeds": seeds, "spread": spread(seeds)}


def spread(values: list[float]) -> float | None:
    """Standard deviation of one number a seed; None of a single seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
