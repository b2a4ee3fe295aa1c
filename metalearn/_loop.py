"""The compiled loop of training, and the sums over the steps of one logging window."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metalearn import _cost, _mesh
from metalearn._task import Task, TaskSampler, TaskStream, sample_batch
from metalearn._typing import Array, Key, Metrics, PyTree
from metalearn.trainer import MetaTrainer, TrainState

Advance = Callable[[TrainState, PyTree, int], tuple[TrainState, PyTree]]


def advance_of(
    trainer: MetaTrainer,
    tasks: TaskSampler | TaskStream,
    tasks_per_step: int,
    key: Key,
    stops: bool,
    limit: int,
) -> Advance:
    """`(state, totals, stop) -> (state, totals)`: outer steps up to number `stop`.

    Args:
      trainer: From `meta_trainer`.
      tasks: Drawn on the device inside the compiled loop, or streamed to it.
      tasks_per_step: T.
      key: Of all steps.
      stops: Whether to go no further after a step that was not finite.
      limit: Tasks at once that `task_chunk="auto"` must not exceed; another limit is
        another program.
    """
    if isinstance(tasks, TaskStream):
        return _streamed(trainer, tasks, tasks_per_step, key, stops, limit)
    loop = _compiled_loop(trainer, tasks.sample, tasks_per_step, stops, limit)
    data, key = _mesh.everywhere((tasks.data, key))

    def advance(state: TrainState, totals: PyTree, stop: int):
        return loop(state, totals, data, key, jnp.asarray(stop, jnp.int32))

    return advance


@functools.lru_cache(maxsize=64)
def _compiled_loop(
    trainer: MetaTrainer, sample: Any, tasks_per_step: int, stops: bool, limit: int
):
    """Cached, so that a second call of `fit` compiles nothing.

    The number to stop at is an argument: one program serves calls of any length.
    """
    step = _one_step(trainer)

    def run(state: TrainState, totals: PyTree, data: PyTree, key: Key, stop: Array):
        def body(carry: tuple) -> tuple:
            k_tasks, k_step = _step_keys(key, carry[0].step)
            sampler = TaskSampler(sample, data)
            tasks = sample_batch(sampler, data, jax.random.split(k_tasks, tasks_per_step))
            return step(*carry, tasks, k_step)

        def goes_on(carry: tuple) -> Array:
            state, totals = carry
            return (state.step < stop) & ~(_halted(totals) & stops)

        return _mesh.replicated(jax.lax.while_loop(goes_on, body, (state, totals)))

    return jax.jit(run, donate_argnums=(0, 1))


def _streamed(
    trainer: MetaTrainer,
    stream: TaskStream,
    num: int,
    key: Key,
    stops: bool,
    limit: int,
) -> Advance:
    step, key = _compiled_step(trainer, stops, limit), _mesh.everywhere(key)
    batches, ahead, ahead_of = None, None, None

    def fetch(number: int) -> Task:
        nonlocal batches, ahead_of
        if batches is None or ahead_of != number:
            batches = stream.batches(num, number, _mesh.local_share(num))
        ahead_of = number + 1
        return _mesh.place_tasks(next(batches))

    def advance(state: TrainState, totals: PyTree, stop: int):
        nonlocal ahead
        for number in range(int(state.step), stop):
            tasks = fetch(number) if ahead is None else ahead
            state, totals = step(state, totals, tasks, key)
            ahead = fetch(number + 1)  # while the device computes
        return state, totals

    return advance


@functools.lru_cache(maxsize=64)
def _compiled_step(trainer: MetaTrainer, stops: bool, limit: int):
    step = _one_step(trainer)

    def run(state: TrainState, totals: PyTree, tasks: Task, key: Key):
        k_step = _step_keys(key, state.step)[1]
        return _mesh.replicated(
            jax.lax.cond(
                _halted(totals) & stops,
                lambda: (state, totals),
                lambda: step(state, totals, tasks, k_step),
            )
        )

    return jax.jit(run, donate_argnums=(0, 1))


class OutOfMemory(MemoryError):
    """An outer step does not fit the memory of the device."""


def first_call(
    make: Callable[[int], Advance], state: TrainState, totals: PyTree, stop: int
) -> tuple[Advance, TrainState, PyTree, int | None]:
    """The first steps, with fewer tasks at once each time that memory ends.

    Args:
      make: `limit -> advance`.
      state: Before the first step; kept for another try.
      totals: Of the window.
      stop: Number of the step to stop at.

    Returns:
      What to advance with from now on, the state and totals, and the number of tasks at
      once, `None` if the program was compiled before.

    Raises:
      OutOfMemory: not even one task at a time fits; says what else to try.
    """
    limit = _cost.EVERYTHING
    while True:
        advance = make(limit)
        with _cost.choosing(limit) as choice:
            try:
                found = advance(*jax.tree.map(jnp.copy, (state, totals)), stop)
                return advance, *jax.block_until_ready(found), choice.chosen
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                # More than the limit: a fixed task_chunk, which is the user's word.
                if choice.chosen in (None, 1) or choice.chosen > limit:
                    raise OutOfMemory(_NO_ROOM.format(error=error)) from error
                limit = choice.chosen // 2


_NO_ROOM = (
    "an outer step does not fit the memory of the device ({error}). task_chunk='auto' has "
    "come down to one task at a time, a fixed task_chunk stays as it is: lower it. Then "
    "store less of the inner loop: differentiation='mixed', 'remat' or 'nested' in place "
    "of 'reverse', or fewer inner steps; or take a smaller network or fewer queries."
)


def _step_keys(key: Key, number: Array) -> Key:
    """Keys of the tasks and of the step; they depend on its number alone."""
    return jax.random.split(jax.random.fold_in(key, number))


def _one_step(trainer: MetaTrainer) -> Callable[..., tuple[TrainState, PyTree]]:
    def step(state: TrainState, totals: PyTree, tasks: Task, key: Key):
        number = state.step
        state, report = trainer.step(state, tasks, key=key)
        return state, _accumulate(totals, report, number)

    return step


def _halted(totals: PyTree) -> Array:
    return totals["first_bad"] >= 0


def no_totals(
    trainer: MetaTrainer, state: TrainState, task: Task, num: int
) -> dict[str, Any]:
    """Sums of a window without steps, for the metrics that `trainer.step` reports."""
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), task)
    _, report = jax.eval_shape(
        lambda s, t: trainer.step(s, t, key=jax.random.key(0)), state, batch
    )
    names = [name for name in report if name != "meta/finite"]
    return {
        "sums": {name: jnp.zeros((), jnp.float32) for name in names},
        "good": jnp.zeros((), jnp.float32),
        "bad": jnp.zeros((), jnp.int32),
        "first_bad": jnp.full((), -1, jnp.int32),
    }


def as_numbers(totals: dict) -> dict:
    """The same as plain numbers, for a checkpoint's record."""
    return jax.tree.map(lambda leaf: leaf.item(), jax.device_get(totals))


def _accumulate(totals: dict, report: Metrics, number: Array) -> dict:
    finite = report["meta/finite"][0] > 0
    first_bad = jnp.where((totals["first_bad"] < 0) & ~finite, number, totals["first_bad"])
    return {
        "sums": {
            name: total + jnp.where(finite, report[name].mean().astype(jnp.float32), 0)
            for name, total in totals["sums"].items()
        },
        "good": totals["good"] + finite,
        "bad": totals["bad"] + ~finite,
        "first_bad": first_bad,
    }


def row_of(
    step: int, totals: dict, tasks_per_step: int, window: float, seconds: float
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
