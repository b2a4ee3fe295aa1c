"""Options of each command, and how they and the recipe's name are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metalearn import apps, runs
from metalearn.apps import Recipe

SWITCHES = ("--resume", "--carry-opt-state")


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Lists recipes and learners.

    Attributes:
      json: Prints JSON.
    """

    json: bool = False


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Where a run goes and how it begins.

    Attributes:
      out: Run folder; runs/RECIPE-seedN if not given.
      data_dir: Folder of original archives, for data sets that need one.
      seed: Of initialisation and training tasks.
      resume: Goes on with the run in the folder: exactly, or on another number of
        devices up to rounding.
      devices: Devices that share the tasks of a step, over all processes. If not given:
        one accelerator, or the cores of the CPU as far as the tasks need them; with
        several processes all devices there are.
      processes: Processes that train together; start the command once for each.
      process: Which of them this is, from 0; the first writes the run folder.
      coordinator: HOST:PORT at which the first process is reached by the others.
    """

    out: str | None = None
    data_dir: str | None = None
    seed: int = 0
    resume: bool = False
    devices: int | None = None
    processes: int = 1
    process: int = 0
    coordinator: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluates the best variables of a run on meta-test classes.

    Attributes:
      run: Run folder.
      dataset: Another data set than the run was trained on.
      data_dir: Folder of original archives.
      split: Which split of the classes.
      image_size: Side that images are resized to, for sets that can.
      channels: 1 for grey, 3 for colour, for sets that can convert.
      tasks: Number of test tasks; that of the recipe if None.
      ways: Classes of a task.
      shots: Support examples of a class.
      queries: Query examples of a class.
      norm_policy: Which statistics batch norm uses: "batch" is transductive, "support"
        is not; as in training if None.
      seed: Of the test tasks; not related to the seed of training.
      json: Prints JSON alone to stdout.
    """

    run: str
    dataset: str | None = None
    data_dir: str | None = None
    split: str | None = None
    image_size: int | None = None
    channels: int | None = None
    tasks: int | None = None
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None
    norm_policy: str | None = None
    seed: int = 0
    json: bool = False


@dataclasses.dataclass(frozen=True)
class DataListOptions:
    """Lists image data sets.

    Attributes:
      json: Prints JSON.
    """

    json: bool = False


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Builds the records of a data set.

    Attributes:
      name: What `metalearn data list` shows, or a folder or zip of images.
      data_dir: Folder of original archives, for data sets that need one.
      split: Which split of the classes, for sets that have several.
      image_size: Side that images are resized to, for sets that can.
      channels: 1 for grey, 3 for colour, for sets that can convert.
      force: Builds again even if the records exist.
    """

    name: str
    data_dir: str | None = None
    split: str | None = None
    image_size: int | None = None
    channels: int | None = None
    force: bool = False


def parse(options: type, argv: Sequence[str], command: str) -> Any:
    """Reads the options of one command.

    Raises:
      SystemExit: for --help, or after a message about a wrong option.
    """
    import tyro

    return tyro.cli(
        options,
        args=list(argv),
        prog=f"metalearn {command}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
    )


def parse_train(argv: Sequence[str]) -> tuple[str, TrainOptions, Recipe]:
    """Name of the recipe, options and settings of `metalearn train`.

    Raises:
      ValueError: unknown recipe.
      SystemExit: as in `parse`.
    """
    name, rest = _split_name(argv)
    if name is not None:
        recipe = apps.find(name).recipe
    else:
        name, recipe = _default(rest)
    fields = [
        ("run", TrainOptions, TrainOptions()),
        ("recipe", type(recipe), dataclasses.field(default=recipe)),
    ]
    both = dataclasses.make_dataclass("Train", fields)
    both.__doc__ = f"Meta-trains {name}. The defaults shown are those of this recipe."
    parsed = parse(both, rest, "train [RECIPE]")
    return name, parsed.run, parsed.recipe


def _split_name(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe's name, wherever it stands, and the other words."""
    for i, word in enumerate(argv):
        # A word after an option is its value, unless the option is a switch.
        before = argv[i - 1] if i else ""
        free = before.startswith("--no-") or before in SWITCHES or before[:1] != "-"
        if free and not word.startswith("-") and (i == 0 or word in apps.RECIPES):
            return word, [*argv[:i], *argv[i + 1 :]]
    return None, list(argv)


def _default(argv: Sequence[str]) -> tuple[str, Recipe]:
    """The default recipe, or when a folder is resumed, that of the folder."""
    folder = None
    for i, word in enumerate(argv):
        if word.startswith("--out="):
            folder = word.removeprefix("--out=")
        elif word == "--out" and i + 1 < len(argv):
            folder = argv[i + 1]
    if "--resume" in argv and folder and (Path(folder) / "config.json").is_file():
        run = runs.load(folder)
        return run.name, run.recipe
    return apps.DEFAULT, apps.find(apps.DEFAULT).recipe


def for_evaluation(recipe: Recipe, options: EvaluateOptions) -> Recipe:
    """The recipe with the data and test tasks that the options ask for.

    Raises:
      ValueError: an option that this kind of recipe does not have.
    """
    asked = {
        "dataset": options.dataset,
        "split": options.split,
        "image_size": options.image_size,
        "channels": options.channels,
        "test_tasks": options.tasks,
        "eval_ways": options.ways,
        "eval_shots": options.shots,
        "eval_queries": options.queries,
        "norm_policy": options.norm_policy,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    if options.dataset is not None:
        # Another set has other options; those of the training set do not carry over.
        asked = {"split": None, "image_size": None, "channels": None, **asked}
    known = {field.name for field in dataclasses.fields(recipe)}
    if unknown := [n for n in asked if n not in known and asked[n] is not None]:
        raise ValueError(
            f"a run of kind {recipe.kind!r} has no setting {', '.join(unknown)}. Leave "
            "the option out."
        )
    asked = {name: value for name, value in asked.items() if name in known}
    changed = dataclasses.replace(recipe, **asked)
    changed.check()
    if options.norm_policy in ("running", "per_step") or (
        options.norm_policy and recipe.norm_policy == "per_step"
    ):
        raise ValueError(
            f"norm_policy {options.norm_policy!r} was given to a run trained with "
            f"{recipe.norm_policy or 'the default'!r}: its averages are not those that "
            "would be read. Evaluate with support or batch, or leave the option out."
        )
    return changed
