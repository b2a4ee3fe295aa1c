"""The next place in new areas: CHAML, its parts, and baselines on the same rankings."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

import metalearn as ml
from benchmarks import _harness, _runs
from benchmarks._intervals import student
from benchmarks.against import spread
from metalearn import runs
from metalearn.apps import NextPlace, Recipe, learners
from metalearn.cli.train_options import parse_train
from metalearn.data.places import Area
from metalearn.data.places.tables import QUERY

TITLES = {
    "query/hit_rate@5": "HR@5",
    "query/hit_rate@10": "HR@10",
    "query/choice_ndcg@5": "NDCG@5",
    "query/choice_ndcg@10": "NDCG@10",
}
METRICS = tuple(TITLES)
COUNTS = ("popularity", "Markov chain", "own visits, then popularity")


@dataclasses.dataclass(frozen=True)
class Places:
    """Trains recipes of places with several seeds and judges each on the same areas.

    What is trained is what the last step gives, after as many steps for all. Beside the
    recipes stand counts of the visits known before each query, for which nothing is
    trained.

    Attributes:
      recipes: Recipes of places, the first of which is compared with the others.
      seeds: Training runs of each recipe, two or more on the test areas.
      set: Fields to override in all recipes, such as `--set steps=100`.
      part: Part to judge on; choices belong to validation, which stores nothing unless
        `json` says where.
      data_dir: Folder of the sets.
      json: Where to write; `benchmarks/results/places-SET.json` by default.
    """

    recipes: tuple[str, ...] = (
        *("places-chaml", "places-maml", "places-fine-tune"),
        *("places-chaml-hardness", "places-chaml-curriculum"),
        *("places-joint", "places-chaml-neither"),
    )
    seeds: int = 3
    set: tuple[str, ...] = ()
    part: _runs.Part = "test"
    data_dir: str | None = None
    json: str | None = None

    @functools.cached_property
    def _judges(self) -> dict[Any, ml.MetaLearner]:
        return {}

    def run_benchmark(self) -> None:
        self._check_seeds()
        plans = {name: self._recipe(name) for name in self.recipes}
        apps = {recipe.app for recipe in plans.values()}
        if len(apps) > 1 or not plans:
            raise SystemExit("expected recipes of the same data, one or more.")
        (app,) = apps
        assert isinstance(app, NextPlace)
        origin = _runs.here()
        data = app.load(self.data_dir)
        described = {name: plan.describe(data) for name, plan in plans.items()}
        # Those that begin on easy areas have their order as well.
        record = {k: v for each in described.values() for k, v in each.items()}
        counted = by_counts(data.areas[self.part])
        counts = {name: {"values": found} for name, found in counted.items()}
        found = {
            "kind": "places",
            "seeds": list(range(self.seeds)),
            "overrides": list(self.set),
            "part": self.part,
            "origin": origin,
            "about": record["about"],
            "order": record.get("order"),
        }
        rows: dict[str, Any] = {}
        for name, plan in plans.items():
            rows[name] = self._row(plan, data, described[name])
            told = {n: row["judged"] for n, row in rows.items()}
            found["fingerprint"] = _runs.check_tasks(told)
            found["tasks"] = told[name][0]
            found["rows"] = compared({**rows, **counts}, self.recipes[0])
            if self.part == "test" or self.json:
                # After each recipe, since all of them take long.
                where = "-".join(["places", app.dataset, *self.set])
                _harness.store(where, found, self.json)
        for name, row in found["rows"].items():
            means = {TITLES[k]: round(v["mean"], 4) for k, v in row["metrics"].items()}
            print(name, means)

    def _check_seeds(self) -> None:
        least = 2 if self.part == "test" else 1
        if self.seeds < least:
            raise SystemExit(
                f"--seeds is {self.seeds}; expected {least} or more"
                + (", of which the spread is reported." if least > 1 else ".")
            )

    def _recipe(self, name: str) -> Recipe:
        recipe = parse_train([name, *_runs.Plan(name, 1, self.set).options()])[2]
        if not isinstance(recipe.app, NextPlace):
            raise SystemExit(f"{name} is no recipe of places.")
        recipe.check()
        return recipe

    def _judge(self, recipe: Recipe, record: dict[str, Any]) -> ml.MetaLearner:
        """The learner as judged; that of MAML for CHAML, which adapts in the same way.

        Learners with the same settings are one, so that its program is compiled once.
        """
        learner = recipe.learner
        if learner.name == "chaml":
            own = {"inner_opt": learner.inner_opt, "num_steps": learner.num_steps}
            learner = learners.MAML(**own)
        if (known := (repr(learner), recipe.eval_steps)) not in self._judges:
            plain = dataclasses.replace(recipe, learner=learner)
            self._judges[known] = plain.build_judged(record)
        return self._judges[known]

    def _row(self, recipe: Recipe, data: Any, record: dict[str, Any]) -> dict[str, Any]:
        """All seeds of one recipe."""
        trainer, judge = recipe.trainer(record), self._judge(recipe, record)
        tasks = recipe.app.tasks(data, "train")
        judged_on, num = runs.judged_tasks(recipe, data, self.part, recipe.test_tasks)
        seconds, each = [], []
        for seed in range(self.seeds):
            began = time.perf_counter()
            trained = ml.fit(
                trainer,
                tasks,
                num_steps=recipe.steps,
                tasks_per_step=recipe.tasks_per_step,
                key=jax.random.key(seed),
                log_every=recipe.log_every,
                progress=False,
            )
            seconds.append(round(time.perf_counter() - began, 1))
            evaluation = ml.evaluate(
                judge,
                _without_hardness(trained.state.variables),
                judged_on,
                num_tasks=num,
                key=jax.random.key(_runs.KEYS[self.part]),
                metrics=recipe.app.measures,
                tasks_per_call=2,
                progress=False,
            )
            name = recipe.learner.name
            print(f"{name} seed {seed}: {evaluation}, {seconds[-1]} s", flush=True)
            each.append({k: np.asarray(v) for k, v in evaluation.values.items()})
        return {
            "settings": recipe.settings(),
            "transductive": evaluation.transductive,
            "training_seconds": seconds,
            "judged": _runs.told(evaluation),
            "values": {k: np.stack([e[k] for e in each]) for k in each[0]},
        }


def _without_hardness(variables: ml.Variables) -> ml.Variables:
    """Variables of CHAML as those of MAML."""
    if not isinstance(variables.state, dict):
        return variables
    state = {k: v for k, v in variables.state.items() if k != "hardness"}
    return ml.Variables(params=variables.params, state=state)


def compared(rows: dict[str, Any], first: str) -> dict[str, Any]:
    """Rows with means, and how far the row `first` is above each other one.

    Args:
      rows: Rows with `values`, by metric `[seeds, areas]`, and facts that are kept. Of
        the metrics those count that are in `METRICS` and in the row `first`.
      first: Row that is compared with the others; a row of one seed stands for all.

    Raises:
      ValueError: there are fewer than two areas, of which no interval can be said.
    """
    best, found = rows[first]["values"], {}
    keys = [key for key in METRICS if key in best]
    if (num := best[keys[0]].shape[1]) < 2:
        raise ValueError(
            f"{first} was judged on {num} area; expected two or more, over which "
            "intervals are. Ask for smaller areas, or a larger share of new ones."
        )
    for name, row in rows.items():
        values = row["values"]
        kept = {k: v for k, v in row.items() if k not in ("values", "judged")}
        found[name] = {**kept, "metrics": {key: _told(values[key]) for key in keys}}
        if name != first:
            apart = {key: _told(best[key] - values[key]) for key in keys}
            found[name]["difference"] = apart
    return found


def by_counts(areas: list[Area]) -> dict[str, dict[str, np.ndarray]]:
    """Metrics of what counts of visits say, `[1, areas]`, ties against the right place.

    What counts are the visits known before each query: those of all users before their
    first query, and at a later query also the visits of that user up to it. A
    network is told less: nine records of the user at most.

    Args:
      areas: The areas.
    """
    each = [_counts_of(area) for area in areas]
    return {
        name: {key: np.asarray([[e[name][key] for e in each]]) for key in METRICS}
        for name in COUNTS
    }


def _counts_of(area: Area) -> dict[str, dict[str, float]]:
    begin, num = QUERY[0], len(area.ids)
    known = area.place[:, :begin]
    popular = np.bincount(
        np.concatenate([area.earlier_place, known.ravel()]), minlength=num
    ).astype(float)
    after, own = np.zeros((num, num)), np.zeros((area.num_users, num))
    np.add.at(own, (area.earlier_user, area.earlier_place), 1)
    for user, records in enumerate(known):
        earlier = area.earlier_place[area.earlier_user == user]
        path = np.concatenate([earlier, records])
        np.add.at(after, (path[:-1], path[1:]), 1)
        np.add.at(own[user], records, 1)
    shape = (area.num_users, len(QUERY), 1 + area.ranked.shape[2])
    scores = {name: np.zeros(shape) for name in COUNTS}
    for user, path in enumerate(area.place):
        for number, at in enumerate(QUERY):
            places = np.concatenate([path[at : at + 1], area.ranked[user, number]])
            here, since = path[at - 1], path[begin:at]
            # Of these visits, which follow one to the place where the user is.
            followed = since[path[begin - 1 : at - 1] == here]
            # Below one visit, so that popularity decides between equal counts alone.
            share = popular[places] + _times(since, places)
            share /= popular.sum() + len(since)
            counts = (
                share,
                after[here, places] + _times(followed, places) + share,
                own[user, places] + _times(since, places) + share,
            )
            for name, found in zip(COUNTS, counts, strict=True):
                scores[name][user, number] = found
    return {name: _ranked(found) for name, found in scores.items()}


def _times(visits: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How often each place is among visits, `[K]`."""
    return (visits[:, None] == places).sum(0)


