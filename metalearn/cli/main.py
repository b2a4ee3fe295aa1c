"""The command line: `metalearn list | train | evaluate | data`."""

from __future__ import annotations

import difflib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

import metalearn as ml
from metalearn import apps, runs
from metalearn.apps import Recipe
from metalearn.cli import options as cli_options
from metalearn.core import mesh
from metalearn.runs import environment

HELP = """usage: metalearn COMMAND [OPTIONS]

  metalearn list                 recipes and learners
  metalearn train [RECIPE]       meta-trains, evaluates, draws (default {default})
  metalearn evaluate RUN         evaluates a trained run on meta-test classes
  metalearn data list            image data sets
  metalearn data prepare NAME    builds the records of one

  metalearn COMMAND --help       all options of a command
  metalearn --version
  --debug                        with any command: show the traceback of an error
"""
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: Arguments without the program's name; those of the process if None.

    Returns:
      Exit code: 0, 1 if training failed, 2 for a user error, 130 if interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    try:
        return _dispatch(argv)
    except SystemExit as stop:  # from the parser, which has printed its message
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError) as error:
        if debug:
            raise
        print(f"metalearn: error: {error}", file=sys.stderr)
        failed = isinstance(error, (ml.NonFiniteGradient, MemoryError))
        return FAILED if failed else USER_ERROR
    except RuntimeError as error:
        if debug or jax.process_count() == 1:
            raise
        print(f"metalearn: error: {error}", file=sys.stderr)
        return FAILED


def _dispatch(argv: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "train": _train,
        "evaluate": _evaluate,
        "data": _data,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP.format(default=apps.DEFAULT), end="")
        return 0 if argv else USER_ERROR
    if argv[0] == "--version":
        print(f"metalearn {ml.__version__}")
        return 0
    if argv[0] not in commands:
        raise ValueError(_unknown("command", argv[0], commands))
    return commands[argv[0]](argv[1:])


def _list(argv: list[str]) -> int:
    options = cli_options.parse(cli_options.ListOptions, argv, "list")
    rows = [
        {
            "name": name,
            "algorithm": entry.recipe.algorithm,
            "data": getattr(entry.recipe, "dataset", entry.recipe.kind),
            "description": entry.description,
            "expectation": entry.expectation,
        }
        for name, entry in apps.RECIPES.items()
    ]
    learners = {
        s.name: {"good_for": s.good_for, "paper": s.paper, "published": s.published}
        for s in apps.SYSTEMS
    }
    if options.json:
        print(json.dumps({"recipes": rows, "learners": learners}, indent=1))
        return 0
    print("Recipes (metalearn train NAME)\n")
    width = 2 + max(len(row["algorithm"]) for row in rows)
    for row in rows:
        star = " *" if row["name"] == apps.DEFAULT else ""
        print(f"  {row['name'] + star:<32}{row['algorithm']:<{width}}{row['description']}")
        if row["expectation"]:
            print(f"  {'':<32}{'':<{width}}{row['expectation']}")
    print("\n  * the default\n\nSystems (ml.NAME; most are an --algorithm as well)\n")
    for name, found in learners.items():
        paper = f" ({found['paper']})" if found["paper"] else ""
        print(f"  {name:<24}{found['good_for']}{paper}")
    return 0


