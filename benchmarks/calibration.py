"""How honest the probabilities of several runs are, on the same test tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks import _harness
from benchmarks.against import trained
from metalearn import run_folder, runs
from metalearn.metrics import calibration_error, mean_ci95
from metalearn.recipes.base import Recipe


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Trains recipes of one kind of task and compares likelihood and calibration.

    Attributes:
      recipes: Their names; the first is the baseline.
      seeds: Training runs of each.
      set: Fields to override in all recipes, such as `--set steps=100`.
      data_dir: Folder of the original archives, where the data set needs them.
      runs: Where run folders go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/calibration.json` by default.
    """

    recipes: tuple[str, ...]
    seeds: int = 3
    set: tuple[str, ...] = ()
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        rows: dict[str, Any] = {}
        baseline = None
        for name in self.recipes:
            found = [self._judged(name, seed) for seed in range(self.seeds)]
            nll = np.mean([f["nll"] for f in found], 0)  # [tasks]
            if baseline is None:
                baseline = nll
            errors = [f["calibration_error"] for f in found]
            rows[name] = {
                "settings": found[0]["settings"],
                "accuracy": _interval(np.mean([f["accuracy"] for f in found], 0)),
                "nll": _interval(nll),
                "nll_minus_first": _interval(nll - baseline),
                "calibration_error": {"mean": float(np.mean(errors)), "seeds": errors},
            }
            print(name, {k: v for k, v in rows[name].items() if k != "settings"})
        settings = {"kind": "calibration", "seeds": list(range(self.seeds))}
        _harness.store("calibration", {**settings, "rows": rows}, self.json)

    def _judged(self, name: str, seed: int) -> dict[str, Any]:
        run = run_folder.load(trained(name, seed, self.runs, self.data_dir, self.set))
        variables, _ = runs.best(run)
        data = run.recipe.load_data(self.data_dir, ("test",))
        probabilities, labels = _predictions(run.recipe, run.record, data, variables)
        at = np.take_along_axis(probabilities, labels[..., None], -1)[..., 0]
        return {
            "settings": run.recipe.settings(),
            "nll": -np.log(np.maximum(at, 1e-30)).mean(-1),
            "accuracy": (probabilities.argmax(-1) == labels).mean(-1),
            "calibration_error": calibration_error(
                probabilities.reshape(-1, probabilities.shape[-1]), labels.ravel()
            ),
        }


def _predictions(
    recipe: Recipe, record: Any, data: Any, variables: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[T, Q, W]` and labels `[T, Q]` of the tasks of `evaluate`, seed 0."""
    learner = recipe.evaluation_learner(record)
    sampler = recipe.tasks(data, "test")

    def one(number: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), number)
        k_task, k_adapt, k_predict = jax.random.split(key, 3)
        task = sampler.sample(sampler.data, k_task)
        adapted = learner.adapt(variables, task.support, key=k_adapt)
        outputs = learner.predict(adapted, task.query.x, key=k_predict)
        return jax.nn.softmax(outputs), task.query.y

    numbers = np.arange(recipe.test_tasks)
    return jax.tree.map(np.asarray, jax.jit(lambda n: jax.lax.map(one, n))(numbers))


def _interval(values: np.ndarray) -> dict[str, float]:
    mean, half = mean_ci95(values)
    return {"mean": mean, "ci95": half}
