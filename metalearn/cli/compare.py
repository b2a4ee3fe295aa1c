"""The command `metalearn compare`: runs on the same test tasks, each with the first."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import metalearn as ml
from metalearn import runs
from metalearn.apps import Recipe
from metalearn.cli import options as cli_options
from metalearn.cli.console import note, print_json, quiet_stdout, say
from metalearn.cli.evaluate import load_data
from metalearn.cli.seeds import in_units
from metalearn.core import mesh
from metalearn.core.keys import of_seed
from metalearn.runs import environment


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A run with what its evaluation needs.

    Attributes:
      run: The run.
      recipe: Its recipe with the test tasks of the comparison.
      variables: Best variables by validation.
      progress: Progress of the run, see `runs.best`.
      data: Test data.
      record: Description of the test data.
    """

    run: runs.Run
    recipe: Recipe
    variables: Any
    progress: dict[str, Any]
    data: Any
    record: dict[str, Any]


def compare(argv: list[str]) -> int:
    """Compares runs task by task; see `metalearn compare --help`."""
    options = cli_options.parse(cli_options.CompareOptions, argv, "compare")
    cli_options.check_seed(options.seed)
    if len(options.runs) < 2:
        raise ValueError(
            f"compare was given {len(options.runs)} run(s); expected two run folders or "
            "more, such as: metalearn compare runs/a runs/b"
        )
    with quiet_stdout(options.json):
        found = _compare(options)
    if options.json:
        print_json(found)
    else:
        say(in_words(found))
    return 0


def _compare(options: cli_options.CompareOptions) -> dict[str, Any]:
    opened = [cli_options.load_run(folder) for folder in options.runs]
    tasks = opened[0].recipe.test_tasks if options.tasks is None else options.tasks
    options = dataclasses.replace(options, tasks=tasks)
    recipes = [cli_options.for_evaluation(run.recipe, options) for run in opened]
    if len({recipe.app.metric for recipe in recipes}) > 1:
        metrics = {str(r.folder): x.app.metric for r, x in zip(opened, recipes)}
        raise ValueError(
            f"the runs are judged by different metrics: {metrics}; expected one. Compare "
            "runs of one kind."
        )
    light = all(recipe.app.light for recipe in recipes)
    environment.connect(devices=1 if light else None)
    environment.enable_compilation_cache()
    there = [_contestant(run, recipe, options) for run, recipe in zip(opened, recipes)]
    _check_same_tasks(there, options.seed)
    devices = 1 if light else mesh.fitting(tasks, padded=True)
    evaluations = []
    with jax.set_mesh(ml.task_mesh(devices)):
        for one in there:
            note(f"Evaluating {one.run.folder} ...")
            evaluations.append(
                runs.judge(
                    one.run, one.variables, one.data, recipe=one.recipe, seed=options.seed
                )
            )
    return _report(there, evaluations, options.seed)


def _contestant(
    run: runs.Run, recipe: Recipe, options: cli_options.CompareOptions
) -> Contestant:
    with cli_options.reading_run(run.folder):
        variables, progress = runs.best(run)
    if not progress["finished"]:
        note(
            f"Training of {run.folder} has not finished: step {progress['step']:,} of "
            f"{run.recipe.steps:,}."
        )
    data, record = load_data(run, recipe, options)
    return Contestant(run, recipe, variables, progress, data, record)


