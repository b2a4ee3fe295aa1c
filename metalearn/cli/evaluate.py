"""The command `metalearn evaluate`."""

from __future__ import annotations

import json
import sys
import time

import jax

import metalearn as ml
from metalearn import runs
from metalearn.cli import interrupt
from metalearn.cli import options as cli_options
from metalearn.cli.console import say
from metalearn.core import mesh
from metalearn.runs import environment


def evaluate(argv: list[str]) -> int:
    """Evaluates a trained run; see `metalearn evaluate --help`."""
    options = cli_options.parse(cli_options.EvaluateOptions, argv, "evaluate")
    cli_options.check_seed(options.seed)
    run = runs.load(options.run)
    recipe = cli_options.for_evaluation(run.recipe, options)
    environment.connect(devices=1 if recipe.app.light else None)
    environment.enable_compilation_cache()
    variables, progress = runs.best(run)
    if not progress["finished"]:
        print(
            f"Training has not finished: step {progress['step']:,} of {recipe.steps:,}.",
            file=sys.stderr,
        )
    data_dir = options.data_dir
    same = options.dataset is None and options.split is None
    if data_dir is None and same:
        data_dir = runs.stored_data_dir(run.folder)
    data = recipe.app.load(data_dir, ("test",))
    record = recipe.app.describe(data)
    runs.check_images(run, record)
    if same and not runs.same_test_data(run, record):
        print(
            f"Note: these test classes of {record['name']!r} are not those of the data "
            "that the run was trained with.",
            file=sys.stderr,
        )
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
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        say(f"{run.folder}: recipe {run.name}, variables of step {progress['best_step']:,}")
        say(f"{result.tasks}: {result}")
    return 0
