"""Students of one teacher: the same examples, paired on test batches."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

import metalearn as ml
from benchmarks import _harness, _runs
from benchmarks._intervals import student
from benchmarks.against import difference
from benchmarks.labels import told_of, trained
from metalearn import runs
from metalearn.apps import Distillation
from metalearn.cli.train_options import parse_train

DIGITS = ("distil-plain", "distil-meta", "distil-mixed", "distil-alone")
INTENTS = (
    "distil-text-plain",
    "distil-text-meta",
    "distil-text-mixed",
    "distil-text-alone",
)


@dataclasses.dataclass(frozen=True)
class Students:
    """Trains students with several seeds and judges each on the same test examples.

    Beside each student stands its teacher at the end, where it has one. What is trained is
    what the last step gives. All seeds of a recipe share its compiled programs.

    Attributes:
      recipes: Recipes of students, the first of which is compared with the others.
      seeds: Training runs of each recipe.
      set: Fields to override in all recipes, such as `--set steps=100`.
      part: Part to judge on; choices belong to validation, which stores nothing unless
        `json` says where.
      data_dir: Folder of the sets.
      json: Where to write; `benchmarks/results/distillation-DATASET.json` by default.
    """

    recipes: tuple[str, ...] = DIGITS
    seeds: int = 3
    set: tuple[str, ...] = ()
    part: _runs.Part = "test"
    data_dir: str | None = None
    json: str | None = None

    def run_benchmark(self) -> None:
        rows, told = {}, {}
        origin = _runs.here()
        for name in self.recipes:
            rows[name] = self._row(name)
            told[name] = rows[name].pop("judged")
        fingerprint = _runs.check_tasks(told)
        first = next(iter(rows.values()))
        base = first["values"][Distillation.metric]
        for name, row in rows.items():
            values = row.pop("values")
            row["metrics"] = {key: told_of(found) for key, found in values.items()}
            if name != self.recipes[0]:
                row["difference"] = difference(values[Distillation.metric], base)
                apart = row["difference"]
                print(f"{name}: {apart['mean']:+.4f} ± {apart['ci95']:.4f}", flush=True)
        if self.part != "test" and not self.json:
            return
        found = {
            "kind": "distillation",
            "seeds": list(range(self.seeds)),
            "overrides": list(self.set),
            "part": self.part,
            "origin": origin,
            "tasks": next(iter(told.values()))[0],
            "fingerprint": fingerprint,
            "rows": rows,
        }
        dataset = first["settings"]["app"]["dataset"]
        _harness.store("-".join(["distillation", dataset, *self.set]), found, self.json)

    def _row(self, name: str) -> dict[str, Any]:
        """All seeds of one recipe."""
        recipe = parse_train([name, *_runs.Plan(name, 1, self.set).options()])[2]
        app = recipe.app
        assert isinstance(app, Distillation)
        recipe.check()
        data = app.load(self.data_dir)
        record = app.describe(data)
        trainer, judge = recipe.trainer(record), recipe.build_judged(record)
        teacher = ml.no_adaptation(app.teacher_of(record), ml.losses.cross_entropy)
        tasks = app.tasks(data, "train")
        judged_on, num = runs.judged_tasks(recipe, data, self.part, recipe.test_tasks)

        def judged(learner: ml.MetaLearner, variables: ml.Variables) -> Any:
            key = jax.random.key(_runs.KEYS[self.part])
            return ml.evaluate(
                learner, variables, judged_on, num_tasks=num, key=key, metrics=app.measures
            )

        seconds, each, teachers = [], [], []
        for seed in range(self.seeds):
            began = time.perf_counter()
            found = trained(recipe, trainer, tasks, seed)
            seconds.append(round(time.perf_counter() - began, 1))
            evaluation = judged(judge, found)
            each.append({k: np.asarray(v) for k, v in evaluation.values.items()})
            if "teacher" in found.state and getattr(recipe.learner, "soft", 0):
                state = found.state
                own = ml.Variables(params=state["teacher"], state=state["teacher_state"])
                values = judged(teacher, own).values[Distillation.metric]
                teachers.append(float(np.mean(values)))
            print(f"{name} seed {seed}: {evaluation}, teacher {teachers[-1:]}", flush=True)
        return {
            "settings": recipe.settings(),
            "about": record["about"],
            "transductive": evaluation.transductive,
            "training_seconds": seconds,
            "teachers": teachers,
            "judged": _runs.told(evaluation),
            "values": {k: np.stack([e[k] for e in each]) for k in each[0]},
        }


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`: recipes down."""
    first, base = next(iter(row["rows"].items()))
    lines = [
        f"Students on `{row['tasks']}`, {base['about']}; training seeds: {row['seeds']}; "
        f"inductive. Differences to {first} have Student's intervals over seeds, in "
        "brackets each seed:",
        "",
        "| | accuracy of the student | difference, points | its teacher | seconds |",
        "|---|---|---|---|---|",
    ]
    for name, found in row["rows"].items():
        told, apart = found["metrics"]["query/accuracy"], found.get("difference")
        cells = [name, f"{100 * told['mean']:.2f} ± {100 * told['ci95']:.2f} %", ""]
        if apart:
            half, seeds = student(apart["seeds"]), apart["seeds"]
            around = "" if half is None else f" ± {100 * half:.2f}"
            each = ", ".join(f"{100 * value:+.1f}" for value in seeds)
            cells[-1] = f"{100 * apart['mean']:+.2f}{around} ({each})"
        teachers = found["teachers"]
        cells.append(f"{100 * np.mean(teachers):.2f} %" if teachers else "")
        # The first run compiles for the others.
        cells.append(f"{np.min(found['training_seconds']):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
