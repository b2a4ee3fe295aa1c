"""The driver of meta-training: compiles, logs, validates, checkpoints and resumes."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from metalearn.core import checks, cost, mesh
from metalearn.core.learner import MetaLearner, describe
from metalearn.core.model import Variables
from metalearn.core.task import TaskSampler, TaskStream, as_tasks
from metalearn.core.types import Key, LossFn, PyTree
from metalearn.training.averaging import judged
from metalearn.training.checkpoint import CheckpointMismatch
from metalearn.training.evaluation import check_task, evaluate
from metalearn.training.loop import advance_of, as_numbers, no_totals, row_of
from metalearn.training.sinks import Progress, Sink
from metalearn.training.trainer import MetaTrainer, TrainState


class NonFiniteGradient(FloatingPointError):
    """A meta-gradient held NaN or infinity and training was asked to stop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """How training is judged while it runs, on classes held back for that.

    Attributes:
      tasks: Sampler over meta-validation classes; never meta-test ones.
      learner: Whose `adapt` and `predict` to use; the trained one when `None`.
      loss_fn: As in `evaluate`.
      num_tasks: Tasks of each validation, always the same ones.
      every: Steps between validations; there is one after the last step as well.
      metric: Which number decides.
      patience: Validations without improvement after which training stops; `None` never.
      seed: Of the validation tasks.
    """

    tasks: Any
    learner: MetaLearner | None = None
    loss_fn: LossFn | None = None
    num_tasks: int = 200
    every: int = 500
    metric: str = "query/accuracy"
    patience: int | None = None
    seed: int = 0

    @property
    def higher_is_better(self) -> bool:
        return not self.metric.endswith("loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """What training leaves.

    Attributes:
      variables: The best by validation, or the last without validation; averages of
        them under `averaging`.
      state: After the last step, to go on from.
      history: Rows as they were logged.
      best_step: Step of `variables`.
      tasks_at_once: What `task_chunk="auto"` took, on each device; `None` if no step was
        left to do.
    """

    variables: Variables
    state: TrainState
    history: list[dict[str, Any]]
    best_step: int
    tasks_at_once: int | None = None


@dataclasses.dataclass(kw_only=True)
class _Progress:
    """Host-side bookkeeping, saved with every checkpoint."""

    best: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    window: float = 0.0
    stopped: bool = False
    totals: dict = dataclasses.field(default_factory=dict)
    identity: dict = dataclasses.field(default_factory=dict)
    history: list = dataclasses.field(default_factory=list)


def fit(
    trainer: MetaTrainer,
    tasks: Any,
    *,
    num_steps: int,
    tasks_per_step: int,
    key: Key,
    state: TrainState | None = None,
    validation: Validation | None = None,
    log_every: int = 100,
    sinks: Sequence[Sink] = (),
    progress: bool | None = None,
    checkpoints: Any = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    nonfinite: str = "stop",
) -> FitResult:
    """Trains for `num_steps` outer steps, with tasks drawn on the device or streamed.

    Step i depends on the state, `key`, i and, with a stream, its batch i only, so a
    resumed run repeats an uninterrupted one bit for bit on the same number of devices,
    and up to the order of summation on another.

    Args:
      trainer: From `meta_trainer`.
      tasks: A `TaskSampler`, a function `key -> Task`, or a `TaskStream`.
      num_steps: Outer steps in all, those before a resume included.
      tasks_per_step: T, tasks of one outer step.
      key: Consumed; the same key resumes the same run.
      state: Where to start, e.g. `FitResult.state` of an earlier call; left as it is.
      validation: Judges on held-back classes, keeps the best variables, stops early.
      log_every: Steps between rows of the history.
      sinks: Functions that get every row, e.g. `ml.sinks.json_lines("metrics.jsonl")`.
      progress: Whether to draw a progress bar; `None` decides by the terminal.
      checkpoints: A `metalearn.training.checkpoint.Checkpoints` to save to.
      checkpoint_every: Steps between checkpoints; only at the end when `None`.
      resume: Goes on from the latest checkpoint, if there is one.
      nonfinite: "stop" raises at the first non-finite meta-gradient; "skip" leaves that
        update out and counts it in `meta/skipped`.

    Returns:
      A `FitResult`.

    Raises:
      NonFiniteGradient: with the step; the last checkpoint is untouched.
      CheckpointMismatch: the checkpoint to resume is of another model, or of an optimiser
        whose state is another; another rate of the same optimiser is not noticed.
      MemoryError: an outer step does not fit the device, not even a task at a time.
      ValueError: bad arguments or data, found before anything is computed.

    Example:
      >>> result = ml.fit(trainer, ml.tasks.sinusoid(), num_steps=3_000,
      ...                 tasks_per_step=25, key=jax.random.key(0))
    """
    if not isinstance(trainer, MetaTrainer):
        raise TypeError(
            f"trainer is a {type(trainer).__name__}; expected "
            "ml.meta_trainer(learner, outer_opt)."
        )
    for name, value in (
        ("num_steps", num_steps),
        ("tasks_per_step", tasks_per_step),
        ("log_every", log_every),
        ("checkpoint_every", 1 if checkpoint_every is None else checkpoint_every),
        ("validation.every", validation.every if validation else 1),
    ):
        checks.whole_number(name, value, least=1)
    if nonfinite not in ("stop", "skip"):
        raise ValueError(f"nonfinite is {nonfinite!r}; expected 'stop' or 'skip'.")
    if resume and checkpoints is None:
        raise ValueError("resume=True needs checkpoints to resume from; give Checkpoints.")
    if checkpoints is not None and not resume and checkpoints.latest() is not None:
        raise ValueError(
            f"{checkpoints.folder} already holds checkpoint {checkpoints.latest()} of "
            "another run. Go on from it with resume=True, or give an empty folder."
        )

    tasks = as_tasks(tasks)
    k_init, k_first, k_steps = jax.random.split(key, 3)
    first = tasks.first(k_first)
    mesh.check_enough(tasks_per_step, mesh.shares())
    if isinstance(tasks, TaskStream) and jax.process_count() > 1:
        mesh.check_divides(tasks_per_step, mesh.shares())
    if state is None:
        state = jax.jit(trainer.init)(k_init, first)
    state = mesh.everywhere(state)
    check_task(trainer.learner, state.variables, first)
    best = judged(state)
    fresh = no_totals(trainer, state, first, tasks_per_step)
    if validation:
        validation = dataclasses.replace(validation, tasks=_placed(validation.tasks))
    if not mesh.leads():
        sinks, progress = (), False
    _check_validation(validation, trainer.learner, state.variables)
    identity = {
        "learner": describe(trainer.learner),
        "tasks": tasks.name,
        "tasks_per_step": tasks_per_step,
        "key": jax.random.key_data(key).tolist(),
    }
    notes = _Progress(identity=identity, totals=as_numbers(fresh))
    if resume and checkpoints.latest() is not None:
        like = {"state": state, "best": best}
        restored, extra = checkpoints.restore(checkpoints.latest(), like=like)
        state, best = restored["state"], restored["best"]
        notes = _Progress(**extra)
        if notes.identity != identity:
            raise CheckpointMismatch(
                f"checkpoint {checkpoints.latest()} in {checkpoints.folder} is of another "
                "run:\n  "
                + "\n  ".join(
                    f"{k}: {notes.identity.get(k)} there, {v} here"
                    for k, v in identity.items()
                    if notes.identity.get(k) != v
                )
                + "\nGive the same to go on with it exactly."
            )
    step = int(state.step)
    if step > num_steps:
        raise ValueError(
            f"the state to go on from is of step {step}, beyond num_steps={num_steps}. "
            f"Ask for {step} steps or more, or for an earlier state."
        )

    make = functools.partial(
        advance_of,
        *(trainer, tasks, tasks_per_step, k_steps),
        *(nonfinite == "stop", num_steps),
    )
    advance, at_once, state = None, None, _copy(state)
    totals = jax.tree.map(lambda old, x: jnp.asarray(old, x.dtype), notes.totals, fresh)
    bar = Progress(num_steps, start=step, show=progress, label="meta-train")
    every = {log_every, validation.every if validation else num_steps}
    every |= {checkpoint_every or num_steps}
    steps_per_call, shown = 1, {}
    try:
        while step < num_steps and not notes.stopped:
            stop = min(num_steps, *(step - step % n + n for n in every))
            stop = min(stop, step + steps_per_call)
            began = time.perf_counter()
            if advance is None:
                advance, (state, totals), choice = cost.with_room(
                    make, _first_call, state, totals, stop
                )
                at_once = choice.chosen
            else:
                state, totals = advance(state, totals, stop)
            first_bad = int(totals["first_bad"])  # waits for the device
            seconds = time.perf_counter() - began
            notes.seconds += seconds
            notes.window += seconds
            done, step = stop - step, stop
            # Calls grow to half a second each, so that the bar moves and nothing waits.
            steps_per_call = max(1, min(2 * steps_per_call, _aim(done, seconds)))
            steps_per_call = mesh.agree(steps_per_call)
            if first_bad >= 0 and nonfinite == "stop":
                raise NonFiniteGradient(
                    f"the meta-gradient, loss or update of step {first_bad} is not finite; "
                    "it was not applied, and the last checkpoint is as it was. Lower the "
                    "inner or outer rate, clip gradients (optax.clip_by_global_norm), give "
                    "adaptive inner optimisers an eps_root, or train on with "
                    "nonfinite='skip'."
                )
            last = step == num_steps
            if step % log_every == 0 or last:
                row = row_of(step, totals, tasks_per_step, notes.window, notes.seconds)
                shown = _shown(row)
                totals, notes.window = _copy(fresh), 0.0
                _emit(row, notes, sinks)
            bar.update(done, shown)
            if validation and (step % validation.every == 0 or last):
                best = _validate(validation, trainer, state, best, notes, sinks, step)
            due = checkpoint_every and step % checkpoint_every == 0
            if checkpoints is not None and (due or last or notes.stopped):
                if not validation:
                    best, notes.best_step = judged(state), step
                notes.totals = as_numbers(totals)
                checkpoints.save(
                    step, {"state": state, "best": best}, dataclasses.asdict(notes)
                )
    finally:
        bar.close()
    if not validation or notes.best is None:  # none, or none that was a number
        best, notes.best_step = judged(state), step
    return FitResult(
        variables=best,
        state=state,
        history=notes.history,
        best_step=notes.best_step,
        tasks_at_once=at_once,
    )


def _first_call(advance: Any, state: TrainState, totals: PyTree, stop: int) -> tuple:
    """On copies: what memory ends for is still needed for another try."""
    return jax.block_until_ready(advance(*_copy((state, totals)), stop))


def _placed(tasks: Any) -> Any:
    """Tasks whose data need not travel at each validation."""
    tasks = as_tasks(tasks)
    if isinstance(tasks, TaskSampler):
        tasks = tasks._replace(data=mesh.everywhere(tasks.data))
    return tasks


def _shown(row: dict[str, Any]) -> dict[str, float]:
    """What the progress bar shows: the loss after adaptation rather than before."""
    found = {}
    for name in ("loss", "accuracy"):
        parts = [k for k in row if k.endswith(f"/{name}")]
        parts.sort(key=lambda k: k.startswith("support/"))
        if parts:
            found[name] = row[parts[0]]
    return found | {"tasks/s": round(row["tasks_per_s"])}


def _emit(row: dict[str, Any], notes: _Progress, sinks: Sequence[Sink]) -> None:
    notes.history.append(row)
    for sink in sinks:
        sink(row)


def _validate(
    validation: Validation,
    trainer: MetaTrainer,
    state: TrainState,
    best: Variables,
    notes: _Progress,
    sinks: Sequence[Sink],
    step: int,
) -> Variables:
    began = time.perf_counter()
    result = evaluate(
        validation.learner or trainer.learner,
        judged(state),
        validation.tasks,
        validation.loss_fn,
        num_tasks=validation.num_tasks,
        key=jax.random.key(validation.seed),
    )
    notes.seconds += time.perf_counter() - began
    means = {
        f"validation/{name.removeprefix('query/')}": float(values.mean())
        for name, values in result.values.items()
    }
    value = float(result.values[validation.metric].mean())
    sign = 1 if validation.higher_is_better else -1
    improved = math.isfinite(value) and (
        notes.best is None or sign * value > sign * notes.best
    )
    if improved:
        best = _copy(judged(state))
        notes.best, notes.best_step, notes.stale = value, step, 0
    else:
        notes.stale += 1
    if validation.patience is not None and notes.stale >= validation.patience:
        notes.stopped = True
    _emit({"step": step, **means, "best_step": notes.best_step}, notes, sinks)
    return best


def _check_validation(
    validation: Validation | None, learner: MetaLearner, variables: Variables
) -> None:
    """Looks at one validation task now, so that training does not end in its error."""
    if validation is None:
        return
    task = as_tasks(validation.tasks).first(jax.random.key(validation.seed))
    learner = validation.learner or learner
    reported = check_task(learner, variables, task, validation.loss_fn)
    if validation.metric not in reported:
        raise ValueError(
            f"validation metric {validation.metric!r} is not reported; there are "
            f"{sorted(reported)}."
        )


def _aim(steps: int, seconds: float, aim: float = 0.5) -> int:
    return max(1, int(aim * steps / max(seconds, 1e-6)))


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
