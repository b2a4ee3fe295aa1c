"""Compiled outer steps, and the sums over the steps of one logging window."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metalearn.core import cost, labels, mesh, trees
from metalearn.core.keys import of_seed
from metalearn.core.learner import MetaLearner
from metalearn.core.programs import compiled, kept_with_owner
from metalearn.core.task import Task, TaskSampler, TaskStream
from metalearn.core.types import Array, Key, Metrics, PyTree
from metalearn.training.batches import sampled, step_keys, streamed
from metalearn.training.trainer import MetaTrainer, TrainState

_LOG = logging.getLogger(__name__)
Totals = dict[str, Any]
Advance = Callable[[TrainState, Totals, int], tuple[TrainState, Totals]]


class NonFiniteGradient(FloatingPointError):
    """A meta-gradient, an update or a metric was not finite, and training is to stop."""


class Calls:
    """Calls of compiled outer steps, which grow to half a second each.

    Short enough that a progress bar moves, long enough that nothing waits for the host.

    Args:
      make: `limit -> (advance, choice)`, such as `advance_of` without its limit.

    Attributes:
      length: Number of outer steps that the next call should take.
      at_once: Number of tasks that `task_chunk="auto"` took; `None` before the first call.
    """

    def __init__(self, make: Callable[[int], tuple[Advance, cost.Choice]]):
        self._make, self._advance = make, None
        self.length, self.at_once = 1, None

    def __call__(
        self, state: TrainState, totals: Totals, step: int, stop: int
    ) -> tuple[TrainState, Totals, float]:
        """Outer steps from number `step` to `stop`; also the seconds they took.

        The arguments of the first call stay whole; later ones are overwritten.
        """
        began, first = time.perf_counter(), self._advance is None
        if self._advance is None:
            _LOG.info("Compiling the first step ...")
            self._advance, done, choice = first_call(self._make, state, totals, stop)
            self.at_once = choice.chosen
        else:
            done = self._advance(state, totals, stop)
        int(done[1]["first_bad"])  # waits for the device
        seconds = time.perf_counter() - began
        if first:
            _LOG.info("The first step was compiled and done in %.1f s", seconds)
        aim = max(1, int(0.5 * (stop - step) / max(seconds, 1e-6)))
        self.length = mesh.agree(max(1, min(2 * self.length, aim)))
        return *done, seconds


def first_call(
    make: Callable[[int], tuple[Advance, cost.Choice]],
    state: TrainState,
    totals: Totals,
    stop: int,
) -> tuple[Advance, tuple[TrainState, Totals], cost.Choice]:
    """Makes a program and calls it, with fewer tasks at once where memory ends.

    Returns:
      The program, its first result and its choice, as `cost.with_room`.
    """

    def on_copies(advance: Advance, state: TrainState, totals: Totals, stop: int):
        # A call may overwrite its arguments, which another try needs whole.
        return jax.block_until_ready(advance(*copied((state, totals)), stop))

    return cost.with_room(make, on_copies, state, totals, stop)


def copied(tree: PyTree) -> PyTree:
    """The same in arrays of its own."""
    return jax.tree.map(jnp.copy, tree)


def advance_of(
    trainer: MetaTrainer,
    tasks: TaskSampler | TaskStream,
    tasks_per_step: int,
    key: Key,
    stops: bool,
    num_steps: int,
    ways: int | None,
    limit: int,
) -> tuple[Advance, cost.Choice]:
    """`(state, totals, stop) -> (state, totals)`: outer steps up to number `stop`.

    Args:
      trainer: Learner and outer optimiser, from `meta_trainer`.
      tasks: Sampler that draws inside the compiled loop, or stream to it.
      tasks_per_step: T, tasks of one outer step.
      key: Key of all steps.
      stops: Whether to go no further after a step that was not finite.
      num_steps: Step at which training ends; nothing is read beyond it.
      ways: Number of logits that labels have to be within; `None` where there are none.
      limit: Number of tasks at once that `task_chunk="auto"` must not exceed; another
        limit is another program.
    """
    if isinstance(tasks, TaskStream):
        step, choice = _compiled_step(trainer, stops, ways, limit)
        return streamed(step, tasks, tasks_per_step, key, num_steps), choice
    numbers = (tasks_per_step, stops, ways, limit)
    loop, choice = _compiled_loop(trainer, tasks.sample, *numbers)
    data, key = mesh.everywhere((tasks.data, key))

    def advance(state: TrainState, totals: Totals, stop: int):
        return loop(state, totals, data, key, jnp.asarray(stop, jnp.int32))

    return advance, choice


@kept_with_owner
def _compiled_loop(
    trainer: MetaTrainer,
    sample: Callable[..., Task],
    tasks_per_step: int,
    stops: bool,
    ways: int | None,
    limit: int,
):
    """Cached, so that a second call of `fit` compiles nothing.

    The number to stop at is an argument: one program serves calls of any length.
    """
    step, choice = _one_step(trainer, ways), cost.Choice(limit)

    def run(state: TrainState, totals: Totals, data: PyTree, key: Key, stop: Array):
        def body(carry: tuple) -> tuple:
            k_tasks, k_step = step_keys(key, carry[0].step)
            given = (sample, trainer.learner, data, carry[0].variables, k_tasks)
            return step(*carry, sampled(*given, tasks_per_step), k_step)

        def goes_on(carry: tuple) -> Array:
            state, totals = carry
            return (state.step < stop) & ~(_halted(totals) & stops)

        with cost.choosing(choice):
            return mesh.replicated(jax.lax.while_loop(goes_on, body, (state, totals)))

    return compiled(run, donate_argnums=(0, 1)), choice


@kept_with_owner
def _compiled_step(trainer: MetaTrainer, stops: bool, ways: int | None, limit: int):
    step, choice = _one_step(trainer, ways), cost.Choice(limit)

    def run(state: TrainState, totals: Totals, tasks: Task, key: Key):
        k_step = step_keys(key, state.step)[1]
        with cost.choosing(choice):
            return mesh.replicated(
                jax.lax.cond(
                    _halted(totals) & stops,
                    lambda: (state, totals),
                    lambda: step(state, totals, tasks, k_step),
                )
            )

    return compiled(run, donate_argnums=(0, 1)), choice


def _one_step(
    trainer: MetaTrainer, ways: int | None
) -> Callable[..., tuple[TrainState, Totals]]:
    def step(state: TrainState, totals: Totals, tasks: Task, key: Key):
        number = state.step
        state, report = trainer.step(state, tasks, key=key)
        totals = _accumulate(totals, report, number)
        if ways is not None:
            outside = labels.outside_of(tasks, ways)
            totals["outside"] = _add_outside(totals["outside"], outside, number)
            if trainer.learner.masks_absent:
                queries = _of_both(labels.unsupported(tasks))
                totals["absent"] = _add_outside(totals["absent"], queries, number)
        if (classes := training_classes(trainer.learner, tasks)) is not None:
            beyond = _of_both(labels.outside_training(tasks, classes))
            totals["beyond"] = _add_outside(totals["beyond"], beyond, number)
        return state, totals

    return step


def _of_both(counts: Array) -> Array:
    """Counts `[T]` as if of two parts, which puts the first task where it stands."""
    return jnp.stack([jnp.zeros_like(counts), counts], axis=-1)


def _halted(totals: Totals) -> Array:
    return totals["first_bad"] >= 0


def no_totals(trainer: MetaTrainer, state: TrainState, task: Task, num: int) -> Totals:
    """Sums of a window without steps, for the metrics that `trainer.step` reports."""
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), task)
    report = jax.eval_shape(_report_of(trainer), state, batch)
    kinds = {n: leaf.dtype for n, leaf in report.items() if n not in _OF_THE_STEP}
    none = jnp.full((), -1, jnp.int32)
    return {
        "sums": {n: jnp.zeros((), _wide(dtype)) for n, dtype in kinds.items()},
        "good": jnp.zeros((), jnp.float32),
        "bad": jnp.zeros((), jnp.int32),
        "first_bad": none,
        # Which parts of that step were not finite, by the bits of `FAULTS`, and which
        # metrics, by the bits of their places.
        "fault": jnp.zeros((), jnp.int32),
        "not_finite": jnp.zeros((), jnp.uint32),
        # Sizes of the gradient and of the state in the last step.
        "gradient": jnp.zeros((), jnp.float32),
        "state": jnp.zeros((), jnp.float32),
        # Labels that no logit stands for, those whose logit is masked, those whose training
        # class has none, and where the first of them are.
        **{kind: _none_outside(none) for kind in COUNTED},
    }


def _none_outside(none: Array) -> Totals:
    places = dict.fromkeys(("step", "task", "part"), none)
    return {"labels": jnp.zeros((), jnp.int32), **places}


COUNTED = ("outside", "absent", "beyond")
_OF_THE_STEP = ("meta/finite", "meta/fault", "meta/gradient", "meta/state")


def _wide(dtype: Any) -> Any:
    """What metrics of a dtype are summed in: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


