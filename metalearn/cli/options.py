"""Options of each command, and the functions that read options and recipe names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from metalearn import apps, runs
from metalearn.algorithms import registry
from metalearn.algorithms.record import parameters
from metalearn.apps import Recipe, learners
from metalearn.apps.records import allows, changed, hints
from metalearn.core.optional import require


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Lists recipes and learners.

    Attributes:
      json: Prints JSON.
    """

    json: bool = False


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Folder, data, seed and devices of a run.

    Attributes:
      out: Run folder; runs/RECIPE-seedN if not given.
      data_dir: Folder of original archives, for data sets that need one.
      seed: Seed of initialisation and training tasks.
      resume: Resumes the run in the folder. The result is the same as without the
        interruption, or the same up to rounding on another number of devices.
      devices: Number of devices, over all processes, that share the tasks of a step. The
        default is one accelerator, or as many cores of the CPU as the tasks need; with
        several processes the default is all devices.
      processes: Number of processes that train together; start the command once for each.
      process: Number of this process, from 0; the first process writes the run folder.
      coordinator: Address HOST:PORT at which the others reach the first process.
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
      dataset: Data set to test on; that of training if None.
      data_dir: Folder of original archives.
      split: Split of the classes.
      image_size: Side that images are resized to, for sets that can.
      channels: Number of channels, 1 for grey or 3 for colour, for sets that can convert.
      tasks: Number of test tasks; that of the recipe if None.
      ways: Classes of a task.
      shots: Support examples of a class.
      queries: Query examples of a class.
      norm_policy: Statistics that batch norm uses: "batch" is transductive, "support"
        is not; as in training if None.
      seed: Seed of the test tasks, independent of the seed of training.
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
      name: Name in `metalearn data list`, or a folder or zip of images.
      data_dir: Folder of original archives, for data sets that need one.
      split: Split of the classes, for sets that have several.
      image_size: Side that images are resized to, for sets that can.
      channels: Number of channels, 1 for grey or 3 for colour, for sets that can convert.
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
      SystemExit: --help was given, or an option is wrong; a message has been printed.
    """
    tyro = require("tyro", "to read the command line")

    return tyro.cli(
        options,
        args=list(argv),
        prog=f"metalearn {command}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
    )


def parse_train(argv: Sequence[str]) -> tuple[str, TrainOptions, Recipe]:
    """Name of the recipe, options and settings of `metalearn train`.

    `--learner NAME` or `--learner package.module:function` takes another learner, which
    keeps the settings that both learners have. `--learner.NAME VALUE` changes one setting.

    Raises:
      ValueError: unknown recipe or learner.
      SystemExit: as in `parse`.
    """
    tyro = require("tyro", "to read the command line")

    name, rest = _split_name(argv)
    if name is not None:
        recipe = apps.find(name).recipe
    else:
        name, recipe = _default(rest)
    learner, rest = _split_learner(rest)
    if learner is not None:
        recipe = with_learner(recipe, learner)
    parts = ("app", "learner", "outer")
    top = [f for f in dataclasses.fields(Recipe) if f.name not in parts]
    settings: Any = dataclasses.make_dataclass(
        "Settings", [(f.name, f.type, getattr(recipe, f.name)) for f in top], frozen=True
    )
    # The help of tyro comes from the docstring, and its types from names in the module.
    settings.__doc__, settings.__module__ = Recipe.__doc__, Recipe.__module__
    alone = tyro.conf.arg(name="")  # without a prefix
    fields: list[Any] = [
        ("run", Annotated[TrainOptions, alone], TrainOptions()),
        ("settings", Annotated[settings, alone], dataclasses.field(default=settings())),
        *(
            (part, type(value), dataclasses.field(default=value))
            for part, value in ((part, getattr(recipe, part)) for part in parts)
        ),
    ]
    both = dataclasses.make_dataclass("Train", fields)
    both.__doc__ = (
        f"Meta-trains {name}. The defaults shown are those of this recipe. Another "
        "learner: --learner NAME, or --learner package.module:function for one of yours."
    )
    found = tyro.cli(
        both,
        args=list(rest),
        prog="metalearn train [RECIPE]",
        config=(tyro.conf.AvoidSubcommands,),
    )
    made = {part: getattr(found, part) for part in parts}
    return name, found.run, Recipe(**made, **vars(found.settings))


# Names that an outer optimiser of a learner's own has for settings of `Outer`.
_SAME = {"rate": "learning_rate", "name": "direction"}


def with_learner(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another learner, which takes over what the recipe sets.

    Settings that stand at the default of the old learner are not taken over: the new
    learner has defaults of its own.

    Raises:
      ValueError: unknown learner.
    """
    tyro = require("tyro", "to read the command line")

    def default_of(kind: type, old: Any) -> Any:
        given = {
            _SAME.get(f.name, f.name): getattr(old, f.name)
            for f in dataclasses.fields(old)
            if getattr(old, f.name) != f.default
        }
        kinds, values = hints(kind), {}
        for field in dataclasses.fields(kind):
            value = given.get(field.name, tyro.MISSING)
            if value is not tyro.MISSING and not allows(kinds[field.name], value):
                value = tyro.MISSING
            if value is not tyro.MISSING or field.default is dataclasses.MISSING:
                values[field.name] = value  # a missing one is to be said by the user
        return kind(**values)

    kind = learners.settings_of(name)
    outer = learners.own_outer(kind.record)
    had = learners.own_outer(recipe.learner.record)
    changes: dict[str, Any] = {"learner": default_of(kind, recipe.learner)}
    if outer is not None:
        changes["outer"] = default_of(outer, recipe.outer)
    elif had is not None:
        changes["outer"] = apps.Outer()
    return dataclasses.replace(recipe, **changes)


