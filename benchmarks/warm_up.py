"""Clicks on new items in the cold phase and in three phases of warming up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import metalearn as ml
from benchmarks import _harness, _runs
from benchmarks.against import difference, spread
from benchmarks.recipe import summary
from metalearn import runs
from metalearn.cli.train_options import parse_train
from metalearn.core.learner import MetaLearner
from metalearn.runs import environment
from metalearn.runs import folder as run_folder

FIRSTS = ("generated", "mean", "random")
RECIPE = "clicks-meta-embedding"
# Phase: parts of `most_shots` that are shown. The cold phase knows the item and no click.
PHASES = {"cold": 1, "warm a": 1, "warm b": 2, "warm c": 3}


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """Trains a base model and a generator, and judges three first vectors of new items.

    Generated, mean and random vectors stand in the same base model, on the same clicks. The
    number of inner steps of each, in each phase and for each seed, is the best of `steps`
    by the log-loss of validation items.

    Attributes:
      networks: Base models: deepfm, fm, wide_deep, pnn, din.
      seeds: Training runs of each.
      steps: Inner steps to choose from.
      set: Fields to override, such as `--set steps=100`.
      data_dir: Folder of the sets.
      runs: Where run folders go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/warm-up-SET.json` by default, with what is
        overridden in its name, and the networks if not all are asked for.
    """

    networks: tuple[str, ...] = ("deepfm", "fm", "wide_deep", "pnn", "din")
    seeds: int = 3
    steps: tuple[int, ...] = (1, 5, 20)
    set: tuple[str, ...] = ()
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        plans = self._check()
        origin = _runs.planned(list(plans.values()), self.runs)
        found: dict[str, Any] = {
            "kind": "warm-up",
            "seeds": self.seeds,
            "steps": list(self.steps),
            "overrides": list(self.set),
            "origin": origin,
            "networks": {},
        }
        for network, plan in plans.items():
            folders = [
                _runs.trained(plan, seed, self.runs, self.data_dir)
                for seed in range(self.seeds)
            ]
            environment.enable_compilation_cache()
            run = run_folder.load(folders[0])
            found |= {k: run.record[k] for k in ("name", "about", "parts")}
            told = judged(folders, self.steps, self.data_dir)
            found["networks"][network] = {
                "settings": summary(folders[-1])["settings"],
                "training_seconds": [
                    round(summary(folder)["training_seconds"], 1) for folder in folders
                ],
                **told,
            }
            for phase, rows in told["phases"].items():
                for first, row in rows.items():
                    print(f"{network}, {phase}, {first}: AUC {row['auc']}", flush=True)
        # Other settings or networks stand beside those of the recipe.
        some = () if self.networks == WarmUp.networks else self.networks
        name = "-".join(["warm-up", found["name"], *some, *self.set])
        _harness.store(name, found, self.json)

    def _check(self) -> dict[str, _runs.Plan]:
        """The plan of each network, once all that is asked is seen to be possible.

        Raises:
          SystemExit: says what is not; nothing was trained.
        """
        for name, values in (("seeds", (self.seeds,)), ("steps", self.steps)):
            if not values or any(value < 1 for value in values):
                raise SystemExit(f"--{name} is {values}; expected 1 or more.")
        if not self.networks or len(set(self.networks)) < len(self.networks):
            raise SystemExit(f"--networks is {self.networks}; expected some, each once.")
        if self.json and Path(self.json).is_dir():
            raise SystemExit(f"--json is {self.json}, a folder; expected a file.")
        plans = {
            network: _runs.Plan(RECIPE, self.seeds, (f"app.network={network}", *self.set))
            for network in self.networks
        }
        for plan in plans.values():
            recipe = parse_train([plan.recipe, *plan.options()])[2]
            recipe.check()
            shots, most = recipe.app.shots, recipe.app.most_shots
            if most < 3 * shots:
                raise SystemExit(
                    f"app.most_shots is {most} and app.shots is {shots}; expected three "
                    "times as many, for three phases."
                )
        return plans


def judged(
    folders: list[Path], steps: tuple[int, ...], data_dir: str | None
) -> dict[str, Any]:
    """Log-loss and AUC of each first vector in each phase.

    Returns:
      `items` and `clicks`, how many are judged, and `phases`: by phase and first vector,
      `auc` over all clicks of all items and `loss` by seed, `steps` by seed; for the
      baselines `auc_gain` by seed with `mean` and `spread`, and `loss_difference` of the
      generated vector less this one, over items.
    """
    loaded = [run_folder.load(folder) for folder in folders]
    best = [runs.best(run) for run in loaded]
    trained = [int(each[0].state["step"]) for each in best]
    first = loaded[0].recipe.learner.pretrain_steps
    if min(trained) <= first:
        raise SystemExit(
            f"{folders[int(np.argmin(trained))]} has its best step at {min(trained)}, "
            f"when no generator was trained yet (after {first}). Train the base model for "
            "fewer steps: --set learner.pretrain_steps=NUMBER."
        )
    variables = [each[0] for each in best]
    recipe, record = loaded[0].recipe, loaded[0].record
    data = recipe.app.load(data_dir)
    found: dict[str, Any] = {"phases": {}}
    # Phases differ in what is masked alone, so that all share the compiled programs.
    predictors = {
        (first, num): _predictor(recipe, record, first, num)
        for first in FIRSTS
        for num in (0, *steps)
    }
    for phase, part in PHASES.items():
        app = dataclasses.replace(recipe.app, eval_shots=part * recipe.app.shots)
        batches = [_every(app.tasks(data, which)) for which in ("validation", "test")]
        found["items"] = len(batches[1].support.y)
        found["clicks"] = int(batches[1].query.y.size)
        rows: dict[str, Any] = {}
        for first in FIRSTS:
            choices = (0,) if phase == "cold" else steps
            predict = [predictors[first, num] for num in choices]
            rows[first] = [_judge(predict, choices, each, *batches) for each in variables]
        found["phases"][phase] = {
            first: _row(each, rows["generated"]) for first, each in rows.items()
        }
    return found


def _every(tasks: ml.TaskSampler) -> ml.Task:
    every = ml.tasks.in_order(tasks)
    return next(iter(every.batches(every.num_tasks or 2, 0)))


def _predictor(recipe: Any, record: dict, first: str, num_steps: int) -> Callable:
    """Function `(variables, tasks) -> logits [T, Q]`."""
    settings = dataclasses.replace(recipe.learner, first=first, num_steps=num_steps)
    made: MetaLearner = settings.build(recipe.app.offers(settings, record, evaluating=True))

    @jax.jit
    def predict(variables: ml.Variables, tasks: ml.Task):
        def one(task: ml.Task):
            adapted = made.adapt(variables, task.support)
            return made.predict(adapted, task.query.x)[:, 0]

        return jax.vmap(one)(tasks)

    return predict


def losses(logits: np.ndarray, tasks: ml.Task) -> np.ndarray:
    """Log-loss of each item, `[T]`."""
    logits, y = np.asarray(logits, np.float64), np.asarray(tasks.query.y)[..., 0]
    return np.mean(np.logaddexp(0, logits) - y * logits, axis=1)


def auc(logits: np.ndarray, tasks: ml.Task) -> float:
    """AUC over all clicks of all items together, as the paper has it."""
    flat = np.asarray(logits, np.float32).reshape(-1)
    y = np.asarray(tasks.query.y).reshape(-1)
    return float(ml.metrics.auc(flat, ml.Examples.of(flat, y)))


def _judge(
    predict: list[Callable],
    choices: tuple[int, ...],
    variables: ml.Variables,
    validation: ml.Task,
    test: ml.Task,
) -> dict[str, Any]:
    """One seed of one first vector, with the steps that validation chooses."""
    tried = [losses(one(variables, validation), validation).mean() for one in predict]
    best = int(np.argmin(tried))
    logits = predict[best](variables, test)
    return {
        "steps": choices[best],
        "auc": auc(logits, test),
        "losses": losses(logits, test),
    }


def _row(mine: list[dict], generated: list[dict]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "auc": [round(each["auc"], 5) for each in mine],
        "loss": [round(float(each["losses"].mean()), 5) for each in mine],
        "steps": [each["steps"] for each in mine],
    }
    if mine is not generated:
        gain = [a["auc"] - b["auc"] for a, b in zip(generated, mine, strict=True)]
        told["auc_gain"] = {
            "seeds": gain,
            "mean": float(np.mean(gain)),
            "spread": spread(gain),
        }
        told["loss_difference"] = difference(
            np.stack([each["losses"] for each in generated]),
            np.stack([each["losses"] for each in mine]),
        )
    return told


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`: phases down, first vectors across."""
    other = "".join(f"; `{setting}`" for setting in row["overrides"])
    lines = [
        f"AUC of clicks on new items of `{row['name']}` ({row['about']}), training seeds: "
        f"{row['seeds']}{other}; over all clicks of all items of the test; inductive; "
        "inner steps of each first vector by validation. In brackets, how much more the "
        "generated vector has, its spread over seeds, and its log-loss less that of the "
        "row, paired "
        "over items:",
        "",
        "| base model | phase | " + " | ".join(FIRSTS) + " |",
        "|---" * (2 + len(FIRSTS)) + "|",
    ]
    for network, told in row["networks"].items():
        for phase, rows in told["phases"].items():
            cells = [_cell(rows[first]) for first in FIRSTS]
            lines.append(f"| {network} | {phase} | {' | '.join(cells)} |")
    return lines


def _cell(told: dict[str, Any]) -> str:
    text = f"{np.mean(told['auc']):.4f}"
    if "auc_gain" not in told:
        return text
    gain, loss = told["auc_gain"], told["loss_difference"]
    apart = "" if gain["spread"] is None else f", σ {gain['spread']:.4f}"
    return f"{text} ({gain['mean']:+.4f}{apart}; {loss['mean']:+.4f} ± {loss['ci95']:.4f})"