def _check_same_tasks(there: list[Contestant], seed: int) -> None:
    """Refuses runs on other tasks, by their first task, before minutes of evaluations.

    Raises:
      ValueError: the tasks differ; the message says in what.
    """
    firsts = []
    for one in there:
        sampler, _ = runs.judged_tasks(
            one.recipe, one.data, "test", one.recipe.test_tasks, seed=seed
        )
        # The key that `evaluate` gives to its first task.
        key = jax.random.split(jax.random.fold_in(of_seed(seed), 0), 3)[0]
        task = sampler.first(key)
        leaves = jax.tree.leaves((task.support, task.query))
        firsts.append((sampler.name, [np.asarray(leaf) for leaf in leaves]))
    name, leaves = firsts[0]
    for one, (other, others) in zip(there[1:], firsts[1:]):
        same = len(leaves) == len(others) and all(map(np.array_equal, leaves, others))
        if not same:
            mine, theirs = _facts(there[0]), _facts(one)
            differ = [
                f"{fact}: {mine.get(fact)} and {theirs.get(fact)}"
                for fact in sorted(mine.keys() | theirs.keys())
                if mine.get(fact) != theirs.get(fact)
            ]
            raise ValueError(
                f"{there[0].run.folder} and {one.run.folder} are judged on different tasks "
                f"({name}; {other}):\n  "
                + "\n  ".join(differ or ["the images or functions themselves"])
                + "\nMake them the same by --ways, --shots, --queries, or --dataset with "
                "--split, or compare runs of one protocol."
            )


def _facts(one: Contestant) -> dict[str, Any]:
    """What decides the test tasks of a run."""
    names = ("test_ways", "test_shots", "eval_queries", "ambiguous_styles", "styles")
    found = {n: getattr(one.recipe.app, n) for n in names if hasattr(one.recipe.app, n)}
    more = (
        "state",
        "split_number",
        "queries",
        "least_support",
        "most_support",
        "new_items",
    )
    if one.recipe.app.kind == "ratings":
        found |= {n: getattr(one.recipe.app, n) for n in more}
    found["data"] = one.record.get("name")
    found["image_shape"] = one.record.get("image_shape")
    test = one.record.get("parts", {}).get("test", {})
    return found | {f"test {fact}": value for fact, value in test.items()}


def _report(
    there: list[Contestant], evaluations: list[ml.Evaluation], seed: int
) -> dict[str, Any]:
    """The comparison as JSON values."""
    first = evaluations[0]
    shared = [name for name in first.values if all(name in e.values for e in evaluations)]
    rows = []
    for one, evaluation in zip(there, evaluations):
        row: dict[str, Any] = {
            "run": str(one.run.folder),
            "recipe": one.run.name,
            "training_seed": one.run.seed,
            "best_step": one.progress["best_step"],
            "finished": one.progress["finished"],
            **evaluation.summary(),
        }
        if evaluation is not first:
            row["difference"] = {}
            for name in shared:
                mean, half = ml.paired_difference(evaluation, first, name)
                row["difference"][name] = {"mean": mean, "ci95": half}
        rows.append(row)
    return {
        "tasks": first.tasks,
        "num_tasks": first.num_tasks,
        "test_seed": seed,
        "fingerprint": first.fingerprint,
        "metric": there[0].recipe.app.metric,
        "difference": "of each run from the first over the same tasks; 95 % interval",
        "runs": rows,
        "versions": environment.versions(),
    }


def in_words(found: dict[str, Any]) -> str:
    """The comparison as a table."""
    metric, rows = found["metric"], found["runs"]
    show, signed = in_units(metric), in_units(metric, signed=True)
    width = max(len(row["run"]) for row in rows)
    wide = max(len(row["learner"]) for row in rows)
    lines = [f"{found['tasks']}, {found['num_tasks']} tasks, {metric}, 95 % intervals\n"]
    for row in rows:
        value = f"{show(row[metric]['mean'])} ± {show(row[metric]['ci95'])}"
        words = f"  {row['run']:<{width}}  {row['learner']:<{wide}}  {value:<18}"
        if "difference" in row:
            gap = row["difference"][metric]
            words += f"  {signed(gap['mean'])} ± {show(gap['ci95'])} against the first"
            clear = abs(gap["mean"]) > gap["ci95"]
            words += "" if clear else " (no clear difference)"
        lines.append(words.rstrip())
    kinds = {row["transductive"] for row in rows}
    if len(kinds) > 1:
        which = ", ".join(row["run"] for row in rows if row["transductive"])
        lines.append(f"\nNote: transductive, the others inductive: {which}")
    lines.append(
        "\nDifferences are paired, task by task. The intervals say nothing of the spread "
        "over training seeds."
    )
    return "\n".join(lines)
