"""The command line: `metalearn list | train | evaluate | compare | predict | data`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence

import metalearn as ml
from metalearn import apps
from metalearn.algorithms import registry
from metalearn.cli import completion, interrupt
from metalearn.cli import options as cli_options
from metalearn.cli.compare import compare
from metalearn.cli.console import print_json, quiet_stdout, say
from metalearn.cli.errors import USER_ERROR, guarded
from metalearn.cli.evaluate import evaluate
from metalearn.cli.predict import predict
from metalearn.cli.train import train
from metalearn.core.cache import cache_root
from metalearn.core.errors import reading
from metalearn.data.domains import LAYOUTS as DOMAINS
from metalearn.data.graphs import LAYOUTS as GRAPHS
from metalearn.data.places import LAYOUTS as VISITS
from metalearn.data.ratings import LAYOUTS
from metalearn.data.text.sets import SETS

HELP = """usage: metalearn COMMAND [OPTIONS]

  metalearn list                 recipes and learners
  metalearn train [RECIPE]       meta-trains, evaluates, draws (default {default})
  metalearn evaluate RUN         evaluates a trained run on meta-test classes
  metalearn compare RUN RUN ...  compares runs on the same test tasks
  metalearn predict RUN          classifies one's own images or texts
  metalearn data list            data sets
  metalearn data prepare NAME    builds the records of one

  metalearn COMMAND --help       all options of a command
  metalearn --version
  metalearn --print-completion bash|zsh|fish
  --traceback                    with any command: show the traceback of an error

Exit status: 0 success, 1 failure, 2 wrong usage or input, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: Arguments without the name of the program; those of the process if None.

    Returns:
      Exit status: 0 for success, 1 for a failure, 2 for wrong usage or input, 130 if
      interrupted; see `metalearn.cli.errors`.
    """
    if argv is None:  # the process is this command and nothing else
        interrupt.arm()
    return guarded(_dispatch, list(sys.argv[1:] if argv is None else argv))


def _dispatch(argv: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "list": _list,
        "train": train,
        "evaluate": evaluate,
        "compare": compare,
        "predict": predict,
        "data": _data,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        _alone(argv, 1)
        print(HELP.format(default=apps.DEFAULT), end="")
        return 0 if argv else USER_ERROR
    if argv[0] in ("--version", "version"):
        _alone(argv, 1)
        print(f"metalearn {ml.__version__}")
        return 0
    word, equals, shell = argv[0].partition("=")
    if word == "--print-completion":
        words = [word, shell, *argv[1:]] if equals else argv
        _alone(words, 2)
        print(completion.script(words[1] if len(words) > 1 else ""), end="")
        return 0
    if argv[0] not in commands:
        raise ValueError(_unknown("command", argv[0], commands))
    return commands[argv[0]](argv[1:])


def _alone(argv: list[str], most: int) -> None:
    """Refuses words that would be ignored.

    Raises:
      ValueError: there are more than `most` words.
    """
    if len(argv) > most:
        raise ValueError(
            f"{' '.join(argv[:most])} takes nothing more, and got "
            f"{' '.join(argv[most:])!r}. Help on a command: metalearn COMMAND --help."
        )


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
        print_json({"recipes": rows, "learners": systems})
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
        _alone(argv, 1)
        print("usage: metalearn data list [--json] | metalearn data prepare NAME [OPTIONS]")
        return 0 if argv else USER_ERROR
    return commands[argv[0]](argv[1:])


def _data_list(argv: list[str]) -> int:
    options = cli_options.parse(cli_options.DataListOptions, argv, "data list")
    remedy = "Delete the set that is damaged there; it is built again when it is used."
    with quiet_stdout(options.json), reading(f"a data set in {cache_root()}", remedy):
        rows = ml.data.available()
    if options.json:
        images = [{"kind": "images", **vars(row)} for row in rows]
        texts = [
            {"kind": "texts", "name": n, "description": d} for n, (d, _) in SETS.items()
        ]
        ratings = [
            {"kind": "ratings", "name": n, "description": d}
            for n, (d, *_) in LAYOUTS.items()
        ]
        graphs = [
            {"kind": "graphs", "name": n, "description": d} for n, (d, _) in GRAPHS.items()
        ]
        domains = [
            {"kind": "domains", "name": n, "description": d}
            for n, (d, _) in DOMAINS.items()
        ]
        places = [
            {"kind": "places", "name": n, "description": d} for n, (d, *_) in VISITS.items()
        ]
        print_json([*images, *texts, *ratings, *graphs, *domains, *places])
        return 0
    print("Images\n")
    for row in rows:
        state = f"needs {row.needs}"
        if row.prepared:
            state = f"prepared: {row.classes:,} classes, {row.images:,} images"
        print(f"  {row.name:<12}{row.description}\n  {'':<12}{state}")
    print("  folder:PATH one's own images, class/image.png, in a folder or zip")
    print("  tfds:NAME   a TFDS image set prepared on this machine")
    print("\nTexts, by --app.dataset of the recipes text-*\n")
    for name, (description, file) in SETS.items():
        print(f"  {name:<12}{description}\n  {'':<12}needs --data-dir with {file}")
    print("\nRatings, by --app.dataset of the recipes ratings-*\n")
    for name, (description, files, _) in LAYOUTS.items():
        print(f"  {name:<17}{description}\n  {'':<17}needs {', '.join(files)}")
    print("\nGraphs, by --app.dataset of the recipes graphs-*\n")
    for name, (description, file) in GRAPHS.items():
        print(f"  {name:<19}{description}\n  {'':<19}needs --data-dir with {file}")
    print("\nDomains, by --app.dataset of the recipes domains-*\n")
    for name, (description, file) in DOMAINS.items():
        print(f"  {name:<15}{description}\n  {'':<15}needs --data-dir with {file}")
    print("\nVisits to places, by --app.dataset of the recipes places-*\n")
    for name, (description, files, _) in VISITS.items():
        print(f"  {name:<19}{description}\n  {'':<19}needs {', '.join(files)}")
    return 0


def _data_prepare(argv: list[str]) -> int:
    options = cli_options.parse(cli_options.PrepareOptions, argv, "data prepare")
    chosen = {
        name: getattr(options, name)
        for name in ("split", "image_size", "channels")
        if getattr(options, name) is not None
    }
    remedy = "Fetch its originals again, and prepare it with --force."
    with options.around(), reading(f"the data set {options.name!r}", remedy):
        ml.data.prepare(
            options.name, data_dir=options.data_dir, force=options.force, **chosen
        )
    say(f"{options.name} is prepared")
    return 0


def _unknown(what: str, word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"unknown {what} {word!r}; expected one of {', '.join(known)}.{hint}"
