"""The driver of meta-training: compiles, logs, validates, checkpoints and resumes."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax

from metalearn.core import cost, kinds, mesh
from metalearn.core.model import Variables
from metalearn.core.plans import check_planned
from metalearn.core.task import Task, Tasks, TaskSampler, TaskStream, as_tasks
from metalearn.core.types import Key
from metalearn.training.arguments import check_fit, intervals
from metalearn.training.averaging import judged
from metalearn.training.batches import tasks_of_step
from metalearn.training.bookkeeping import (
    Run,
    judge,
    keep_last,
    kept_if_it_fails,
    log,
    save,
)
from metalearn.training.checkpoint import Checkpoints
from metalearn.training.diagnosis import not_finite
from metalearn.training.judgement import logits_of
from metalearn.training.loop import (
    Calls,
    NonFiniteGradient,
    Totals,
    advance_of,
    as_numbers,
    check_labels,
    copied,
    no_totals,
    training_classes,
)
from metalearn.training.notes import FIELDS, Notes
from metalearn.training.resume import (
    alone,
    check_folder,
    check_same_run,
    check_same_start,
    identity,
    place_of_run,
    restore_latest,
    restored_totals,
)
from metalearn.training.sinks import Progress, Sink
from metalearn.training.trainer import MetaTrainer, TrainState
from metalearn.training.validation import Validation, prepared


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """What training leaves.

    Attributes:
      variables: Best variables by validation, or the last ones without validation;
        averages of them under `averaging`.
      state: State after the last step, to go on from.
      history: Rows as they were logged.
      best_step: Step of `variables`.
      tasks_at_once: Number of tasks that `task_chunk="auto"` took at once on each device;
        `None` if no step was done.
      skipped: Number of steps that were not finite and left out, under "skip".
    """

    variables: Variables
    state: TrainState
    history: list[dict[str, Any]]
    best_step: int
    tasks_at_once: int | None = None
    skipped: int = 0


@alone
def fit(
    trainer: MetaTrainer,
    tasks: Tasks,
    *,
    num_steps: int,
    tasks_per_step: int,
    key: Key,
    state: TrainState | None = None,
    validation: Validation | None = None,
    log_every: int | None = None,
    sinks: Sequence[Sink] = (),
    progress: bool | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    nonfinite: str = "stop",
) -> FitResult:
    """Trains for `num_steps` outer steps, with tasks drawn on the device or streamed.

    Step i depends on the state, `key`, i and, with a stream, its batch i only, so a
    resumed run repeats an uninterrupted one bit for bit on the same number of devices,
    and up to the order of summation on another.

    Args:
      trainer: Learner and outer optimiser, from `meta_trainer`.
      tasks: A `TaskSampler`, a function `key -> Task`, or a `TaskStream`.
      num_steps: Number of outer steps in all, those before a resume included.
      tasks_per_step: T, tasks of one outer step.
      key: Consumed; the same key resumes the same run.
      state: State to start from, e.g. `FitResult.state` of an earlier call; left as it is.
        A resume has to begin from the same one.
      validation: Judgement on held-back classes; keeps the best variables, stops early.
      log_every: Steps between rows of the history; a twentieth of `num_steps`, 100 at
        most, when `None`.
      sinks: Functions that get every row, e.g. `ml.sinks.json_lines("metrics.jsonl")`.
      progress: Whether to draw a progress bar; `None` decides by the terminal.
      checkpoints: Where to save to; nothing is saved if `None`.
      checkpoint_every: Steps between checkpoints; only at the end when `None`.
      resume: Whether to go on from the latest checkpoint, if there is one. The run must
        be the same: the learner by its name and numbers (`describe`), the tasks by their
        name and data, the optimiser by its kind, the judgement, `tasks_per_step`, `key`,
        and the variables and the optimiser's state by their structure. The first step is
        done once more and must have the metrics of then: another loss, model, inner rate
        or state to start from is refused. The outer rate is not seen: keep it yourself.
      nonfinite: Word for what to do at a step that is not finite: "stop" raises at the
        first, "skip" leaves its update out and counts it in `meta/skipped`. Such a step
        has a NaN or an infinity in its meta-gradient, its update or its metrics. Where
        all steps are skipped, nothing was trained, and `fit` raises at the end.

    Returns:
      A `FitResult`.

    Raises:
      NonFiniteGradient: with the step and what is known of the cause; the last checkpoint
        is untouched.
      CheckpointMismatch: the checkpoint is of another run, as far as `resume` sees.
      MemoryError: an outer step does not fit the device, not even a task at a time.
      TypeError: an argument of another kind, found before anything is computed.
      ValueError: bad arguments or data, found before anything is computed; in any task
        labels outside the logits or the training classes, or queries whose class is masked
        for want of support, at the end of the call of the device that met them.

    Example:
      >>> result = ml.fit(trainer, ml.tasks.sinusoid(), num_steps=3_000,
      ...                 tasks_per_step=25, key=jax.random.key(0))
    """
    check_fit(trainer, key, state, validation, progress, resume, nonfinite, sinks)
    num_steps = kinds.count("num_steps", num_steps)
    tasks_per_step = kinds.count("tasks_per_step", tasks_per_step)
    log_every, every, checkpoint_every = intervals(
        num_steps, log_every, validation, checkpoints, checkpoint_every
    )
    check_folder(checkpoints, resume)
    tasks, stops = as_tasks(tasks), nonfinite == "stop"
    _check_tasks(trainer, tasks, tasks_per_step)
    k_init, k_first, k_steps = jax.random.split(key, 3)
    first = tasks.first(k_first)
    cost.check_room("tasks_per_step", tasks_per_step, first)
    run = _begin(trainer, state, k_init, first, tasks_per_step)
    if validation:
        validation = prepared(validation, trainer.learner, run.state.variables)
    if checkpoints is not None:
        asked = (trainer.learner, tasks, tasks_per_step, key)
        run.notes.identity = identity(*asked, run.state.opt_state, validation)
    if not mesh.leads():
        sinks, progress = (), False

    numbers = (trainer, tasks, tasks_per_step, k_steps, stops, num_steps, run.ways)
    calls = Calls(functools.partial(advance_of, *numbers))
    again = functools.partial(_again, run, trainer, tasks, tasks_per_step, k_steps)
    is_due = functools.partial(_is_due, num_steps)
    if resume and checkpoints.latest() is not None:
        _go_on(run, checkpoints, calls)
    _check_left(run.step, num_steps)
    with Progress(num_steps, start=run.step, show=progress, label="meta-train") as bar:
        _judge_start(run, validation, sinks, checkpoints)
        while run.step < num_steps and not run.notes.stopped:
            stop = _next_stop(run.step, num_steps, log_every, every, checkpoint_every)
            done = _advance(run, calls, stop, stops, again, bar)
            with kept_if_it_fails(run, checkpoints):
                if validation is None:
                    keep_last(run)
                if is_due(run.step, log_every):
                    log(run, tasks_per_step, sinks)
                bar.update(done, run.shown)
                if validation is not None and is_due(run.step, every):
                    judge(run, validation, sinks)
                due = is_due(run.step, checkpoint_every) or run.notes.stopped
                if checkpoints is not None and due:
                    save(run, checkpoints)
    if validation is None or run.notes.best is None:  # none, or none that was a number
        keep_last(run)
    return FitResult(
        variables=run.best,
        state=run.state,
        history=run.notes.history,
        best_step=run.notes.best_step,
        tasks_at_once=calls.at_once,
        skipped=_skipped(run),
    )


def _again(
    run: Run,
    trainer: MetaTrainer,
    tasks: TaskSampler | TaskStream,
    tasks_per_step: int,
    key: Key,
    number: int,
) -> Task:
    """The tasks of a step that was not finite, which left the variables as they were."""
    learned = (trainer.learner, run.state.variables)
    return tasks_of_step(tasks, tasks_per_step, key, number, *learned)


def _check_tasks(
    trainer: MetaTrainer, tasks: TaskSampler | TaskStream, tasks_per_step: int
) -> None:
    check_planned(trainer.learner, tasks)
    mesh.check_enough(tasks_per_step, mesh.shares())
    # A process reads its own share of a batch, and shares are arrays of one size.
    if isinstance(tasks, TaskStream) and jax.process_count() > 1:
        mesh.check_divides(tasks_per_step, mesh.shares())


def _begin(
    trainer: MetaTrainer,
    state: TrainState | None,
    key: Key,
    first: Task,
    tasks_per_step: int,
) -> Run:
    """A run that has done nothing yet, or only what its state has behind it."""
    if state is None:
        state = jax.jit(trainer.init)(key, first)
    state = mesh.everywhere(state)
    ways = logits_of(trainer.learner, state.variables, first)
    best = judged(state)
    fresh = no_totals(trainer, state, first, tasks_per_step)
    step = int(state.step)
    notes = Notes(totals=as_numbers(fresh), begun=step, place=place_of_run())
    return Run(
        step=step,
        state=state,
        best=best,
        fresh=fresh,
        totals=fresh,
        ways=ways,
        classes=training_classes(trainer.learner, first),
        notes=notes,
    )


def _go_on(run: Run, checkpoints: Checkpoints, calls: Calls) -> None:
    """Takes up the run of the newest checkpoint."""
    like = {"state": run.state, "best": run.best}
    restored, notes = restore_latest(checkpoints, like, writer="fit", holds=FIELDS)
    here, there = run.notes, Notes(**notes)
    # Runs of before have fewer entries, and one without a validation may begin to have one.
    mine = {k: v for k, v in here.identity.items() if k in there.identity}
    check_same_run(checkpoints, there.identity, mine)
    if there.first:
        # The program is that which goes on; to run one step of it costs next to nothing.
        _, totals, _ = calls(run.state, copied(run.fresh), run.step, run.step + 1)
        same = here.place == there.place
        first = _first_of(totals)
        first = {k: v for k, v in first.items() if k in there.first or "meta/" not in k}
        check_same_start(checkpoints, there.first, first, same)
    run.state, run.best, run.notes = restored["state"], restored["best"], there
    run.step = int(run.state.step)
    run.totals = restored_totals(checkpoints, there.totals, run.fresh)


def _first_of(totals: Totals) -> dict[str, float]:
    """What tells the first step of a run from that of another run."""
    numbers = as_numbers(totals)
    return {
        **numbers["sums"],
        "meta/skipped": numbers["bad"],
        # Inner rates that no metric shows, and the momentum of batch norm, are seen here.
        "meta/gradient": numbers["gradient"],
        "meta/state": numbers["state"],
    }


def _judge_start(
    run: Run,
    validation: Validation | None,
    sinks: Sequence[Sink],
    checkpoints: Checkpoints | None,
) -> None:
    """Judges the variables that a run begins with, where that is asked for."""
    if validation is not None and validation.start and run.step == run.notes.begun:
        with kept_if_it_fails(run, checkpoints):
            judge(run, validation, sinks)


def _check_left(step: int, num_steps: int) -> None:
    if step > num_steps:
        raise ValueError(
            f"the state to go on from is of step {step}, beyond num_steps={num_steps}. "
            f"Ask for {step} steps or more, or for an earlier state."
        )


def _next_stop(step: int, num_steps: int, *every: int | None) -> int:
    """The next step after which something is due."""
    return min(num_steps, *(step - step % n + n for n in every if n is not None))


def _is_due(num_steps: int, step: int, every: int | None) -> bool:
    """Whether what comes at multiples of `every` and at the end comes after this step."""
    return step == num_steps or (every is not None and step % every == 0)


def _advance(
    run: Run,
    calls: Calls,
    stop: int,
    stops: bool,
    tasks_of: Callable[[int], Task],
    bar: Progress,
) -> int:
    """Outer steps up to number `stop`, or fewer; returns how many."""
    stop = min(stop, run.step + calls.length)
    if first := calls.at_once is None:
        bar.say("compiling the first step")
    run.state, run.totals, seconds = calls(run.state, run.totals, run.step, stop)
    if first:
        bar.say(f"compiled in {seconds:.1f} s")
    run.notes.seconds += seconds
    run.notes.window += seconds
    done, run.step = stop - run.step, stop
    check_labels(run.totals, run.ways, run.classes)
    if stops and int(run.totals["first_bad"]) >= 0:
        kept = (
            "It was not applied, and the last checkpoint is as it was; nonfinite='skip' "
            "would leave it out."
        )
        raise not_finite(run.totals, tasks_of, kept=kept)
    if run.step == run.notes.begun + 1:
        run.notes.first = _first_of(run.totals)
    return done


def _skipped(run: Run) -> int:
    """Number of skipped steps; refuses a run without a good one, warns of few."""
    skipped = run.notes.skipped + int(run.totals["bad"])
    steps = run.step - run.notes.begun
    if steps and skipped >= steps:
        raise NonFiniteGradient(
            f"all {steps} steps were skipped, because none was finite: nothing was "
            "trained, and there is no result. nonfinite='stop' says what is not finite "
            "and why."
        )
    if 2 * skipped > steps:
        warnings.warn(
            f"{skipped} of {steps} steps were not finite and left out, so that little was "
            "trained; nonfinite='stop' says why.",
            stacklevel=3,
        )
    return skipped
