"""The compiled loop of training, and the sums over the steps of one logging window."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from metalearn import _mesh
from metalearn._task import Task, TaskSampler, sample_batch
from metalearn._typing import Array, Key, Metrics, PyTree
from metalearn.trainer import MetaTrainer, TrainState


@functools.lru_cache(maxsize=64)
def compiled_loop(trainer: MetaTrainer, sample: Any, tasks_per_step: int, stops: bool):
    """`(state, totals, data, key, stop) -> (state, totals)`: outer steps up to `stop`.

    Cached, so that a second call of `fit` compiles nothing.

    Args:
      trainer: From `meta_trainer`.
      sample: `(data, key) -> Task`.
      tasks_per_step: T.
      stops: Whether to leave the loop after a step that was not finite.
    """

    def run(state: TrainState, totals: PyTree, data: PyTree, key: Key, stop: Array):
        def body(carry: tuple) -> tuple:
            state, totals = carry
            k_tasks, k_step = jax.random.split(jax.random.fold_in(key, state.step))
            sampler = TaskSampler(sample, data)
            tasks = sample_batch(sampler, data, jax.random.split(k_tasks, tasks_per_step))
            number = state.step
            state, report = trainer.step(state, tasks, key=k_step)
            return state, _accumulate(totals, report, number)

        def goes_on(carry: tuple) -> Array:
            state, totals = carry
            return (state.step < stop) & ((totals["first_bad"] < 0) | (not stops))

        return _mesh.replicated(jax.lax.while_loop(goes_on, body, (state, totals)))

    return jax.jit(run, donate_argnums=(0, 1))


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