def _split_learner(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--learner`, and the other words."""
    rest, name = [], None
    words = iter(argv)
    for word in words:
        if word == "--learner":
            name = next(words, "")
        elif word.startswith("--learner="):
            name = word.removeprefix("--learner=")
        else:
            rest.append(word)
    return name, rest


def _split_name(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The name of the recipe, at any place, and the other words."""
    for i, word in enumerate(argv):
        # A word after an option is its value, unless the option is a switch.
        before = argv[i - 1] if i else ""
        free = before[:1] != "-" or "=" in before or before == "--resume"
        free |= before.startswith("--learner.") and before.rpartition(".")[2] in _switches()
        if free and not word.startswith("-") and (i == 0 or word in apps.RECIPES):
            return word, [*argv[:i], *argv[i + 1 :]]
    return None, list(argv)


def _switches() -> set[str]:
    """Settings of learners that are true or false, as words of the command line."""
    names = {
        name
        for record in registry.RECORDS
        for name, parameter in parameters(record.build).items()
        if parameter.annotation is bool
    }
    words = {name.replace("_", "-") for name in names}
    return names | words | {f"no-{word}" for word in words}


def _default(argv: Sequence[str]) -> tuple[str, Recipe]:
    """The default recipe; for a resumed folder, the recipe of the folder."""
    folder = None
    for i, word in enumerate(argv):
        if word.startswith("--out="):
            folder = word.removeprefix("--out=")
        elif word == "--out" and i + 1 < len(argv):
            folder = argv[i + 1]
    if "--resume" in argv and folder:
        run = runs.load(folder)  # refuses a folder that holds none
        return run.name, run.recipe
    return apps.DEFAULT, apps.find(apps.DEFAULT).recipe


def for_evaluation(recipe: Recipe, options: EvaluateOptions) -> Recipe:
    """The recipe with the data and test tasks that the options ask for.

    Raises:
      ValueError: this application does not have one of the options.
    """
    asked = {
        "dataset": options.dataset,
        "split": options.split,
        "image_size": options.image_size,
        "channels": options.channels,
        "eval_ways": options.ways,
        "eval_shots": options.shots,
        "eval_queries": options.queries,
    }
    # None means that the option was not given, and the recipe decides.
    asked = {name: value for name, value in asked.items() if value is not None}
    if options.dataset is not None:
        # Another set has other options, so the options of the training set are dropped.
        asked = {"split": None, "image_size": None, "channels": None, **asked}
    known = vars(recipe.app).keys()
    if unknown := [n for n in asked if n not in known and asked[n] is not None]:
        raise ValueError(
            f"a run of kind {recipe.app.kind!r} has no setting {', '.join(unknown)}. Leave "
            "the option out."
        )
    found = recipe
    for name, value in asked.items():
        if name in known:
            found = changed(found, f"app.{name}", value)
    if options.tasks is not None:
        found = dataclasses.replace(found, test_tasks=options.tasks)
    if options.norm_policy is not None:
        found = _with_policy(found, options.norm_policy)
    found.check()
    return found


def _with_policy(recipe: Recipe, policy: str) -> Recipe:
    if not hasattr(recipe.learner, "norm"):
        raise ValueError(
            f"{recipe.learner.name} has no policy of batch norm. Leave the option out."
        )
    found = changed(recipe, "learner.norm", policy)
    trained = getattr(recipe.learner, "norm", None)
    found.check()
    averages = ("running", "per_step")
    if policy != trained and (policy in averages or trained == "per_step"):
        raise ValueError(
            f"norm_policy {policy!r} was given to a run trained with {trained!r}: its "
            "averages are not those that would be read. Evaluate with support or batch, or "
            "leave the option out."
        )
    return found


def check_seed(seed: int) -> None:
    """Raises a `ValueError` unless `seed` is a seed that jax accepts."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected 0 or more, below 2**32.")
