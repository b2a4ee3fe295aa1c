"""Arguments of `fit` and its relatives, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from metalearn.core import kinds
from metalearn.core.keys import check_key
from metalearn.core.types import Key
from metalearn.training.checkpoint import Checkpoints
from metalearn.training.sinks import Sink, check_sinks
from metalearn.training.trainer import (
    MetaTrainer,
    TrainState,
    check_state,
    check_trainer,
)
from metalearn.training.validation import Validation


def check_fit(
    trainer: MetaTrainer,
    key: Key,
    state: TrainState | None,
    validation: Validation | None,
    progress: bool | None,
    resume: bool,
    nonfinite: str,
    sinks: Sequence[Sink],
) -> None:
    """Checks the kinds of arguments of `fit`.

    Raises:
      TypeError: an argument is of another kind.
      ValueError: a word that is none of those expected.
    """
    check_trainer(trainer)
    check_key(key)
    check_state(state)
    if validation is not None and not isinstance(validation, Validation):
        raise TypeError(
            f"validation is a {type(validation).__name__}; expected "
            "ml.Validation(tasks=...) or None."
        )
    if progress is not None:
        kinds.flag("progress", progress)
    kinds.flag("resume", resume)
    if nonfinite not in ("stop", "skip"):
        raise ValueError(f"nonfinite is {nonfinite!r}; expected 'stop' or 'skip'.")
    check_sinks(sinks)


def intervals(
    num_steps: int,
    log_every: int | None,
    validation: Validation | None,
    checkpoints: Checkpoints | None,
    checkpoint_every: int | None,
) -> tuple[int, int | None, int | None]:
    """Steps between rows, validations and checkpoints; `None` where there are none.

    Raises:
      ValueError: not a count, or checkpoints without a place.
    """
    if log_every is None:
        log_every = max(1, min(100, num_steps // 20))
    every = None
    if validation is not None:
        every = validation.every
        if every is None:
            every = max(1, min(500, num_steps // 5))
    if checkpoint_every is not None:
        checkpoint_every = kinds.count("checkpoint_every", checkpoint_every)
        if checkpoints is None:
            raise ValueError(
                f"checkpoint_every is {checkpoint_every}, but there are no checkpoints; "
                'expected a place for them: checkpoints=ml.Checkpoints("run/checkpoints").'
            )
    return kinds.count("log_every", log_every), every, checkpoint_every


def check_online(
    restart: bool,
    resume: bool,
    progress: bool | None,
    sinks: Sequence[Sink],
) -> None:
    """Raises a `TypeError` for flags and sinks of an online run of another kind."""
    kinds.flag("restart", restart)
    kinds.flag("resume", resume)
    if progress is not None:
        kinds.flag("progress", progress)
    check_sinks(sinks)
