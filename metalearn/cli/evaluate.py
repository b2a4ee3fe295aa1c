"""The command `metalearn evaluate`."""

from __future__ import annotations

import time
from typing import Any

import jax

import metalearn as ml
from metalearn import runs
from metalearn.apps import Recipe
from metalearn.cli import interrupt
from metalearn.cli import options as cli_options
from metalearn.cli.console import note, print_json, quiet_stdout, say
from metalearn.core import mesh
from metalearn.runs import environment


def evaluate(argv: list[str]) -> int:
    """Evaluates a trained run; see `metalearn evaluate --help`."""
    options = cli_options.parse(cli_options.EvaluateOptions, argv, "evaluate")
    cli_options.check_seed(options.seed)
    with quiet_stdout(options.json):
        results, words = judged(options)
    if options.json:
        print_json(results)
    else:
        say(words)
    return 0


def judged(options: cli_options.EvaluateOptions) -> tuple[dict[str, Any], str]:
    """The results as JSON values, and in words."""
    run = cli_options.load_run(options.run)
    recipe = cli_options.for_evaluation(run.recipe, options)
    environment.connect(devices=1 if recipe.app.light else None)
    environment.enable_compilation_cache()
    with cli_options.reading_run(run.folder):
        variables, progress = runs.best(run)
    if not progress["finished"]:
        note(f"Training has not finished: step {progress['step']:,} of {recipe.steps:,}.")
    data, record = load_data(run, recipe, options)
    interrupt.at_once(lambda: "Interrupted; nothing was written.")
    start = time.perf_counter()
    # Not the devices of training: results are the same up to rounding on any number.
    devices = 1 if recipe.app.light else mesh.fitting(recipe.test_tasks, padded=True)
    with jax.set_mesh(ml.task_mesh(devices)):
        result = runs.judge(run, variables, data, recipe=recipe, seed=options.seed)
    results = runs.results(
        run,
        result,
        recipe=recipe,
        seed=options.seed,
        record=record,
        seconds=time.perf_counter() - start,
    )
    best = f"{progress['best_step']:,}"
    words = f"{run.folder}: recipe {run.name}, variables of step {best}\n{result.tasks}: "
    return results, words + str(result)


def load_data(
    run: runs.Run,
    recipe: Recipe,
    options: cli_options.EvaluateOptions | cli_options.CompareOptions,
) -> tuple[Any, dict[str, Any]]:
    """The test data that the options ask for, and its description.

    Raises:
      ValueError: the images do not fit the run.
    """
    data_dir = options.data_dir
    same = options.dataset is None and options.split is None
    if data_dir is None and same:
        data_dir = runs.stored_data_dir(run.folder)
    with cli_options.reading_data(recipe, options):
        data = recipe.app.load(data_dir, ("test",))
    record = recipe.app.describe(data)
    with cli_options.reading_run(run.folder):
        runs.check_images(run, record)
        unchanged = runs.same_test_data(run, record)
    if same and not unchanged:
        note(
            f"Note: these test classes of {record['name']!r} are not those of the data "
            f"that the run {run.folder} was trained with."
        )
    if options.dataset is not None:
        _note_seen_classes(run, data)
    return data, record


def _note_seen_classes(run: runs.Run, data: Any) -> None:
    """Says which test classes of another data set are no new ones."""
    try:
        seen = runs.trained_on(run, data)
    except (OSError, ValueError, ImportError) as error:
        note(
            "Note: whether the run was trained on some of these classes is not known, for "
            f"its training data could not be read ({error})."
        )
        return
    if seen:
        each = "".join(f"\n  {shared}" for shared in seen)
        note(
            "Note: the run was trained on classes that are tested here, so the result is "
            f"not one on new classes alone.{each}"
        )