@kept_with_owner
def _report_of(trainer: MetaTrainer) -> Callable[[TrainState, Task], Metrics]:
    """One function a trainer, so that a second call of `fit` traces nothing."""
    return lambda state, tasks: trainer.step(state, tasks, key=of_seed(0))[1]


def as_numbers(totals: Totals) -> dict[str, Any]:
    """The same as plain numbers, for a checkpoint's record."""
    return jax.tree.map(lambda leaf: leaf.item(), jax.device_get(totals))


def _accumulate(totals: Totals, report: Metrics, number: Array) -> Totals:
    finite = report["meta/finite"][0] > 0
    first = (totals["first_bad"] < 0) & ~finite
    fault = report["meta/fault"][0] if "meta/fault" in report else totals["fault"]
    sums = {name: report[name] for name in totals["sums"]}
    return {
        "sums": {
            # A sum with NaN would stay NaN: a step that is not finite adds nothing.
            name: total + jnp.where(finite, _mean(sums[name], total.dtype), 0)
            for name, total in totals["sums"].items()
        },
        "good": totals["good"] + finite,
        "bad": totals["bad"] + ~finite,
        "first_bad": jnp.where(first, number, totals["first_bad"]),
        "fault": jnp.where(first, fault, totals["fault"]),
        "not_finite": jnp.where(first, _not_finite(sums), totals["not_finite"]),
        **{
            name: jnp.where(finite, report[f"meta/{name}"][0], totals[name])
            if f"meta/{name}" in report
            else totals[name]
            for name in ("gradient", "state")
        },
        **{kind: totals[kind] for kind in COUNTED},
    }


