"""Learners of sequences on streams of classes: accuracy by presentation of a class.

The protocol of A. Santoro et al., Meta-Learning with Memory-Augmented Neural Networks, ICML
2016: every item of a stream is asked before its class is told. At the first presentation of
a class nothing of it has been seen, at the second one example has been, and so on. The
first is above chance all the same: a new class is none of those that were told, and the
last new one of a stream is certain.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import metalearn as ml
from benchmarks import _harness, _runs
from benchmarks.against import spread
from benchmarks.recipe import summary
from metalearn import runs
from metalearn.cli.train_options import parse_train
from metalearn.core.metrics import mean_ci95
from metalearn.runs import folder as run_folder

CHUNK = 50


@dataclasses.dataclass(frozen=True)
class Streams:
    """Trains recipes of learners that read streams, and judges them by presentation.

    Attributes:
      recipes: Recipes whose support sets are streams; see `metalearn list`.
      seeds: Training runs of each.
      set: Fields to override in all recipes, such as `--set steps=100`.
      data_dir: Folder of the original archives.
      runs: Where run folders go; finished ones are taken as they are.
      tasks: Number of meta-test streams.
      json: Where to write; `benchmarks/results/streams.json` by default.
    """

    recipes: tuple[str, ...]
    seeds: int = 3
    set: tuple[str, ...] = ()
    data_dir: str | None = None
    runs: str = "runs"
    tasks: int = 2000
    json: str | None = None

    def run_benchmark(self) -> None:
        if self.tasks < CHUNK or self.tasks % CHUNK:
            raise SystemExit(f"--tasks is {self.tasks}; expected a multiple of {CHUNK}.")
        plans = [_runs.Plan(recipe, self.seeds, self.set) for recipe in self.recipes]
        for plan in plans:
            check_reads(plan)
        origin = _runs.planned(plans, self.runs)
        rows = {plan.label: self._row(plan) for plan in plans}
        found = {"kind": "streams", "tasks": self.tasks, "origin": origin, "rows": rows}
        _harness.store(Path(self.json).stem if self.json else "streams", found, self.json)

    def _row(self, plan: _runs.Plan) -> dict[str, Any]:
        shares, seconds = [], []
        for seed in range(plan.seeds):
            folder = _runs.trained(plan, seed, self.runs, self.data_dir)
            shares.append(by_presentation(folder, self.data_dir, self.tasks))
            found = summary(folder)
            seconds.append(round(found["training_seconds"], 1))
            print(
                f"{plan.label} seed {seed}: {np.round(shares[-1].mean(0), 4)}", flush=True
            )
        app = run_folder.load(folder).recipe.app
        means = [
            dict(zip(("mean", "ci95"), mean_ci95(at), strict=True))
            for at in np.mean(shares, 0).T
        ]
        by_seed = [share.mean(0).tolist() for share in shares]
        return {
            "settings": found["settings"],
            "ways": app.test_ways,
            "training_seconds": seconds,
            "presentations": means,
            "by_seed": by_seed,
            "spread": [spread(list(at)) for at in zip(*by_seed, strict=True)],
        }


def check_reads(plan: _runs.Plan) -> None:
    """Refuses recipes whose learner reads no stream, or sees later items of one.

    Raises:
      SystemExit: says which; nothing was trained.
    """
    learner = parse_train([plan.recipe, *plan.options()])[2].learner
    if learner.record.build not in (ml.rnn, ml.mann):
        raise SystemExit(
            f"{plan.label} is a recipe of {learner.record.name}, which does not read a "
            "stream; expected one of rnn or mann."
        )
    if getattr(learner, "norm", "running") != "running":
        raise SystemExit(
            f"{plan.label} has norm={learner.norm!r}, by which an answer depends on images "
            "of later items; expected norm='running'."
        )


def by_presentation(folder: Path, data_dir: str | None, num: int) -> np.ndarray:
    """Accuracy at each presentation of a class, `[tasks, presentations]`."""
    run = run_folder.load(folder)
    app, (variables, _) = run.recipe.app, runs.best(run)
    learner = run.recipe.build_judged(run.record)
    sampler = app.tasks(app.load(data_dir, ("test",)), "test")

    @jax.jit
    def judged(data, keys):
        def one(key):
            k_task, k_order = jax.random.split(key)
            task = sampler.sample(data, k_task)
            adapted = learner.adapt(variables, task.support, key=k_order)
            return ml.presentations(adapted.fitted, app.test_shots)

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(0), num)
    parts = [judged(sampler.data, keys[i : i + CHUNK]) for i in range(0, num, CHUNK)]
    hits, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    return hits / counts


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`: learners down, presentations across."""
    first = next(iter(row["rows"].values()))
    most, ways = len(first["presentations"]), first["ways"]
    lines = [
        f"Accuracy (%) at each presentation of a class, on {row['tasks']:,} streams of "
        f"{ways} unseen classes with {most} drawings each, in random order, every item "
        f"asked before its class is told; {len(first['by_seed'])} training seeds, "
        "intervals over streams, σ over seeds:",
        "",
        f"| | {' | '.join(str(1 + k) for k in range(most))} |",
        "|---" * (1 + most) + "|",
    ]
    for name, found in row["rows"].items():
        cells = [
            f"{100 * at['mean']:.1f} ± {100 * at['ci95']:.1f}"
            + ("" if sigma is None else f", σ {100 * sigma:.1f}")
            for at, sigma in zip(found["presentations"], found["spread"], strict=True)
        ]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines
