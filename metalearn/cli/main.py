"""The command line: `metalearn list | train | evaluate | data`."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence

import jax

import metalearn as ml
from metalearn import apps
from metalearn.algorithms import registry
from metalearn.cli import interrupt
from metalearn.cli import options as cli_options
from metalearn.cli.console import say
from metalearn.cli.evaluate import evaluate
from metalearn.cli.train import INTERRUPTED, train
from metalearn.core.optional import MissingPackage

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
FAILED, USER_ERROR = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: Arguments without the name of the program; those of the process if None.

    Returns:
      Exit code: 0 for success, 1 if training failed, 2 for a user error, 130 if
      interrupted.
    """
    if argv is None:  # the process is this command and nothing else
        interrupt.arm()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    try:
        return _dispatch(argv)
    except SystemExit as stop:  # raised by the parser, which has printed a message
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        # Python flushes stdout at exit; into a closed pipe that would print another error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (
        ValueError,
        TypeError,
        OSError,
        FloatingPointError,
        MemoryError,
        MissingPackage,
    ) as error:
        if debug:
            raise
        print(f"metalearn: error: {error}", file=sys.stderr)
        failed = isinstance(error, (ml.NonFiniteGradient, MemoryError))
        return FAILED if failed else USER_ERROR
    except RuntimeError as error:
        # With several processes this may only say that another process has failed.
        if debug or jax.process_count() == 1:
            raise
        print(f"metalearn: error: {error}", file=sys.stderr)
        return FAILED


def _dispatch(argv: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "train": train,
        "evaluate": evaluate,
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
            "learner": entry.recipe.learner.name,
            "data": getattr(entry.recipe.app, "dataset", entry.recipe.app.kind),
            "description": entry.description,
            "expectation": entry.expectation,
        }
        for name, entry in apps.RECIPES.items()
    ]
    systems = {
        card.name: {
            "title": card.title,
            "good_for": card.good_for,
            "paper": card.paper,
            "published": card.published,
        }
        for card in (*registry.RECORDS, *registry.DRIVERS)
    }
    if options.json:
        print(json.dumps({"recipes": rows, "learners": systems}, indent=1))
        return 0
    print("Recipes (metalearn train NAME)\n")
    width = 2 + max(len(row["learner"]) for row in rows)
    for row in rows:
        star = " *" if row["name"] == apps.DEFAULT else ""
        print(f"  {row['name'] + star:<32}{row['learner']:<{width}}{row['description']}")
        if row["expectation"]:
            print(f"  {'':<32}{'':<{width}}{row['expectation']}")
    print("\n  * the default\n\nSystems (ml.NAME; most are a --learner as well)\n")
    for name, found in systems.items():
        paper = f" ({found['paper']})" if found["paper"] else ""
        print(f"  {name:<24}{found['good_for']}{paper}")
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
    say(f"{options.name} is prepared")
    return 0


def _unknown(what: str, word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"unknown {what} {word!r}; expected one of {', '.join(known)}.{hint}"
