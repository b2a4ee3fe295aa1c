"""The command `metalearn train`."""

from __future__ import annotations

import functools
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax

import metalearn as ml
from metalearn import runs
from metalearn.apps import Recipe
from metalearn.cli import interrupt
from metalearn.cli import options as cli_options
from metalearn.cli.console import console, in_words, say, say_data
from metalearn.core import mesh
from metalearn.runs import environment

INTERRUPTED = 130


def train(argv: list[str]) -> int:
    """Meta-trains, evaluates, draws; see `metalearn train --help`."""
    name, options, recipe = cli_options.parse_train(argv)
    recipe.check()
    cli_options.check_seed(options.seed)
    folder = Path(options.out or f"runs/{name}-seed{options.seed}")
    runs.check_folder(
        folder, name=name, recipe=recipe, seed=options.seed, resume=options.resume
    )
    devices = options.devices
    # Tasks of microseconds are slower if the cores share them.
    if devices is None and recipe.app.light and options.processes == 1:
        devices = 1
    environment.connect(
        devices=devices,
        processes=options.processes,
        process=options.process,
        coordinator=options.coordinator,
    )
    environment.enable_compilation_cache()
    if devices is None and options.processes == 1:
        devices = mesh.fitting(recipe.tasks_per_step)
    devices_mesh = ml.task_mesh(devices)
    mesh.check_enough(recipe.tasks_per_step, devices_mesh.size)
    with jax.set_mesh(devices_mesh), runs.one_writer(folder):
        return _train_here(argv, name, options, recipe, folder)


def _train_here(
    argv: list[str],
    name: str,
    options: cli_options.TrainOptions,
    recipe: Recipe,
    folder: Path,
) -> int:
    began = time.perf_counter()
    device = environment.device()
    used = mesh.shares()
    processes = f" in {options.processes} processes" if options.processes > 1 else ""
    say(
        f"Recipe {name}: {recipe.learner.record.title}, {recipe.steps:,} steps of "
        f"{recipe.tasks_per_step} tasks, seed {options.seed}\n"
        f"Device {device['kind']} x {used}{processes}, {device['cores']} CPU cores"
    )
    data_dir = options.data_dir or runs.stored_data_dir(folder)
    with mesh.leader_first():  # so the other processes find the records prepared
        data = recipe.app.load(data_dir, ("train", "validation", "test"))
    record = recipe.app.describe(data)
    say_data(record)
    for part in ("train", "validation", "test"):
        recipe.app.tasks(data, part)  # too few classes are refused before a folder is made
    recipe.check_builds(record)  # and so are bad options
    with mesh.leader_first():
        run = runs.start(
            folder,
            name=name,
            recipe=recipe,
            seed=options.seed,
            record=record,
            data_dir=data_dir,
        )
        if not mesh.leads():  # each process needs the options of the first
            runs.check_folder(
                folder, name=name, recipe=recipe, seed=options.seed, resume=True
            )
    interrupt.at_once(functools.partial(_how_to_go_on, "Interrupted", argv, run))
    try:
        if step := runs.checkpoint_step(run):
            say(f"Going on from step {step:,} of {recipe.steps:,}")
        result = runs.train(run, data, sinks=[console(recipe)])
        say(f"Best by validation: step {result.best_step:,}")
        _finish(run, data, result, began)
    except KeyboardInterrupt:
        print("\n" + _how_to_go_on("Interrupted", argv, run), file=sys.stderr)
        return INTERRUPTED
    except jax.errors.JaxRuntimeError as error:
        if options.processes == 1:
            raise
        reason = str(error).splitlines()[0][:200]
        what = f"Another process of this run has stopped ({reason})"
        print("\n" + _how_to_go_on(what, argv, run), file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # an orderly exit would wait for the process that has stopped
    return 0


def _how_to_go_on(what: str, argv: list[str], run: runs.Run) -> str:
    step = run.checkpoints().latest()
    saved = f"saved up to step {step:,}" if step else "nothing saved yet"
    again = [*argv, *([] if "--resume" in argv else ["--resume"])]
    return f"{what}, {saved}. Go on with:\n  {shlex.join(['metalearn', 'train', *again])}"


def _finish(run: runs.Run, data: Any, trained: ml.FitResult, began: float) -> None:
    """Evaluates on meta-test classes, writes results and pictures, prints their paths."""
    start = time.perf_counter()
    result = runs.judge(run, trained.variables, data)
    seconds = time.perf_counter() - start
    results = runs.results(run, result, seconds=seconds)
    if not mesh.leads():
        return
    runs.write_json(run.results_path, results)
    with jax.set_mesh(None):  # this process alone
        pictures = runs.draw(run, data, trained)
    say(f"\nMeta-test, {result.tasks}: {result}")
    say(
        f"Training took {in_words(results['training_seconds'])}, the evaluation "
        f"{in_words(seconds)}; this command {in_words(time.perf_counter() - began)}\n"
    )
    for path in (run.config_path, run.metrics_path, run.results_path, *pictures):
        say(f"  {path}")
    say(f"\nEvaluate again with: metalearn evaluate {shlex.quote(str(run.folder))}")
