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
from metalearn.cli import seeds as seeds_table
from metalearn.cli.console import console, in_words, library_messages, say, say_data
from metalearn.cli.errors import INTERRUPTED
from metalearn.cli.train_options import parse_train, seeds_of
from metalearn.core import mesh
from metalearn.runs import environment


def train(argv: list[str]) -> int:
    """Meta-trains, evaluates, draws; see `metalearn train --help`."""
    name, options, recipe = parse_train(argv)
    recipe.check()
    cli_options.check_seed(options.seed)
    folders = _folders(name, options)
    several = options.seeds is not None
    for seed, folder in folders.items():
        with cli_options.reading_run(folder):
            runs.check_folder(
                folder,
                name=name,
                recipe=recipe,
                seed=seed,
                resume=options.resume or several,
            )
    devices = options.devices
    if devices is not None:
        mesh.check_devices(devices, max(options.processes, 1))
        mesh.check_enough(recipe.tasks_per_step, devices)
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
    with jax.set_mesh(devices_mesh):
        return _train_here(argv, name, options, recipe, folders)


def _folders(name: str, options: cli_options.TrainOptions) -> dict[int, Path]:
    """Run folder of each seed.

    Raises:
      ValueError: options exclude one another, or `--out` is no path.
    """
    out = options.out
    # What is not UTF-8 fails at the first checkpoint, minutes later.
    whole = out is None or out.encode("utf-8", "ignore").decode() == out
    if not whole or (out is not None and (not out.strip() or "\0" in out)):
        raise ValueError(
            f"--out is {out!r}; expected the path of a folder in UTF-8, such as runs/mine."
        )
    if options.seeds is None:
        folder = options.out or f"runs/{name}-seed{options.seed}"
        return {options.seed: Path(folder)}
    if options.seed or options.processes > 1:
        other = "seed" if options.seed else "processes"
        raise ValueError(
            f"--seeds {options.seeds} was given together with --{other}; expected --seeds "
            "alone, in one process."
        )
    base = options.out or f"runs/{name}"
    return {seed: Path(f"{base}-seed{seed}") for seed in seeds_of(options.seeds)}


def _train_here(
    argv: list[str],
    name: str,
    options: cli_options.TrainOptions,
    recipe: Recipe,
    folders: dict[int, Path],
) -> int:
    device = environment.device()
    used = mesh.shares()
    processes = f" in {options.processes} processes" if options.processes > 1 else ""
    several = options.seeds is not None
    seeds = f"seeds {options.seeds}" if several else f"seed {options.seed}"
    say(
        f"Recipe {name}: {recipe.learner.record.title}, {recipe.steps:,} steps of "
        f"{recipe.tasks_per_step} tasks, {seeds}\n"
        f"Device {device['kind']} x {used}{processes}, {device['cores']} CPU cores"
    )
    stored = [found for f in folders.values() if (found := runs.stored_data_dir(f))]
    data_dir = options.data_dir or (stored[0] if stored else None)
    with mesh.leader_first(), cli_options.reading_data(recipe, options):
        # The first process first, so that the others find the records prepared.
        data = recipe.app.load(data_dir, ("train", "validation", "test"))
    record = recipe.app.describe(data)
    say_data(record)
    # Too few classes or tasks are refused before a folder is made.
    recipe.app.tasks(data, "train")
    for part in ("validation", "test"):
        runs.judged_tasks(recipe, data, part, 2)
    recipe.check_builds(record)  # and so are bad options
    record = recipe.ordered(data, record)
    found = {}
    for seed, folder in folders.items():
        facts = {"name": name, "recipe": recipe, "seed": seed}
        with runs.one_writer(folder):
            run = _start(folder, facts, record, data_dir)
            finished = seeds_table.finished(run) if several else None
            if several:
                state = "is finished" if finished else "is trained"
                say(f"\nSeed {seed} {state} in {folder}")
            try:
                found[seed] = finished or _train_one(argv, options, run, data)
            except KeyboardInterrupt:
                print("\n" + _how_to_go_on("Interrupted", argv, run), file=sys.stderr)
                return INTERRUPTED
    if several:
        base = options.out or f"runs/{name}"
        seeds_table.report(recipe, found, folders, Path(f"{base}-seeds.json"))
    return 0


def _start(
    folder: Path, facts: dict[str, Any], record: dict[str, Any], data_dir: str | None
) -> runs.Run:
    """The run folder, created or opened; each process needs the options of the first."""
    with mesh.leader_first(), cli_options.reading_run(folder):
        run = runs.start(folder, **facts, record=record, data_dir=data_dir)
        if not mesh.leads():
            runs.check_folder(folder, **facts, resume=True)
    return run


def _train_one(
    argv: list[str], options: cli_options.TrainOptions, run: runs.Run, data: Any
) -> dict[str, Any]:
    """Trains a run and judges it; returns what `results.json` holds."""
    began = time.perf_counter()
    interrupt.at_once(functools.partial(_how_to_go_on, "Interrupted", argv, run))
    try:
        with cli_options.reading_run(run.folder):
            step = runs.checkpoint_step(run)
            if step:
                runs.best(run)  # what is damaged is named before training
        if step:
            say(f"Going on from step {step:,} of {run.recipe.steps:,}")
        with library_messages():
            result = runs.train(run, data, sinks=[console(run.recipe)])
        say(f"Best by validation: step {result.best_step:,}")
        return _finish(run, data, result, began)
    except jax.errors.JaxRuntimeError as error:
        if options.processes == 1:
            raise
        reason = str(error).splitlines()[0][:200]
        what = f"Another process of this run has stopped ({reason})"
        print("\n" + _how_to_go_on(what, argv, run), file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # an orderly exit would wait for the process that has stopped


def _how_to_go_on(what: str, argv: list[str], run: runs.Run) -> str:
    step = run.checkpoints().latest()
    saved = f"saved up to step {step:,}" if step else "nothing saved yet"
    # Of several seeds, those that exist go on anyway.
    goes_on = any(word.split("=")[0] in ("--resume", "--seeds") for word in argv)
    again = [*argv, *([] if goes_on else ["--resume"])]
    return f"{what}, {saved}. Go on with:\n  {shlex.join(['metalearn', 'train', *again])}"


def _finish(
    run: runs.Run, data: Any, trained: ml.FitResult, began: float
) -> dict[str, Any]:
    """Evaluates on meta-test classes, writes results and pictures, prints their paths."""
    start = time.perf_counter()
    result = runs.judge(run, trained.variables, data)
    seconds = time.perf_counter() - start
    results = runs.results(run, result, seconds=seconds)
    if not mesh.leads():
        return results
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
    return results