def _ranked(scores: np.ndarray) -> dict[str, float]:
    """Metrics of scores `[U, Q, K]` whose first candidate is right."""
    place = 1 + (scores[..., 1:] >= scores[..., :1]).sum(-1)
    found = {}
    for key in METRICS:
        name, _, at = key.removeprefix("query/").partition("@")
        worth = np.ones(place.shape) if name == "hit_rate" else 1 / np.log2(1 + place)
        found[key] = float(np.where(place <= int(at), worth, 0).mean())
    return found


def _told(values: np.ndarray) -> dict[str, Any]:
    """Of `[seeds, areas]`: mean, Student's interval over areas, the mean of each seed."""
    values = np.asarray(values, np.float64)
    by_area, seeds = values.mean(0), values.mean(1).tolist()
    return {
        "mean": float(by_area.mean()),
        "ci95": student(by_area),
        "seeds": seeds,
        "spread": spread(seeds),
        "by_area": by_area.tolist(),
    }


def table_rows(row: dict[str, Any]) -> list[str]:
    """Lines of `benchmarks/README.md`: recipes down, metrics across."""
    first, base = next(iter(row["rows"].items()))
    among = base["settings"]["app"]["negatives"]
    keys = [key for key in METRICS if key in base["metrics"]]
    lines = [
        f"The next place on `{row['tasks']}` ({row['about']}), ranked among {among} that "
        f"the user never visited, ties against it; training seeds: {row['seeds']}; "
        f"inductive; ± is Student's 95 % interval over the areas. In brackets, by how "
        f"much {first} is above (+) or below (-) the row, paired over areas, in points; "
        "σ is over seeds:",
        "",
        "| | " + " | ".join(TITLES[key] for key in keys) + " | seconds |",
        "|---" * (2 + len(keys)) + "|",
    ]
    for name, found in row["rows"].items():
        cells = [name]
        for key in keys:
            told = found["metrics"][key]
            text = f"{100 * told['mean']:.1f} ± {100 * told['ci95']:.1f}"
            if "difference" in found:
                apart = found["difference"][key]
                text += f" ({100 * apart['mean']:+.2f} ± {100 * apart['ci95']:.2f}"
                text += f", σ {100 * apart['spread']:.2f})" if apart["spread"] else ")"
            cells.append(text)
        seconds = found.get("training_seconds")
        cells.append(f"{np.mean(seconds):.0f}" if seconds else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
