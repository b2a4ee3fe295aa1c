"""Compiled outer steps, and the sums over the steps of one logging window."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metalearn.core import cost, mesh
from metalearn.core.task import Task, TaskSampler, TaskStream, next_batch, sample_batch
from metalearn.core.types import Array, Key, Metrics, PyTree
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
      limit: Number of tasks at once that `task_chunk="auto"` must not exceed; another
        limit is another program.
    """
    if isinstance(tasks, TaskStream):
        step, choice = _compiled_step(trainer, stops, limit)
        return _streamed(step, tasks, tasks_per_step, key, num_steps), choice
    loop, choice = _compiled_loop(trainer, tasks.sample, tasks_per_step, stops, limit)
    data, key = mesh.everywhere((tasks.data, key))

    def advance(state: TrainState, totals: Totals, stop: int):
        return loop(state, totals, data, key, jnp.asarray(stop, jnp.int32))

    return advance, choice


@functools.lru_cache(maxsize=64)
def _compiled_loop(
    trainer: MetaTrainer,
    sample: Callable[..., Task],
    tasks_per_step: int,
    stops: bool,
    limit: int,
):
    """Cached, so that a second call of `fit` compiles nothing.

    The number to stop at is an argument: one program serves calls of any length.
    """
    step, choice = _one_step(trainer), cost.Choice(limit)

    def run(state: TrainState, totals: Totals, data: PyTree, key: Key, stop: Array):
        def body(carry: tuple) -> tuple:
            k_tasks, k_step = _step_keys(key, carry[0].step)
            sampler = TaskSampler(sample, data)
            tasks = sample_batch(sampler, data, jax.random.split(k_tasks, tasks_per_step))
            return step(*carry, tasks, k_step)

        def goes_on(carry: tuple) -> Array:
            state, totals = carry
            return (state.step < stop) & ~(_halted(totals) & stops)

        with cost.choosing(choice):
            return mesh.replicated(jax.lax.while_loop(goes_on, body, (state, totals)))

    return jax.jit(run, donate_argnums=(0, 1)), choice


def _streamed(
    step: Callable, stream: TaskStream, num: int, key: Key, num_steps: int
) -> Advance:
    key = mesh.everywhere(key)
    batches, place = None, None
    ahead = None

    def fetch(number: int) -> Task:
        nonlocal batches, place
        if place != number:
            batches = stream.batches(num, number, mesh.local_share(num))
        place = number + 1
        return mesh.place_tasks(next_batch(batches, number))

    def advance(state: TrainState, totals: Totals, stop: int):
        nonlocal ahead
        for number in range(int(state.step), stop):
            tasks = fetch(number) if ahead is None else ahead
            state, totals = step(state, totals, tasks, key)
            # The next batch is read while the device computes on this one.
            ahead = fetch(number + 1) if number + 1 < num_steps else None
        return state, totals

    return advance


@functools.lru_cache(maxsize=64)
def _compiled_step(trainer: MetaTrainer, stops: bool, limit: int):
    step, choice = _one_step(trainer), cost.Choice(limit)

    def run(state: TrainState, totals: Totals, tasks: Task, key: Key):
        k_step = _step_keys(key, state.step)[1]
        with cost.choosing(choice):
            return mesh.replicated(
                jax.lax.cond(
                    _halted(totals) & stops,
                    lambda: (state, totals),
                    lambda: step(state, totals, tasks, k_step),
                )
            )

    return jax.jit(run, donate_argnums=(0, 1)), choice


def _step_keys(key: Key, number: Array) -> Key:
    """Keys of the tasks and of the step; they depend on its number alone."""
    return jax.random.split(jax.random.fold_in(key, number))


def _one_step(trainer: MetaTrainer) -> Callable[..., tuple[TrainState, Totals]]:
    def step(state: TrainState, totals: Totals, tasks: Task, key: Key):
        number = state.step
        state, report = trainer.step(state, tasks, key=key)
        return state, _accumulate(totals, report, number)

    return step


def _halted(totals: Totals) -> Array:
    return totals["first_bad"] >= 0


def no_totals(trainer: MetaTrainer, state: TrainState, task: Task, num: int) -> Totals:
    """Sums of a window without steps, for the metrics that `trainer.step` reports."""
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), task)
    report = jax.eval_shape(_report_of(trainer), state, batch)
    names = [name for name in report if name != "meta/finite"]
    return {
        "sums": {name: jnp.zeros((), jnp.float32) for name in names},
        "good": jnp.zeros((), jnp.float32),
        "bad": jnp.zeros((), jnp.int32),
        "first_bad": jnp.full((), -1, jnp.int32),
    }


@functools.lru_cache(maxsize=64)
def _report_of(trainer: MetaTrainer) -> Callable[[TrainState, Task], Metrics]:
    """One function a trainer, so that a second call of `fit` traces nothing."""
    return lambda state, tasks: trainer.step(state, tasks, key=jax.random.key(0))[1]


def as_numbers(totals: Totals) -> dict[str, Any]:
    """The same as plain numbers, for a checkpoint's record."""
    return jax.tree.map(lambda leaf: leaf.item(), jax.device_get(totals))


def _accumulate(totals: Totals, report: Metrics, number: Array) -> Totals:
    finite = report["meta/finite"][0] > 0
    first_bad = jnp.where((totals["first_bad"] < 0) & ~finite, number, totals["first_bad"])
    return {
        "sums": {
            # A sum with NaN would stay NaN: a step that is not finite adds nothing.
            name: total + jnp.where(finite, report[name].mean().astype(jnp.float32), 0)
            for name, total in totals["sums"].items()
        },
        "good": totals["good"] + finite,
        "bad": totals["bad"] + ~finite,
        "first_bad": first_bad,
    }


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
