"""Wrong versions of the learners, each with a quick test that fails on it.

A table is a module of this folder with a list `MUTATIONS`. `python -m tests.mutations` runs
every wrong version against its test; `tests/test_mutations.py` holds the tables together.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One wrong version of a learner.

    Attributes:
      learner: Name of its constructor in the registry.
      file: Path of the changed file, relative to `metalearn/`.
      old: Text to replace, which occurs exactly once in the file.
      new: Text in its place.
      test: Node id of a quick test that must fail, relative to `tests/`.
    """

    learner: str
    file: str
    old: str
    new: str
    test: str


def of(learner: str, *rows: tuple[str, str, str, str], tests: str) -> list[Mutation]:
    """Mutations of one learner.

    Args:
      learner: Name of its constructor in the registry.
      *rows: Tuples `(file, old, new, test)`, see `Mutation`.
      tests: File of the tests where a row gives the name of a test alone.
    """
    return [
        Mutation(learner, file, old, new, test if "::" in test else f"{tests}::{test}")
        for file, old, new, test in rows
    ]


def every() -> list[Mutation]:
    """The mutations of all tables."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"{__name__}.{n}") for n in names if n != "__main__"]
    return [m for module in modules for m in getattr(module, "MUTATIONS", ())]
