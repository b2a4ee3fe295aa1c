"""Ratings in the four states of a cold start, and what asking a new user is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import metalearn as ml
from benchmarks import _harness, _runs
from benchmarks.against import difference, spread
from benchmarks.recipe import summary
from metalearn import runs
from metalearn.apps import FewRatings, find
from metalearn.apps.recommendation import candidates
from metalearn.apps.recommendation.candidates import movements
from metalearn.cli.train_options import parse_train
from metalearn.core.metrics import mean_ci95
from metalearn.data.ratings import STATES, Ratings
from metalearn.runs import environment
from metalearn.runs import folder as run_folder

MAE, NDCG = "query/mae", "query/ndcg@3"
MEANS = ("mean of the user", "mean of the item", "mean of all")
KINDS = ("evidence", "popular", "random")
Values = dict[str, np.ndarray]  # by metric, [tasks]


@dataclasses.dataclass(frozen=True)
class ColdStarts:
    """Trains recipes of ratings and judges each in every state, on every test user once.

    Beside them stand means of ratings, for which nothing is trained. Then the first recipe
    adapts to the answers that new users give about evidence candidates, popular items and
    items at random, on the same queries.

    Attributes:
      recipes: Recipes of ratings, the first of which is compared with the others.
      seeds: Training runs of each recipe.
      asked: Numbers of items that a new user is asked about.
      set: Fields to override in all recipes, such as `--set steps=100`.
      data_dir: Folder of the sets.
      runs: Where run folders go; finished ones are taken as they are.
      json: Where to write; `benchmarks/results/cold-start-SET.json` by default.
    """

    recipes: tuple[str, ...] = (
        *("ratings-melu", "ratings-maml"),
        *("ratings-fine-tune", "ratings-joint"),
    )
    seeds: int = 3
    asked: tuple[int, ...] = (10, 20, 40)
    set: tuple[str, ...] = ()
    data_dir: str | None = None
    runs: str = "runs"
    json: str | None = None

    def run_benchmark(self) -> None:
        plans = self._check()
        origin = _runs.planned(plans, self.runs)
        folders = {
            plan.recipe: [
                _runs.trained(plan, seed, self.runs, self.data_dir)
                for seed in range(plan.seeds)
            ]
            for plan in plans
        }
        environment.enable_compilation_cache()
        first = run_folder.load(folders[self.recipes[0]][0])
        app, data = first.recipe.app, first.recipe.app.load(self.data_dir)
        found: dict[str, Any] = {
            "kind": "cold-start",
            "dataset": app.dataset,
            "record": {k: first.record[k] for k in ("name", "about", "parts")},
            "seeds": self.seeds,
            "overrides": list(self.set),
            "origin": origin,
            "rows": {
                name: {
                    "settings": summary(each[-1])["settings"],
                    "training_seconds": [
                        round(summary(f)["training_seconds"], 1) for f in each
                    ],
                    "best_steps": [summary(f)["result"]["best_step"] for f in each],
                    "states": {},
                }
                for name, each in folders.items()
            }
            | {name: {"states": {}} for name in MEANS},
        }
        for state in STATES:
            tasks = app.tasks_in(data, "test", state)
            values = {
                name: [_judged(folder, tasks) for folder in each]
                for name, each in folders.items()
            }
            train = data.split.mask(data.ratings, "train")
            values |= {k: [v] for k, v in means(data.ratings, train, tasks).items()}
            for name, told in compared(values, self.recipes[0]).items():
                found["rows"][name]["states"][state] = told
                print(f"{state}, {name}: {told[MAE]}", flush=True)
        found["asked"] = {
            str(num): self._asked(folders[self.recipes[0]], data, num) for num in self.asked
        }
        _harness.store(f"cold-start-{app.dataset}", found, self.json)

    def _check(self) -> list[_runs.Plan]:
        """The plans, once all that is asked is seen to be possible.

        Raises:
          SystemExit: says what is not; nothing was trained.
        """
        if not self.recipes or len(set(self.recipes)) < len(self.recipes):
            raise SystemExit(f"--recipes is {self.recipes}; expected some, each once.")
        for name, values in (("seeds", (self.seeds,)), ("asked", self.asked)):
            if any(value < 1 for value in values):
                raise SystemExit(f"--{name} is {values}; expected 1 or more.")
        if self.json and Path(self.json).is_dir():
            raise SystemExit(f"--json is {self.json}, a folder; expected a file.")
        plans = [_runs.Plan(name, self.seeds, self.set) for name in self.recipes]
        seen = set()
        for plan in plans:
            if find(plan.recipe).recipe.app.kind != FewRatings.kind:
                raise SystemExit(f"{plan.recipe} is no recipe of ratings.")
            recipe = parse_train([plan.recipe, *plan.options()])[2]
            recipe.check()
            seen.add(recipe.app)
        if len(seen) > 1:
            raise SystemExit("the recipes are of different data; expected the same.")
        return plans

    def _asked(self, folders: list[Path], data: Any, num: int) -> dict[str, Any]:
        """MAE by the kind of `num` items that test users are asked about."""
        each: dict[str, list[Values]] = {kind: [] for kind in (*KINDS, "nothing")}
        answers: dict[str, list[float]] = {kind: [] for kind in KINDS}
        asked = [items_asked(folder, data, num, s) for s, folder in enumerate(folders)]
        # No query is of an item that a list of any seed has, so all have the same users.
        anywhere = {f"{k} {s}": v for s, own in enumerate(asked) for k, v in own.items()}
        for lists, folder in zip(asked, folders, strict=True):
            users = {
                kind: asking(folder, data, items, anywhere) for kind, items in lists.items()
            }
            for kind, tasks in users.items():
                each[kind].append(_judged(folder, tasks))
                answers[kind].append(mean_answers(tasks))
            each["nothing"].append(_judged(folder, users["popular"], steps=0))
        told = compared(each, "evidence")
        for kind in KINDS:
            told[kind]["answers"] = answers[kind]
        for kind in told:
            print(f"asked about {num}, {kind}: {told[kind][MAE]}", flush=True)
        return told


def items_asked(folder: Path, data: Any, num: int, seed: int) -> dict[str, list[int]]:
    """Rows of the items of each kind."""
    run = run_folder.load(folder)
    variables, _ = runs.best(run)
    model = run.recipe.app.offers(run.recipe.learner, run.record, evaluating=True)["model"]
    inner = ml.Variables(params=variables.params["model"], state=variables.state["model"])
    rows = np.flatnonzero(data.split.mask(data.ratings, "train"))

    def norm_of(examples):
        return ml.evidence(model, inner, examples, loss_fn=ml.losses.mse)

    norms = movements(norm_of, data.ratings, rows)
    return {
        kind: [
            one.item
            for one in candidates(
                data.ratings, rows, num=num, kind=kind, norms=norms, seed=seed
            )
        ]
        for kind in KINDS
    }


def asking(
    folder: Path, data: Any, items: list[int], lists: Mapping[str, list[int]]
) -> ml.TaskSampler:
    """Test users who answer about `items`; queries are of items that no list has.

    A user has as many queries in all lists, and the same ones. Users who know none of the
    items have an empty support set.
    """
    app = dataclasses.replace(run_folder.load(folder).recipe.app, least_support=0)
    ratings: Ratings = data.ratings
    anywhere = np.isin(ratings.item, sorted({i for each in lists.values() for i in each}))
    new = data.split.mask(ratings, "test", "user")
    rows = np.flatnonzero(new & (np.isin(ratings.item, items) | ~anywhere))
    return app.tasks_of(ratings, rows, f"{ratings.name} asked", ~anywhere[rows])


def mean_answers(tasks: ml.TaskSampler) -> float:
    """Mean number of support examples of a task."""
    answered = tasks.data["counts"] - tasks.data["queries"]
    return float(np.minimum(np.asarray(answered), tasks.sample.most_support).mean())


def _judged(folder: Path, tasks: ml.TaskSampler, steps: int | None = None) -> Values:
    """Metrics of every user once."""
    run = run_folder.load(folder)
    variables, _ = runs.best(run)
    start = run.recipe.learner.record.start
    every = ml.tasks.in_order(tasks)
    evaluation = ml.evaluate(
        run.recipe.build_judged(run.record, steps=steps if start else None),
        variables,
        every,
        num_tasks=every.num_tasks or 2,
        key=jax.random.key(0),
        metrics=run.recipe.app.measures,
    )
    return {name: np.asarray(evaluation.values[name], float) for name in (MAE, NDCG)}


def means(ratings: Ratings, train: np.ndarray, tasks: ml.TaskSampler) -> dict[str, Values]:
    """What means predict on the tasks of `_judged`.

    Args:
      ratings: The ratings.
      train: Mask of the ratings of training.
      tasks: Sampler of the tasks.
    """
    overall = float(ratings.rating[train].mean())
    counts = np.bincount(ratings.item[train], minlength=len(ratings.items))
    sums = np.bincount(
        ratings.item[train], ratings.rating[train], minlength=len(ratings.items)
    )
    of_item = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    every = ml.tasks.in_order(tasks)
    num = every.num_tasks or 2
    batch = jax.tree.map(np.asarray, next(iter(every.batches(num, 0))))
    y, mask = batch.support.y[..., 0], batch.support.mask
    some = mask.sum(1)
    of_user = np.where(some > 0, (y * mask).sum(1) / np.maximum(some, 1), overall)
    predicted = {
        MEANS[0]: np.broadcast_to(of_user[:, None], batch.query.y.shape[:2]),
        MEANS[1]: of_item[batch.query.x["item"]],
        MEANS[2]: np.full(batch.query.y.shape[:2], overall),
    }
    found = {}
    for name, outputs in predicted.items():
        judged = jax.vmap(lambda o, q: (ml.metrics.mae(o, q), ml.metrics.ndcg(3)(o, q)))
        mae, ndcg = judged(outputs[..., None].astype(np.float32), batch.query)
        found[name] = {MAE: np.asarray(mae, float), NDCG: np.asarray(ndcg, float)}
    return found


def compared(values: Mapping[str, list[Values]], first: str) -> dict[str, Any]:
    """Means over users of each row, and how far below it the row `first` is.

    Args:
      values: Metrics of each seed, by row; a row of one seed stands for all.
      first: Row that is compared with the others.

    Returns:
      By row and metric: `mean` and `ci95` over users, `by_seed` and `spread`; for other
      rows `difference`, that of `first` less the row, and for MAE `share` of the row.
    """
    found: dict[str, Any] = {}
    for name, each in values.items():
        found[name] = {"users": len(each[0][MAE])}
        for metric in (MAE, NDCG):
            rows = np.stack([v[metric] for v in each])
            mean, half = mean_ci95(rows.mean(0))
            by_seed = rows.mean(1).tolist()
            told = {"mean": mean, "ci95": half, "by_seed": by_seed}
            told["spread"] = spread(by_seed)
            if name != first:
                mine = np.stack([v[metric] for v in values[first]])
                apart = difference(mine, np.broadcast_to(rows, mine.shape))
                told["difference"] = apart
                told["share"] = apart["mean"] / mean
            found[name][metric] = told
    return found


TITLES = {
    "warm": "known users and items",
    "user": "new users",
    "item": "new items",
    "both": "both new",
}


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`: rows down, states across."""
    first = next(iter(row["rows"]))
    states = list(row["rows"][first]["states"])
    lines = [
        f"Mean absolute error of ratings on `{row['dataset']}` ({row['record']['about']}), "
        f"training seeds: {row['seeds']}; every test user once; inductive. In brackets, by "
        f"how much {first} is below (-) or above (+) the row, paired over users:",
        "",
        "| | " + " | ".join(TITLES[state] for state in states) + " |",
        "|---" * (1 + len(states)) + "|",
    ]
    for name, found in row["rows"].items():
        cells = [_cell(found["states"][state][MAE]) for state in states]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The same error of {first} when new users are asked about items, and their mean "
        "number of answers; the queries are the same in a row. In brackets as above, "
        "beside evidence:",
        "",
        "| asked | " + " | ".join((*KINDS, "nothing")) + " |",
        "|---" * (2 + len(KINDS)) + "|",
    ]
    for num, told in row["asked"].items():
        cells = []
        for kind in (*KINDS, "nothing"):
            answers = told[kind].get("answers")
            more = f", {np.mean(answers):.1f} answers" if answers else ""
            cells.append(_cell(told[kind][MAE]) + more)
        lines.append(f"| {num} | {' | '.join(cells)} |")
    return lines


def _cell(told: dict[str, Any]) -> str:
    text = f"{told['mean']:.4f}"
    if told["spread"] is not None:
        text += f", σ {told['spread']:.4f}"
    if "difference" in told:
        apart = told["difference"]
        text += (
            f" ({100 * told['share']:+.1f} %: {apart['mean']:+.4f} ± {apart['ci95']:.4f})"
        )
    return text
