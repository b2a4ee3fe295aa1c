"""Trainings in one process, one after another, for every target, setting and seed.

A run takes seconds, and compiling its program takes as long again. Targets have arrays of
the same shapes, so learners, programs and images are kept from run to run. Each run leaves
one file, with which a benchmark that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import metalearn as ml
from benchmarks import _runs
from metalearn import runs
from metalearn.apps.base import Recipe
from metalearn.cli.train_options import parse_train
from metalearn.core.keys import of_seed
from metalearn.core.learner import MetaLearner
from metalearn.runs import environment
from metalearn.training.trainer import MetaTrainer

ACCURACY = "query/accuracy"


def recipe_of(plan: _runs.Plan) -> Recipe:
    """The recipe of a plan with its overrides, checked."""
    found = parse_train([plan.recipe, *plan.options()])[2]
    found.check()
    return found


class Workshop:
    """Trains and judges, and keeps what the next run can use again."""

    def __init__(self, runs_dir: str | Path, data_dir: str | None) -> None:
        self._runs, self._data_dir = Path(runs_dir), data_dir
        self._data: dict[Any, Any] = {}
        self._samplers: dict[Any, Any] = {}
        self._learners: dict[str, tuple[MetaTrainer, MetaLearner]] = {}
        environment.enable_compilation_cache()

    def path(self, plan: _runs.Plan, seed: int) -> Path:
        """File of one run."""
        folder = plan.folder(seed, self._runs)
        return folder.with_name(f"{folder.name}.json")

    def run(self, plan: _runs.Plan, seed: int) -> dict[str, Any]:
        """What is known of a finished run; trains it if there is no file of it.

        Returns:
          `accuracy` on the target, `source_validation`, `best_step`, `seconds`, `settings`,
          `tasks` (name, fingerprint and number) and `origin`.
        """
        path = self.path(plan, seed)
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        found = self._trained(recipe_of(plan), seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return found

    def _trained(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        began = time.perf_counter()
        trainer, judged = self._built(recipe)
        valid, num = self._tasks(recipe, "validation")
        validation = ml.Validation(
            tasks=valid,
            learner=judged,
            num_tasks=num,
            every=recipe.validate_every,
            metrics=recipe.app.measures,
            metric=recipe.app.metric,
            patience=recipe.patience,
        )
        with warnings.catch_warnings():
            # A task of some fifty images has not always all classes, which is no fault.
            warnings.filterwarnings("ignore", message=".*are of classes that are not")
            result = ml.fit(
                trainer,
                self._tasks(recipe, "train")[0],
                num_steps=recipe.steps,
                tasks_per_step=recipe.tasks_per_step,
                key=of_seed(seed),
                validation=validation,
                log_every=recipe.log_every,
                progress=False,
                nonfinite=recipe.nonfinite,
            )
            tasks, num = self._tasks(recipe, "test")
            found = ml.evaluate(
                judged,
                result.variables,
                tasks,
                num_tasks=num,
                key=of_seed(_runs.KEYS["test"]),
                metrics=recipe.app.measures,
            )
        name = f"validation/{ACCURACY.partition('/')[2]}"
        return {
            "accuracy": float(np.mean(found.values[ACCURACY])),
            "source_validation": max(row[name] for row in result.history if name in row),
            "best_step": result.best_step,
            "seconds": round(time.perf_counter() - began, 1),
            "settings": recipe.settings(),
            "tasks": list(_runs.told(found)),
            "origin": _runs.here(),
        }

    def _built(self, recipe: Recipe) -> tuple[MetaTrainer, MetaLearner]:
        """Trainer and judged learner, which are the same whatever the target is."""
        settings = recipe.settings()
        settings["app"] = {k: v for k, v in settings["app"].items() if k != "target"}
        key = json.dumps(settings, sort_keys=True)
        if key not in self._learners:
            record = recipe.app.describe(self._loaded(recipe))
            made = recipe.trainer(record), recipe.build_judged(record)
            self._learners[key] = made
        return self._learners[key]

    def _loaded(self, recipe: Recipe) -> Any:
        if recipe.app not in self._data:
            self._data[recipe.app] = recipe.app.load(self._data_dir)
        return self._data[recipe.app]

    def _tasks(self, recipe: Recipe, part: str) -> tuple[Any, int]:
        key = recipe.app, part
        if key not in self._samplers:
            data = self._loaded(recipe)
            if part == "train":
                self._samplers[key] = recipe.app.tasks(data, part), 0
            else:
                asked = {"validation": recipe.validation_tasks, "test": recipe.test_tasks}
                self._samplers[key] = runs.judged_tasks(recipe, data, part, asked[part])
        return self._samplers[key]


def with_settings(plan: _runs.Plan, settings: tuple[str, ...]) -> _runs.Plan:
    """A plan with further overrides."""
    return dataclasses.replace(plan, overrides=(*plan.overrides, *settings))
