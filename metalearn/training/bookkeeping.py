"""What a run of `fit` leaves while it goes on: rows, judgements, checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from metalearn.core.model import Variables
from metalearn.training.averaging import judged
from metalearn.training.checkpoint import Checkpoints
from metalearn.training.loop import Totals, as_numbers, copied, row_of
from metalearn.training.notes import Notes, beside_the_bar
from metalearn.training.sinks import Sink
from metalearn.training.trainer import TrainState
from metalearn.training.validation import Validation


@dataclasses.dataclass(kw_only=True)
class Run:
    """What changes while training goes on.

    Attributes:
      step: Number of outer steps done.
      state: State after them.
      best: Variables that are returned if nothing better comes.
      fresh: Sums of a window without steps.
      totals: Sums of the open window.
      ways: Number of logits that labels have to be within, if targets are classes.
      classes: Number of training classes that `class_ids` have to be within, if the learner
        classifies them.
      notes: Bookkeeping of the host.
      shown: Numbers beside the progress bar.
    """

    step: int
    state: TrainState
    best: Variables
    fresh: Totals
    totals: Totals
    ways: int | None
    classes: int | None
    notes: Notes
    shown: dict[str, float] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def kept_if_it_fails(run: Run, checkpoints: Checkpoints | None) -> Iterator[None]:
    """What a sink, a validation or the disk raises costs none of the steps before it."""
    try:
        yield
    except Exception as error:
        error.state = run.state
        said = f"The {run.step:,} steps before are in the attribute `state` of this error"
        if checkpoints is not None:
            with contextlib.suppress(Exception):  # the disk may be what has failed
                save(run, checkpoints)
                said += f", and saved in {checkpoints.folder}"
        error.add_note(f"{said}: fit(..., state=error.state) goes on from there.")
        raise


def log(run: Run, tasks_per_step: int, sinks: Sequence[Sink]) -> None:
    """Closes the window: its row goes out, and sums begin anew."""
    notes = run.notes
    row = row_of(run.step, run.totals, tasks_per_step, notes.window, notes.seconds)
    run.shown = beside_the_bar(row)
    notes.skipped += int(run.totals["bad"])
    run.totals, notes.window = copied(run.fresh), 0.0
    _emit(row, notes, sinks)


def _emit(row: dict[str, Any], notes: Notes, sinks: Sequence[Sink]) -> None:
    notes.history.append(row)
    for sink in sinks:
        sink(dict(row))  # a sink may change what it is given


def keep_last(run: Run) -> None:
    run.best, run.notes.best_step = judged(run.state), run.step


def judge(run: Run, validation: Validation, sinks: Sequence[Sink]) -> None:
    """Validates; keeps the variables if they are better, or counts towards the patience."""
    notes, began = run.notes, time.perf_counter()
    means = validation.measure(judged(run.state))
    notes.seconds += time.perf_counter() - began
    value = means[validation.metric]
    if validation.improves(value, notes.best):
        # Copies, for the next outer step overwrites the arrays of the state.
        run.best = copied(judged(run.state))
        notes.best, notes.best_step, notes.stale = value, run.step, 0
    elif math.isfinite(value):
        notes.stale += 1
    else:  # nothing is known of whether it is worse
        warnings.warn(
            f"the validation after step {run.step} has {validation.metric} = {value}, "
            "which is neither kept as the best nor counted towards the patience.",
            stacklevel=3,
        )
    if validation.patience is not None and notes.stale >= validation.patience:
        notes.stopped = True
    named = {f"validation/{k.removeprefix('query/')}": v for k, v in means.items()}
    _emit({"step": run.step, **named, "best_step": notes.best_step}, notes, sinks)


def save(run: Run, checkpoints: Checkpoints) -> None:
    run.notes.totals = as_numbers(run.totals)
    arrays = {"state": run.state, "best": run.best}
    checkpoints.save(run.step, arrays, dataclasses.asdict(run.notes))
