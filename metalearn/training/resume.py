"""Going on with a run: what a folder may hold, and whether the run is the same one.

A run is the same if what the library controls is: the learner's name and numbers, the
tasks and their data, the key, the judgement, the kind of the optimiser, and the structure
of variables and optimiser state, which `Checkpoints.restore` compares. Functions tell
nothing about themselves, but the first step does: its metrics, its gradient and the state
after it depend on the loss, the model, the inner rates and the variables to start from. The
rates of the outer optimiser are for the caller to keep.
"""

from __future__ import annotations

import functools
import math
import platform
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from metalearn.core import digest, mesh
from metalearn.core.learner import MetaLearner, describe
from metalearn.core.task import TaskSampler, TaskStream
from metalearn.core.types import Key, PyTree
from metalearn.training.checkpoint import CheckpointMismatch, Checkpoints
from metalearn.training.validation import Validation

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
      TypeError: not `Checkpoints`.
      ValueError: no checkpoints to resume from, or some that would be mixed with others.
    """
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise TypeError(
            f"checkpoints is a {type(checkpoints).__name__}; expected ml.Checkpoints, such "
            'as ml.Checkpoints("run/checkpoints").'
        )
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


def kinds_of_state(state: PyTree) -> str:
    """Names of the parts that the state of an optimiser is made of."""
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        inside = "".join(kinds_of_state(part) for part in state)
        return f"{type(state).__name__}({inside})"
    if isinstance(state, tuple):
        return "".join(kinds_of_state(part) for part in state)
    return ""


def identity(
    learner: MetaLearner,
    tasks: TaskSampler | TaskStream,
    tasks_per_step: int,
    key: Key,
    opt_state: PyTree,
    validation: Validation | None,
) -> dict[str, Any]:
    """What a resume has to repeat, as JSON values by name."""
    found = {
        "learner": describe(learner),
        "tasks": tasks.name,
        "tasks_per_step": tasks_per_step,
        "key": jax.random.key_data(key).tolist(),
        "optimiser": kinds_of_state(opt_state),
    }
    if isinstance(tasks, TaskSampler):
        found["data"] = digest.of_tree(tasks.data)
    if validation is not None:
        found["validation"] = validation.identity()
    return found


def check_same_start(
    checkpoints: Checkpoints,
    there: Mapping[str, float],
    here: Mapping[str, float],
    same_place: bool,
) -> None:
    """Compares what the start of a run reported with what the same start reports now.

    Args:
      checkpoints: Folder of the checkpoint.
      there: Metrics of then.
      here: Metrics of now.
      same_place: Whether both were computed at one place, see `place_of_run`. Elsewhere
        rounding may differ by far more, and only larger differences are seen.

    Raises:
      CheckpointMismatch: something that they depend on has changed.
    """
    near = 1e-5 if same_place else 5e-2
    lines = [
        f"{name}: {there.get(name)} there, {here.get(name)} here"
        for name in sorted(there.keys() | here.keys())
        if not _near(there.get(name), here.get(name), near)
    ]
    if lines:
        raise CheckpointMismatch(
            f"checkpoint {checkpoints.latest()} in {checkpoints.folder} is of another run, "
            "which began with other numbers:\n  "
            + "\n  ".join(lines)
            + "\nGive the loss, the model, the inner rates, the tasks and the state to "
            "start from that it began with, or another folder."
        )


def place_of_run() -> str:
    """The machine and what else decides the last digits; its own word where many do."""
    backend = jax.default_backend()
    if backend != "cpu":  # algorithms are chosen by their speed, anew in each process
        return f"{backend} {uuid.uuid4()}"
    return f"{mesh.shares()} cpu of {platform.node()}, jax {jax.__version__}"


def _near(first: float | None, second: float | None, near: float) -> bool:
    if first is None or second is None:
        return False
    return math.isclose(first, second, rel_tol=near, abs_tol=1e-2 * near)


def restored_totals(
    checkpoints: Checkpoints, there: Mapping[str, Any], fresh: PyTree
) -> PyTree:
    """Sums of an open window, with what older checkpoints do not hold left at none.

    Raises:
      CheckpointMismatch: they are of other metrics.
    """
    there = {name: there.get(name, value) for name, value in fresh.items()}
    if jax.tree.structure(there) != jax.tree.structure(fresh):
        raise CheckpointMismatch(
            f"checkpoint {checkpoints.latest()} in {checkpoints.folder} holds the metrics "
            f"{sorted(there['sums'])}, but the learner reports {sorted(fresh['sums'])}. Go "
            "on with the learner that wrote it."
        )
    return jax.tree.map(lambda old, x: jnp.asarray(old, x.dtype), there, fresh)
