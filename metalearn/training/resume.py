"""Going on with a run: what a folder may hold, and whether the run is the same one.

A run is the same if what the library controls is: the learner's name and numbers, the
tasks, the key, and the structure of variables and optimiser state, which
`Checkpoints.restore` compares. Functions tell nothing about themselves: what a loss, a
model or an optimiser computes, and with which rates, is for the caller to keep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from metalearn.core.types import PyTree
from metalearn.training.checkpoint import CheckpointMismatch, Checkpoints

P = ParamSpec("P")
R = TypeVar("R")


def alone(train: Callable[P, R]) -> Callable[P, R]:
    """Locks the folder of the argument `checkpoints` while the function trains."""

    @functools.wraps(train)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        checkpoints = kwargs.get("checkpoints")
        if not isinstance(checkpoints, Checkpoints):  # none, or what `train` refuses
            return train(*args, **kwargs)
        with checkpoints.held():
            return train(*args, **kwargs)

    return run


def check_folder(checkpoints: Checkpoints | None, resume: bool) -> None:
    """Refuses a resume from nothing, and a new run on top of another one.

    Raises:
      ValueError: no checkpoints to resume from, or some that would be mixed with others.
    """
    if resume and checkpoints is None:
        raise ValueError("resume=True needs checkpoints to resume from; give Checkpoints.")
    if checkpoints is not None and not resume and checkpoints.latest() is not None:
        raise ValueError(
            f"{checkpoints.folder} already holds checkpoint {checkpoints.latest()} of "
            "another run. Go on from it with resume=True, or give an empty folder."
        )


def restore_latest(
    checkpoints: Checkpoints, like: PyTree, *, writer: str, holds: Collection[str]
) -> tuple[PyTree, dict[str, Any]]:
    """Arrays and notes of the newest checkpoint.

    Args:
      checkpoints: Folder that holds one.
      like: Arrays of the structure that is expected.
      writer: Name of the function that must have written it.
      holds: Names that its notes have.

    Raises:
      CheckpointMismatch: the structure is another, or something else wrote it.
      ValueError: its files cannot be read.
    """
    tree, notes = checkpoints.restore(checkpoints.latest(), like=like)
    if not notes.keys() >= set(holds):
        raise CheckpointMismatch(
            f"{checkpoints.folder} holds checkpoints that {writer} did not write. Give "
            "a folder that it wrote, or an empty one and resume=False."
        )
    return tree, notes


def check_same_run(
    checkpoints: Checkpoints,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    others: Sequence[str] = (),
    but: str = "",
) -> None:
    """Compares what a checkpoint says of its run with what was asked for.

    Args:
      checkpoints: Folder of the checkpoint.
      there: Name and value of everything that the checkpoint says of its run.
      here: The same of the run that is to go on from it.
      others: Further differences, a line each.
      but: What may differ, said at the end of the message.

    Raises:
      CheckpointMismatch: something differs; lists every difference.
    """
    lines = [
        f"{name}: {there.get(name)} there, {value} here"
        for name, value in here.items()
        if there.get(name) != value
    ]
    if lines := [*lines, *others]:
        raise CheckpointMismatch(
            f"checkpoint {checkpoints.latest()} in {checkpoints.folder} is of another "
            "run:\n  "
            + "\n  ".join(lines)
            + f"\nGive the same to go on with it exactly{but}."
        )
