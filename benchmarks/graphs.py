"""Learners of few-shot nodes over the splits of a graph's classes, beside the centroid."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import metalearn as ml
from benchmarks import _harness, _runs
from benchmarks.against import spread
from metalearn.apps import FewShotNodes, Recipe, find
from metalearn.apps.graphs.few_nodes import NodeData
from metalearn.cli.train_options import parse_train
from metalearn.core.keys import of_seed
from metalearn.core.learner import MetaLearner
from metalearn.core.metrics import mean_ci95
from metalearn.data.graphs import num_splits
from metalearn.runs import environment
from metalearn.training.evaluation import keys_of_task
from metalearn.training.trainer import MetaTrainer

BASELINE = "graphs-centroid"
METRIC = "query/accuracy"


@dataclasses.dataclass(frozen=True)
class Graphs:
    """Trains recipes of nodes on splits of the classes, judged on each one's test classes.

    The splits are all choices of two test classes. They share classes, so they are no
    independent sample: told are the mean, the standard deviation over splits, and how many
    are better than with the centroid, but no interval. Validation stops; the test is read
    once, with the best variables and with those before training. Nothing is stored of a run
    but its numbers: it takes seconds.

    Attributes:
      dataset: Graph, such as cora or citeseer.
      recipes: Recipes of nodes; see `metalearn list`.
      splits: Numbers of the splits; all if none is given.
      shots: Support nodes of a class, in training and test.
      seeds: Training runs of each recipe on each split.
      set: Fields to override in all recipes, such as `--set steps=100`; of the centroid
        those of the application alone, such as `app.rows=unit`.
      part: Part to judge on: "test", or "validation" to choose settings, which stores
        nothing.
      data_dir: Folder of the graphs.
      json: Where to write; `benchmarks/results/graphs-SET.json` for 3 shots,
        `graphs-SET-Nshot.json` for others.
    """

    dataset: str
    recipes: tuple[str, ...] = ("graphs-meta-gnn", "graphs-protonet", "graphs-fine-tune")
    splits: tuple[int, ...] = ()
    shots: int = 3
    seeds: int = 1
    set: tuple[str, ...] = ()
    part: str = "test"
    data_dir: str | None = None
    json: str | None = None

    def run_benchmark(self) -> None:
        plans = self._check()
        environment.enable_compilation_cache()
        rows: dict[str, Any] = {}
        base: np.ndarray | None = None
        fingerprints: dict[int, str] = {}
        splits: tuple[int, ...] = ()
        for name, recipe in plans.items():
            runner = _Runner(recipe, self.data_dir)
            splits = runner.splits(self.splits)
            seeds = 1 if name == BASELINE else self.seeds
            found = [
                runner.run(number, seed, self.part)
                for number in splits
                for seed in range(seeds)
            ]
            for run in found:
                told = fingerprints.setdefault(run["split"], run["fingerprint"])
                if told != run["fingerprint"]:
                    raise SystemExit(f"{name} was judged on other tasks than the first.")
            values = np.asarray([run["accuracy"] for run in found]).reshape(-1, seeds)
            rows[name] = _row(recipe, found, values, base)
            base = values if base is None else base
            print(f"{name}: {_told(rows[name])}", flush=True)
        if self.part != "test":
            return
        stored = {
            "kind": "graphs",
            "dataset": self.dataset,
            "graph": {k: runner.record[k] for k in ("name", "graph", "num_features")},
            "splits": list(splits),
            "shots": self.shots,
            "seeds": self.seeds,
            "overrides": list(self.set),
            "origin": _runs.here(),
            "rows": rows,
        }
        suffix = "" if self.shots == 3 else f"-{self.shots}shot"
        _harness.store(f"graphs-{self.dataset}{suffix}", stored, self.json)

    def _check(self) -> dict[str, Recipe]:
        """The recipes by name, once all that is asked is seen to be possible.

        Raises:
          SystemExit: says what is not; nothing was trained.
        """
        if self.seeds < 1:
            raise SystemExit(f"--seeds is {self.seeds}; expected 1 or more.")
        if self.part not in ("test", "validation"):
            raise SystemExit(f"--part is {self.part!r}; expected test or validation.")
        if self.json and Path(self.json).is_dir():
            raise SystemExit(f"--json is {self.json}, a folder; expected a file.")
        names = (BASELINE, *(name for name in self.recipes if name != BASELINE))
        if len(set(names)) < len(names):
            raise SystemExit(f"--recipes is {self.recipes}; expected each once.")
        found = {}
        for name in names:
            if find(name).recipe.app.kind != FewShotNodes.kind:
                raise SystemExit(f"{name} is no recipe of nodes; see `metalearn list`.")
            own = (f"app.dataset={self.dataset}", f"app.shots={self.shots}")
            # The centroid is of the same features, but nothing of it is trained.
            shared = [
                pair
                for pair in self.set
                if name != BASELINE
                or pair.startswith("test_tasks")
                or (pair.startswith("app.") and not pair.startswith("app.widths"))
            ]
            plan = _runs.Plan(name, 1, (*own, *shared))
            found[name] = parse_train([name, *plan.options()])[2]
            found[name].check()
        return found


class _Runner:
    """Runs of one recipe, whose splits share the graph and the compiled programs."""

    def __init__(self, recipe: Recipe, data_dir: str | None):
        self.recipe = recipe
        self.app: Any = recipe.app
        self.data: NodeData = self.app.load(data_dir)
        self.record = self.app.describe(self.data)
        self.made: dict[int, tuple[MetaTrainer, MetaLearner]] = {}

    def splits(self, asked: tuple[int, ...]) -> tuple[int, ...]:
        num = num_splits(len(self.data.graph.class_names), self.app.test_classes)
        return asked or tuple(range(1, num + 1))

    def run(self, number: int, seed: int, part: str) -> dict[str, Any]:
        """Trains on a split and judges the best variables by validation."""
        began = time.perf_counter()
        recipe, app = self.recipe, dataclasses.replace(self.app, split_number=number)
        data = dataclasses.replace(self.data, split=app.split_of(self.data.graph))
        record = app.describe(data)
        # The classes that a head of all training classes has; else one learner for all.
        made = self.made.get(record["num_classes"])
        if made is None:
            made = recipe.trainer(record), recipe.build_judged(record)
            self.made[record["num_classes"]] = made
        trainer, judged = made
        key = of_seed(seed)
        # Those that `fit` starts from, by the same key.
        start = trainer.init(jax.random.split(key, 3)[0], app.example(record)).variables
        result = ml.fit(
            trainer,
            app.tasks(data, "train"),
            num_steps=recipe.steps,
            tasks_per_step=recipe.tasks_per_step,
            key=key,
            validation=ml.Validation(
                tasks=app.tasks(data, "validation"),
                learner=judged,
                num_tasks=recipe.validation_tasks,
                every=recipe.validate_every,
                start=recipe.validate_start,
                metric=app.metric,
                patience=recipe.patience,
            ),
            progress=False,
        )
        tasks, judged_by = app.tasks(data, part), _runs.KEYS[part]
        untrained, evaluation = (
            ml.evaluate(
                judged,
                variables,
                tasks,
                num_tasks=recipe.test_tasks,
                key=jax.random.key(judged_by),
            )
            for variables in (start, result.variables)
        )
        found = {
            "split": number,
            "seed": seed,
            "classes": record["parts"]["test"]["classes"],
            "accuracy": float(np.mean(evaluation.values[METRIC])),
            "untrained": float(np.mean(untrained.values[METRIC])),
            "ci95_tasks": mean_ci95(evaluation.values[METRIC])[1],
            "best_step": result.best_step,
            "seconds": round(time.perf_counter() - began, 1),
            "fingerprint": nodes_of(tasks, recipe.test_tasks, jax.random.key(judged_by)),
            "transductive": evaluation.transductive,
        }
        told = {k: found[k] for k in ("accuracy", "untrained", "best_step", "seconds")}
        print(f"split {number} seed {seed} {part}: {told}", flush=True)
        return found


def nodes_of(tasks: ml.TaskSampler, num: int, key: jax.Array) -> str:
    """Digest of the nodes and labels of the tasks that `evaluate` draws.

    Networks read other features of the same nodes, or subgraphs around them, so that the
    fingerprints of their evaluations differ.
    """

    def one(number: jax.Array) -> Any:
        task = tasks.sample.draw(tasks.data["drawn"], keys_of_task(key, number)[0])
        return task.support.x, task.support.y, task.query.x, task.query.y

    found = jax.tree.leaves(jax.jit(jax.vmap(one))(np.arange(num)))
    told = [(leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes()) for leaf in found]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _row(
    recipe: Recipe, runs: list[dict[str, Any]], values: np.ndarray, base: np.ndarray | None
) -> dict[str, Any]:
    """Facts of the runs of a recipe.

    Args:
      recipe: The recipe.
      runs: Facts of each run.
      values: Accuracies `[splits, seeds]`.
      base: Accuracies of the baseline, on the same splits.
    """
    untrained = np.asarray([run["untrained"] for run in runs]).reshape(values.shape)
    row = {
        "settings": recipe.settings(),
        "accuracy": over_splits(values.mean(1)),
        "untrained": over_splits(untrained.mean(1)),
        "by_seed": values.mean(0).tolist(),
        "spread": spread(values.mean(0).tolist()),
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "runs": [{k: v for k, v in run.items() if k != "fingerprint"} for run in runs],
    }
    if base is not None:
        apart = values.mean(1) - base.mean(1)
        row["difference"] = over_splits(apart) | {"positive": int((apart > 0).sum())}
    return row


def over_splits(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation over splits (None of a single one), and each."""
    each = values.tolist()
    return {"mean": float(values.mean()), "spread": spread(each), "by_split": each}


