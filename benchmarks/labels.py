"""Learners against wrong labels or a long tail: the same images, paired on test batches."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

import metalearn as ml
from benchmarks import _harness, _runs
from benchmarks.against import difference, spread
from metalearn import runs
from metalearn.apps import NoisyLabels, Recipe
from metalearn.cli.train_options import parse_train
from metalearn.core.metrics import mean_ci95

Values = dict[str, np.ndarray]  # by metric, [tasks]


@dataclasses.dataclass(frozen=True)
class Labels:
    """Trains recipes of labels with several seeds and judges each on the same test images.

    What is trained is what the last step gives. All seeds of a recipe share its compiled
    programs, so this takes less time than as many commands.

    Attributes:
      recipes: Recipes of labels, the first of which is compared with the others.
      seeds: Training runs of each recipe.
      set: Fields to override in all recipes, such as `--set steps=100`, or in one of them,
        such as `--set labels-plain:outer.rate=0.1`.
      part: Part to judge on; choices belong to validation, which stores nothing unless
        `json` says where.
      data_dir: Folder of the sets.
      json: Where to write; `benchmarks/results/labels-FIRST.json` by default, of the first
        recipe.
    """

    recipes: tuple[str, ...] = (
        *("labels-plain", "labels-l2rw", "labels-meta-weight-net"),
        *("labels-clean-set", "labels-oracle"),
    )
    seeds: int = 3
    set: tuple[str, ...] = ()
    part: _runs.Part = "test"
    data_dir: str | None = None
    json: str | None = None

    def run_benchmark(self) -> None:
        rows, told = {}, {}
        plans = {name: self._plan(name) for name in self.recipes}
        origin = _runs.here()
        for name in self.recipes:
            rows[name] = self._row(name, plans[name])
            told[name] = rows[name].pop("judged")
        fingerprint = _runs.check_tasks(told)
        first = next(iter(rows.values()))
        metric = NoisyLabels.metric
        base = first["values"][metric]
        for name, row in rows.items():
            values = row.pop("values")
            row["metrics"] = {key: told_of(found) for key, found in values.items()}
            if name != self.recipes[0]:
                row["difference"] = difference(values[metric], base)
            shown = row["metrics"][metric]
            apart = row.get("difference", {"mean": 0.0, "ci95": 0.0})
            print(
                f"{name}: {shown['mean']:.4f}, by seed {np.round(shown['seeds'], 4)}; "
                f"{apart['mean']:+.4f} ± {apart['ci95']:.4f} to {self.recipes[0]}"
            )
        if self.part != "test" and not self.json:
            return
        found = {
            "kind": "labels",
            "seeds": list(range(self.seeds)),
            "overrides": list(self.set),
            "part": self.part,
            "origin": origin,
            "tasks": next(iter(told.values()))[0],
            "fingerprint": fingerprint,
            "rows": rows,
        }
        shared = [pair for pair in self.set if not _owner(pair)]
        name = "-".join(["labels", self.recipes[0].removeprefix("labels-"), *shared])
        _harness.store(name, found, self.json)

    def _plan(self, name: str) -> Recipe:
        """A recipe with what is set of all and of this one.

        Raises:
          SystemExit: it is none of labels, or a field is set of a recipe that is not here.
        """
        owners = {_owner(pair) for pair in self.set} - {None, *self.recipes}
        if owners:
            raise SystemExit(
                f"--set names {', '.join(sorted(map(str, owners)))}, not among --recipes: "
                f"{', '.join(self.recipes)}."
            )
        own = tuple(
            pair.removeprefix(f"{name}:")
            for pair in self.set
            if _owner(pair) in (None, name)
        )
        recipe = parse_train([name, *_runs.Plan(name, 1, own).options()])[2]
        if not isinstance(recipe.app, NoisyLabels):
            raise SystemExit(f"{name} is no recipe of labels; see `metalearn list`.")
        recipe.check()
        return recipe

    def _row(self, name: str, recipe: Recipe) -> dict[str, Any]:
        """All seeds of one recipe."""
        data = recipe.app.load(self.data_dir)
        record = recipe.app.describe(data)
        trainer, judge = recipe.trainer(record), recipe.build_judged(record)
        tasks = recipe.app.tasks(data, "train")
        judged_on, num = runs.judged_tasks(recipe, data, self.part, recipe.test_tasks)
        seconds, each = [], []
        for seed in range(self.seeds):
            began = time.perf_counter()
            found = trained(recipe, trainer, tasks, seed)
            seconds.append(round(time.perf_counter() - began, 1))
            evaluation = ml.evaluate(
                judge,
                found,
                judged_on,
                num_tasks=num,
                key=jax.random.key(_runs.KEYS[self.part]),
                metrics=recipe.app.measures,
            )
            print(f"{name} seed {seed}: {evaluation}, {seconds[-1]} s", flush=True)
            each.append({k: np.asarray(v) for k, v in evaluation.values.items()})
        return {
            "settings": recipe.settings(),
            "about": record["about"],
            "transductive": evaluation.transductive,
            "training_seconds": seconds,
            "judged": _runs.told(evaluation),
            "values": {k: np.stack([e[k] for e in each]) for k in each[0]},
        }


def _owner(pair: str) -> str | None:
    """The recipe whose field `pair` sets; None of all recipes."""
    field = pair.partition("=")[0]
    return field.partition(":")[0] if ":" in field else None


def trained(recipe: Recipe, trainer: Any, tasks: Any, seed: int) -> ml.Variables:
    """Variables after the last step."""
    found = ml.fit(
        trainer,
        tasks,
        num_steps=recipe.steps,
        tasks_per_step=recipe.tasks_per_step,
        key=jax.random.key(seed),
        log_every=recipe.log_every,
        nonfinite=recipe.nonfinite,
        progress=False,
    )
    return found.state.variables


def told_of(values: np.ndarray) -> dict[str, Any]:
    """Of `[seeds, tasks]`: mean and interval over tasks, the mean of each seed."""
    mean, half = mean_ci95(values.mean(0))
    seeds = values.mean(1).tolist()
    return {"mean": mean, "ci95": half, "seeds": seeds, "spread": spread(seeds)}


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`: recipes down."""
    first, base = next(iter(row["rows"].items()))
    lines = [
        f"Accuracy on `{row['tasks']}`, {base['about']}; training seeds: {row['seeds']}; "
        f"inductive. Differences to {first} are paired over test batches, σ is over seeds:",
        "",
        "| | accuracy | macro accuracy | difference, points | seconds |",
        "|---|---|---|---|---|",
    ]
    for name, found in row["rows"].items():
        cells = [name]
        for metric in ("query/accuracy", "query/macro_accuracy"):
            told = found["metrics"][metric]
            cells.append(f"{100 * told['mean']:.2f} ± {100 * told['ci95']:.2f} %")
        apart = found.get("difference")
        cells.append("")
        if apart:
            cells[-1] = f"{100 * apart['mean']:+.2f} ± {100 * apart['ci95']:.2f}"
            if apart["spread"] is not None:
                cells[-1] += f", σ {100 * apart['spread']:.2f}"
        cells.append(f"{np.mean(found['training_seconds']):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