def _train(argv: list[str]) -> int:
    name, options, recipe = cli_options.parse_train(argv)
    recipe.check()
    _check_seed(options.seed)
    folder = Path(options.out or f"runs/{name}-seed{options.seed}")
    runs.check_folder(
        folder, name=name, recipe=recipe, seed=options.seed, resume=options.resume
    )
    devices = options.devices
    if devices is None and recipe.light and options.processes == 1:
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
    _say(
        f"Recipe {name}: {recipe.algorithm}, {recipe.steps:,} steps of "
        f"{recipe.tasks_per_step} tasks, seed {options.seed}\n"
        f"Device {device['kind']} x {used}{processes}, {device['cores']} CPU cores"
    )
    data_dir = options.data_dir or runs.stored_data_dir(folder)
    with mesh.leader_first():  # the others find the records prepared
        data = recipe.load_data(data_dir, ("train", "validation", "test"))
    record = recipe.describe_data(data)
    _say_data(record)
    for part in ("train", "validation", "test"):
        recipe.tasks(data, part)  # refuses too few classes before a folder is made
    recipe.state_like(record)  # and this bad options
    with mesh.leader_first():
        run = runs.start(
            folder,
            name=name,
            recipe=recipe,
            seed=options.seed,
            record=record,
            data_dir=data_dir,
        )
        if not mesh.leads():  # with the same options as the first
            runs.check_folder(
                folder, name=name, recipe=recipe, seed=options.seed, resume=True
            )
    try:
        if step := runs.checkpoint_step(run):
            _say(f"Going on from step {step:,} of {recipe.steps:,}")
        result = runs.train(run, data, sinks=[_console(recipe)])
        _say(f"Best by validation: step {result.best_step:,}")
        _finish(run, data, result, began)
    except KeyboardInterrupt:
        _say_how_to_go_on("Interrupted", argv, run)
        return INTERRUPTED
    except jax.errors.JaxRuntimeError as error:
        if options.processes == 1:
            raise
        reason = str(error).splitlines()[0][:200]
        _say_how_to_go_on(f"Another process of this run has stopped ({reason})", argv, run)
        sys.stderr.flush()
        os._exit(1)  # an orderly end would wait for the process that is gone
    return 0


def _say_how_to_go_on(what: str, argv: list[str], run: runs.Run) -> None:
    folder = run.folder / "checkpoints"
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    saved = f"saved up to step {max(steps):,}" if steps else "nothing saved yet"
    again = [*argv, *([] if "--resume" in argv else ["--resume"])]
    print(
        f"\n{what}, {saved}. Go on with:\n  {shlex.join(['metalearn', 'train', *again])}",
        file=sys.stderr,
    )


def _finish(run: runs.Run, data: Any, trained: ml.FitResult, began: float) -> None:
    """Evaluates on meta-test classes, writes results and pictures, says where."""
    start = time.perf_counter()
    result = runs.judge(run, trained.variables, data)
    seconds = time.perf_counter() - start
    results = runs.results(run, result, seconds=seconds)
    if not mesh.leads():
        return
    runs.write_json(run.results_path, results)
    with jax.set_mesh(None):  # this process alone
        pictures = runs.draw(run, data, trained)
    _say(f"\nMeta-test, {result.tasks}: {result}")
    _say(
        f"Training took {_time(results['training_seconds'])}, the evaluation "
        f"{_time(seconds)}; this command {_time(time.perf_counter() - began)}\n"
    )
    for path in (run.config_path, run.metrics_path, run.results_path, *pictures):
        _say(f"  {path}")
    _say(f"\nEvaluate again with: metalearn evaluate {shlex.quote(str(run.folder))}")


def _evaluate(argv: list[str]) -> int:
    options = cli_options.parse(cli_options.EvaluateOptions, argv, "evaluate")
    _check_seed(options.seed)
    run = runs.load(options.run)
    recipe = cli_options.for_evaluation(run.recipe, options)
    environment.connect(devices=1 if recipe.light else None)
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
    data = recipe.load_data(data_dir, ("test",))
    record = recipe.describe_data(data)
    runs.check_images(run, record)
    if same and not runs.same_test_data(run, record):
        print(
            f"Note: these test classes of {record['name']!r} are not those of the data "
            "that the run was trained with.",
            file=sys.stderr,
        )
    start = time.perf_counter()
    devices = 1 if recipe.light else mesh.fitting(recipe.test_tasks, padded=True)
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
        _say(
            f"{run.folder}: recipe {run.name}, variables of step {progress['best_step']:,}"
        )
        _say(f"{result.tasks}: {result}")
    return 0


