"""A system against its baseline: all seeds trained, the same test tasks, paired."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import _harness
from benchmarks.recipe import summary
from metalearn import apps, runs
from metalearn.cli import main as cli
from metalearn.core.metrics import mean_ci95
from metalearn.runs import folder as run_folder


@dataclasses.dataclass(frozen=True)
class Against:
    """Trains two recipes with the same seeds and compares them task by task.

    Attributes:
      recipe: The system; see `metalearn list`.
      baseline: What it is compared with.
      seeds: Training runs of each.
      set: Fields to override in both recipes, such as `--set steps=100`; `inner_rate` is
        the rate of the inner loop, wherever a learner has it.
      data_dir: Folder of the original archives, where the data set needs them.
      runs: Where run folders go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/against-RECIPE.json` by default.
    """

    recipe: str
    baseline: str
    seeds: int = 3
    set: tuple[str, ...] = ()
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        rows = {name: self._row(name) for name in (self.recipe, self.baseline)}
        values = {name: row.pop("values") for name, row in rows.items()}
        apart = values[self.recipe] - values[self.baseline]  # [seeds, tasks]
        mean, half = mean_ci95(apart.mean(0))
        found = {
            "kind": "against",
            "system": self.recipe,
            "baseline": self.baseline,
            "seeds": list(range(self.seeds)),
            "overrides": list(self.set),
            "rows": rows,
            # Over tasks, of the mean over seeds; and what each seed says alone.
            "difference": {"mean": mean, "ci95": half, "seeds": apart.mean(1).tolist()},
        }
        print(f"difference {mean:+.4f} ± {half:.4f}, by seed {apart.mean(1).round(4)}")
        suffix = "".join(f"-{pair}" for pair in self.set)
        _harness.store(f"against-{self.recipe}{suffix}", found, self.json)

    def _row(self, name: str) -> dict[str, Any]:
        each, seconds = [], []
        for seed in range(self.seeds):
            folder = trained(name, seed, self.runs, self.data_dir, self.set)
            run = run_folder.load(folder)
            variables, _ = runs.best(run)
            data = run.recipe.app.load(self.data_dir, ("test",))
            evaluation = runs.judge(run, variables, data)
            print(f"{name} seed {seed}: {evaluation}", flush=True)
            each.append({k: np.asarray(v) for k, v in evaluation.values.items()})
            found = summary(folder)
            seconds.append(round(found["training_seconds"], 1))
        metric = run.recipe.app.metric
        pooled = {
            key: mean_ci95(np.mean([e[key] for e in each], 0))
            for key in each[0]
            if key.startswith("query/")
        }
        return {
            "settings": found["settings"],
            "transductive": evaluation.transductive,
            "training_seconds": seconds,
            "metrics": {k: {"mean": m, "ci95": h} for k, (m, h) in pooled.items()},
            "by_seed": [float(e[metric].mean()) for e in each],
            "num_tasks": len(each[0][metric]),
            "values": np.stack([e[metric] for e in each]),
        }


def trained(
    name: str, seed: int, runs_dir: str, data_dir: str | None, overrides: tuple[str, ...]
) -> Path:
    """The folder of a finished run; trains it, or goes on with it, where there is none."""
    suffix = "".join(f"-{pair}" for pair in overrides).replace("/", "_")
    folder = Path(runs_dir) / f"{name}{suffix}-seed{seed}"
    if not (folder / "results.json").is_file():
        argv = ["train", name, "--out", str(folder), "--seed", str(seed)]
        for pair in overrides:
            field, _, value = pair.partition("=")
            if field == "inner_rate":
                field = _place_of_rate(apps.find(name).recipe)
            argv += [f"--{field.replace('_', '-')}", value]
        argv += ["--data-dir", data_dir] if data_dir else []
        argv += ["--resume"] if (folder / "config.json").is_file() else []
        if code := cli.main(argv):
            raise SystemExit(code)
    return folder


def _place_of_rate(recipe: apps.Recipe) -> str:
    """Where the settings of a recipe hold the rate of the inner loop."""
    for name in ("inner_opt", "initial_rate", "rate"):
        if hasattr(recipe.learner, name):
            return f"learner.{name}.rate" if name == "inner_opt" else f"learner.{name}"
    raise ValueError(f"{recipe.learner.name} has no inner rate; leave inner_rate out.")
