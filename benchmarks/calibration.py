"""How honest the probabilities of several runs are, on the same test tasks."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _harness, _runs
from benchmarks.against import spread
from metalearn import runs
from metalearn.algorithms.bayesian.ensemble import joint_loss, members
from metalearn.apps.base import Recipe
from metalearn.core import digest
from metalearn.core.metrics import calibration_error, mean_ci95
from metalearn.runs import folder as run_folder

SAMPLED = ("llama", "platipus", "bmaml", "emaml")  # adapted objects have an axis of samples


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Trains recipes of one kind of task and compares likelihood and calibration.

    Attributes:
      recipes: Their names; the first is the baseline.
      seeds: Training runs of each.
      set: Fields to override in all recipes, see `against`.
      part: "test", or "validation" to choose settings by.
      data_dir: Folder of the original archives, where the data set needs them.
      runs: Where run folders go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/calibration-BASELINE.json` by default.
    """

    recipes: tuple[str, ...]
    seeds: int = 3
    set: tuple[str, ...] = ()
    part: Literal["test", "validation"] = "test"
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        plans = [_runs.Plan(name, self.seeds, self.set) for name in self.recipes]
        origin = _runs.planned(plans, self.runs)
        rows: dict[str, Any] = {}
        seen: dict[str, tuple[str, str, int]] = {}
        baseline = None
        for plan in plans:
            name = plan.recipe
            found = [self._judged(plan, seed) for seed in range(self.seeds)]
            seen |= {f"{name} seed {s}": f.pop("tasks") for s, f in enumerate(found)}
            fingerprint = _runs.check_tasks(seen)
            each = {
                measure: np.stack([f[measure] for f in found])  # [seeds, tasks]
                for measure, values in found[0].items()
                if isinstance(values, np.ndarray)
            }
            baseline = baseline or each
            errors = [f["calibration_error"] for f in found]
            rows[name] = {
                "settings": found[0]["settings"],
                **{measure: _interval(values.mean(0)) for measure, values in each.items()},
                **{
                    f"{measure}_minus_first": {
                        **_interval((each[measure] - baseline[measure]).mean(0)),
                        **_by_seed((each[measure] - baseline[measure]).mean(1)),
                    }
                    for measure in ("nll", "joint_nll")
                },
                "calibration_error": {
                    "mean": float(np.mean(errors)),
                    **_by_seed(np.asarray(errors)),
                },
            }
            print(name, {k: v for k, v in rows[name].items() if k != "settings"})
            # After each recipe, so that what ends the next one costs no finished work.
            stored = {
                "kind": "calibration",
                "part": self.part,
                "seeds": list(range(self.seeds)),
                "overrides": list(self.set),
                "fingerprint": fingerprint,
                "origin": origin,
                "rows": rows,
            }
            _harness.store(f"calibration-{self.recipes[0]}", stored, self.json)
            # Programs map memory, of which Linux allows a process 65,530 pieces.
            jax.clear_caches()

    def _judged(self, plan: _runs.Plan, seed: int) -> dict[str, Any]:
        run = run_folder.load(_runs.trained(plan, seed, self.runs, self.data_dir))
        variables, _ = runs.best(run)
        data = run.recipe.app.load(self.data_dir, (self.part,))
        tasks = run.recipe.app.tasks(data, self.part)
        found = _predictions(run.recipe, run.record, tasks, variables)
        mean, logs, labels, conflict, examples = found
        own = np.take_along_axis(logs, labels[:, None, :, None], -1)[..., 0]  # [T, M, Q]
        at = np.take_along_axis(mean, labels[..., None], -1)[..., 0]
        num = labels.shape[1]
        found = {
            "settings": run.recipe.settings(),
            "tasks": (tasks.name, examples, len(labels)),
            "nll": -np.log(np.maximum(at, 1e-30)).mean(-1),
            "joint_nll": np.asarray(jax.vmap(joint_loss, (0, None))(-own.mean(-1), num)),
            "accuracy": (mean.argmax(-1) == labels).mean(-1),
            "confidence": mean.max(-1).mean(-1),
            "calibration_error": calibration_error(
                mean.reshape(-1, mean.shape[-1]), labels.ravel()
            ),
        }
        if conflict is not None:
            hit = logs.argmax(-1) == labels[:, None]  # [T, M, Q]
            share = np.where(conflict[:, None], hit, 0).sum(-1)
            share = share / np.maximum(conflict.sum(-1), 1)[:, None]  # [T, M]
            known = np.where(conflict, 0, mean.argmax(-1) == labels).sum(-1)
            found["accuracy_where_known"] = known / np.maximum((~conflict).sum(-1), 1)
            found["both_rules"] = ((share.max(1) >= 0.75) & (share.min(1) <= 0.25)) * 1.0
        return found


def _predictions(
    recipe: Recipe, record: Any, sampler: Any, variables: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, str]:
    """What is predicted of the tasks of `evaluate`, seed 0.

    Returns:
      Probabilities `[T, Q, W]`; log-probabilities of each sample `[T, M, Q, W]`, M being
      one for learners that draw none; labels `[T, Q]`; for tasks of two rules, where they
      disagree, bool `[T, Q]`, else None; a fingerprint of all support and query sets.
    """
    learner = recipe.build_judged(record)

    def one(number: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), number)
        k_task, k_adapt, k_predict = jax.random.split(key, 3)
        task = sampler.sample(sampler.data, k_task)
        adapted = learner.adapt(variables, task.support, key=k_adapt)
        outputs = learner.predict(adapted, task.query.x, key=k_predict)
        each = outputs[None]
        if recipe.learner.name in SAMPLED:
            each = members(learner, adapted, task.query.x, key=k_predict)
        conflict = task.info.get("conflict", jnp.zeros((0,), bool))
        examples = (task.support, task.query)
        logs = jax.nn.log_softmax(each)
        return jax.nn.softmax(outputs), logs, task.query.y, conflict, examples

    numbers = np.arange(recipe.test_tasks)
    found = jax.tree.map(np.asarray, jax.jit(lambda n: jax.lax.map(one, n))(numbers))
    mean, logs, labels, conflict, examples = found
    digests = [digest.of_array(leaf) for leaf in jax.tree.leaves(examples)]
    fingerprint = digest.of_json(digests)[:16]
    conflict = conflict if conflict.shape == labels.shape else None
    return mean, logs, labels, conflict, fingerprint


def _by_seed(values: np.ndarray) -> dict[str, Any]:
    """One number a seed, and their standard deviation."""
    seeds = values.tolist()
    return {"seeds": seeds, "spread": spread(seeds)}


def _interval(values: np.ndarray) -> dict[str, float]:
    mean, half = mean_ci95(values)
    return {"mean": mean, "ci95": half}