def _data(argv: list[str]) -> int:
    commands = {"list": _data_list, "prepare": _data_prepare}
    if not argv or argv[0] not in commands:
        if argv and argv[0] not in ("-h", "--help"):
            raise ValueError(_unknown("data command", argv[0], commands))
        print("usage: metalearn data list [--json] | metalearn data prepare NAME [OPTIONS]")
        return 0 if argv else USER_ERROR
    return commands[argv[0]](argv[1:])


def _data_list(argv: list[str]) -> int:
    options = cli_options.parse(cli_options.DataListOptions, argv, "data list")
    rows = ml.data.available()
    if options.json:
        print(json.dumps([vars(row) for row in rows], indent=1))
        return 0
    for row in rows:
        state = f"needs {row.needs}"
        if row.prepared:
            state = f"prepared: {row.classes:,} classes, {row.images:,} images"
        print(f"  {row.name:<12}{row.description}\n  {'':<12}{state}")
    print("  folder:PATH one's own images, class/image.png, in a folder or zip")
    print("  tfds:NAME   a TFDS image set prepared on this machine")
    return 0


def _data_prepare(argv: list[str]) -> int:
    options = cli_options.parse(cli_options.PrepareOptions, argv, "data prepare")
    chosen = {
        name: getattr(options, name)
        for name in ("split", "image_size", "channels")
        if getattr(options, name) is not None
    }
    ml.data.prepare(options.name, data_dir=options.data_dir, force=options.force, **chosen)
    _say(f"{options.name} is prepared")
    return 0


def _console(recipe: Recipe) -> Callable[[Any], None]:
    """A line a row; on a terminal the progress bar shows the rows of training."""
    bar = sys.stderr.isatty()
    windows = 0

    def write(row: dict[str, Any]) -> None:
        nonlocal windows
        validation = "best_step" in row
        # The query loss, not that of the support set before adaptation.
        numbers = {
            name.split("/")[-1]: value
            for name, value in row.items()
            if not name.startswith("support/")
        }
        words = [f"step {row['step']:>6,}/{recipe.steps:,}"]
        if validation:
            words.append("validation")
        if "loss" in numbers:
            words.append(f"loss {numbers['loss']:.4f}")
        if "accuracy" in numbers:
            words.append(f"accuracy {numbers['accuracy']:.1%}")
        if validation:
            words.append(f"best so far at {row['best_step']:,}")
        elif rate := row.get("tasks_per_s"):
            windows += 1
            words.append(f"{rate:,.0f} tasks/s")
            if windows > 1:  # the first one includes compilation
                left = (recipe.steps - row["step"]) * recipe.tasks_per_step / rate
                words.append(f"{_time(left)} left")
        if row.get("meta/skipped"):
            words.append(f"{row['meta/skipped']} updates skipped")
        if not bar:
            _say("  ".join(words))
        elif validation:
            from tqdm import tqdm

            tqdm.write("  ".join(words), file=sys.stderr)

    return write


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected 0 or more, below 2**32.")


def _say(text: str) -> None:
    if mesh.leads():
        print(text, flush=True)


def _say_data(record: dict[str, Any]) -> None:
    if "parts" not in record:
        return
    parts = ", ".join(
        f"{part} {numbers['classes']:,}{' x 4 rotations' if numbers['rotations'] else ''}"
        for part, numbers in record["parts"].items()
    )
    shape = f"{record.get('num_features')} features"
    if "image_shape" in record:
        height, width, channels = record["image_shape"]
        shape = f"{height}x{width} {'grey' if channels == 1 else 'colour'}"
    _say(f"Data {record['name']}: {shape}; classes: {parts}")


def _time(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _unknown(what: str, word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"unknown {what} {word!r}; expected one of {', '.join(known)}.{hint}"