def _percent(told: dict[str, Any], sign: str = "") -> str:
    text = f"{100 * told['mean']:{sign}.1f}"
    if told["spread"] is not None:
        text += f" (σ {100 * told['spread']:.1f})"
    return text


def _told(row: dict[str, Any]) -> str:
    text = f"{_percent(row['accuracy'])} % of splits"
    text += f", untrained {_percent(row['untrained'])}"
    if apart := row.get("difference"):
        text += f", {_percent(apart, '+')} on the centroid, {apart['positive']} better"
    return f"{text}, {row['seconds']:.0f} s"


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`."""
    num = len(row["splits"])
    changed = ", ".join(f"`--set {pair}`" for pair in row["overrides"])
    lines = [
        f"Accuracy (%) on 2-way {row['shots']}-shot tasks of nodes of `{row['dataset']}`, "
        f"mean and standard deviation (σ) over {num} choices of two test classes, which "
        f"share classes and are no independent sample; training seeds of each: "
        f"{row['seeds']}; settings of the recipes{f', but {changed}' if changed else ''}; "
        "best step of validation; the graph is seen whole, queries are inductive. "
        "Untrained is the learner at its initialisation, adapted as after training. "
        "Differences are paired with the centroid of the propagated features, "
        "scaled to a norm of 1, for which nothing is trained:",
        "",
        "| | accuracy | untrained | difference | splits above the centroid | median best "
        "step | seconds of all runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in row["rows"].items():
        apart = found.get("difference")
        cells = [name, _percent(found["accuracy"])]
        if found["spread"] is not None:
            cells[1] += f", σ of seeds {100 * found['spread']:.1f}"
        if apart:
            steps = np.median([run["best_step"] for run in found["runs"]])
            cells += [_percent(found["untrained"]), _percent(apart, "+")]
            cells += [f"{apart['positive']} of {num}", f"{steps:.0f}"]
        else:
            cells += [""] * 4
        lines.append(f"| {' | '.join(cells)} | {found['seconds']:.0f} |")
    return lines