def _mean(values: Array, dtype: Any) -> Array:
    return trees.widened(values).mean().astype(dtype)


def _not_finite(metrics: Metrics) -> Array:
    """The places of metrics that are not finite, as bits of a uint32; the first 32."""
    bits = [
        jnp.where(trees.all_finite(metrics[name]), jnp.uint32(0), jnp.uint32(1 << place))
        for place, name in enumerate(sorted(metrics)[:32])
    ]
    return sum(bits, jnp.zeros((), jnp.uint32))


def named_metrics(totals: Totals) -> list[str]:
    """Names of the metrics that were not finite at the first bad step."""
    bits, names = int(totals["not_finite"]), sorted(totals["sums"])[:32]
    return [name for place, name in enumerate(names) if bits >> place & 1]


def _add_outside(before: Totals, outside: Array, number: Array) -> Totals:
    """Adds what `labels.outside_of` found in a step, `[T, 2]`."""
    num = jnp.sum(outside, dtype=jnp.int32)
    first = (before["step"] < 0) & (num > 0)
    place = jnp.argmax(outside.reshape(-1) > 0).astype(jnp.int32)
    found = {"step": number, "task": place // 2, "part": place % 2}
    return {
        "labels": before["labels"] + num,
        **{name: jnp.where(first, value, before[name]) for name, value in found.items()},
    }


def training_classes(learner: MetaLearner, task: Task) -> int | None:
    """Number of training classes of a learner that classifies all of them, if it does."""
    return learner.training_classes if "class_ids" in task.info else None


def check_labels(totals: Totals, ways: int | None, classes: int | None = None) -> None:
    """Raises a `ValueError` where tasks held labels that no logit stands for."""
    for kind in COUNTED:
        found = {name: int(value) for name, value in totals[kind].items()}
        if not found["labels"]:
            continue
        where = f"task {found['task']} of step {found['step']}"
        several = " of the last steps"
        if kind == "absent":
            raise ValueError(labels.no_answer(found["labels"], where, several))
        if kind == "beyond":
            said = labels.no_training_class(found["labels"], where, classes, several)
            raise ValueError(said)
        part = labels.PARTS[found["part"]]
        raise ValueError(labels.message(found["labels"], where, part, ways, several))


def row_of(
    step: int, totals: Totals, tasks_per_step: int, window: float, seconds: float
) -> dict[str, Any]:
    """The row of a window: means over its good steps, and its speed."""
    good, bad = float(totals["good"]), int(totals["bad"])
    row: dict[str, Any] = {"step": step}
    if good:
        row |= {name: float(total) / good for name, total in totals["sums"].items()}
    if bad:
        row["meta/skipped"] = bad
    row["tasks_per_s"] = round((good + bad) * tasks_per_step / max(window, 1e-9), 2)
    row["seconds"] = round(seconds, 3)
    return row
