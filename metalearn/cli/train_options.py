"""Options of `metalearn train`: a recipe, its changes, another learner, a run to resume."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

from metalearn import apps, runs
from metalearn.algorithms import registry
from metalearn.algorithms.record import parameters
from metalearn.apps import Recipe, learners
from metalearn.apps.records import allows, hints
from metalearn.cli.options import TrainOptions, check_seed, load_run
from metalearn.core.optional import require

MOST_SEEDS = 1000


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
    stored = _stored_run(name, rest)
    if resumed := stored is not None and name in (None, stored.name):
        name, recipe = stored.name, stored.recipe
    else:
        name = name or apps.DEFAULT
        recipe = apps.find(name).recipe
    asked = _asked(rest)
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
    # Of several seeds, each run has its own.
    own = TrainOptions()
    if resumed and "seeds" not in asked:
        own = TrainOptions(seed=stored.seed)
    fields: list[Any] = [
        ("run", Annotated[TrainOptions, alone], own),
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
    made = Recipe(**made, **vars(found.settings))
    if not resumed and "steps" in asked:
        made = following(made, recipe, asked)
    return name, found.run, made


def following(recipe: Recipe, printed: Recipe, asked: Collection[str]) -> Recipe:
    """The recipe with rows and validations as far apart as its number of steps asks for.

    Args:
      recipe: Recipe with another number of steps.
      printed: Recipe with the numbers that belong together.
      asked: Names of the settings that the user gave, which stay as they are.

    Example:
      >>> short = dataclasses.replace(recipe, steps=150)  # in place of 1,500
      >>> following(short, recipe, {"steps"}).log_every  # in place of 100
      10
    """
    if not 0 < recipe.steps != printed.steps:
        return recipe
    changes = {
        name: _round_number(getattr(printed, name) * recipe.steps / printed.steps)
        for name in ("log_every", "validate_every")
        if name not in asked
    }
    return dataclasses.replace(recipe, **changes)


def _round_number(value: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, ... up to `value`; 1 for less than 1."""
    whole = max(int(value), 1)
    power = 10 ** (len(str(whole)) - 1)
    return max(n * power for n in (1, 2, 5) if n * power <= whole)


def _asked(argv: Sequence[str]) -> set[str]:
    """Names of the options among the words, as names of fields."""
    words = (word[2:].partition("=")[0] for word in argv if word.startswith("--"))
    return {word.replace("-", "_") for word in words}


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    """Value of an option among the words, the last one if it is there several times."""
    found = None
    for i, word in enumerate(argv):
        if word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
        elif word == option and i + 1 < len(argv):
            found = argv[i + 1]
    return found


def _stored_run(name: str | None, argv: Sequence[str]) -> runs.Run | None:
    """The run that `--resume` goes on with; `None` if there is none yet.

    Raises:
      FileNotFoundError: a folder was given without the name of a recipe, and holds no run.
      ValueError: the run in the folder is damaged.
    """
    if "--resume" not in argv:
        return None
    out, several = _value_of("--out", argv), _value_of("--seeds", argv)
    seeds = [_value_of("--seed", argv) or 0] if several is None else seeds_of(several)
    base = f"runs/{name or apps.DEFAULT}" if out is None else out
    single = out is not None and several is None
    folders = [Path(out) if single else Path(f"{base}-seed{seed}") for seed in seeds]
    found = [folder for folder in folders if (folder / "config.json").is_file()]
    if found:
        return load_run(found[0])
    if name is None and out is not None:
        return load_run(folders[0])  # which says that there is none
    return None


def seeds_of(text: str) -> list[int]:
    """Seeds such as "0-4" or "0,2,5" or "0-2,7", in the order given.

    Raises:
      ValueError: the text is something else, or names a seed twice or too many.

    Example:
      >>> seeds_of("0-2,7")
      [0, 1, 2, 7]
    """
    found: list[int] = []
    for word in text.replace(" ", "").split(","):
        match = re.fullmatch("([0-9]{1,10})(?:-([0-9]{1,10}))?", word)
        first, last = (
            (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
        )
        if last < first or last - first >= MOST_SEEDS:
            raise ValueError(
                f"seeds is {text!r}; expected numbers and ranges with commas between, such "
                f"as 0-4 or 0,2,5, at most {MOST_SEEDS:,}."
            )
        found += range(first, last + 1)
    for seed in found:
        check_seed(seed)
    if len(set(found)) < len(found) or len(found) > MOST_SEEDS:
        raise ValueError(
            f"seeds is {text!r}, which names {len(found)} seeds, {len(set(found))} of them "
            f"different; expected different ones, at most {MOST_SEEDS:,}."
        )
    return found


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
