"""What a learner is worth: means over tasks with intervals, and paired comparisons."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import cost, kinds, labels, mesh
from metalearn.core import metrics as metrics_of
from metalearn.core.keys import check_key
from metalearn.core.learner import MetaLearner, describe, is_transductive
from metalearn.core.model import Variables
from metalearn.core.programs import compiled, kept_with_owner
from metalearn.core.task import (
    Task,
    Tasks,
    TaskSampler,
    TaskStream,
    as_tasks,
    next_batch,
)
from metalearn.core.types import Array, Key, LossFn, PyTree
from metalearn.training.judgement import (
    Judgement,
    Metric,
    check_judgement,
    check_task,
    judge,
)
from metalearn.training.sinks import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of every task.

    Attributes:
      values: Metrics `{name: float [T]}`, e.g. `query/loss`, `query/accuracy`.
      transductive: Whether the prediction of one query depended on the others; measured.
      learner: Name of the algorithm.
      tasks: Name of the sampler.
      fingerprint: Digest of all support and query sets; equal for equal tasks.
    """

    values: dict[str, np.ndarray]
    transductive: bool
    learner: str
    tasks: str
    fingerprint: str

    @property
    def num_tasks(self) -> int:
        return len(next(iter(self.values.values())))

    def mean_ci95(self, name: str) -> tuple[float, float]:
        """Mean over tasks and half-width of its 95 % interval."""
        if name not in self.values:
            raise KeyError(f"no metric {name!r}; there are {sorted(self.values)}.")
        return metrics_of.mean_ci95(self.values[name])

    def summary(self) -> dict[str, Any]:
        """A dictionary of plain numbers for JSON."""
        numbers = {}
        for name in self.values:
            mean, half = self.mean_ci95(name)
            numbers[name] = {"mean": mean, "ci95": half}
        return {
            "learner": self.learner,
            "tasks": self.tasks,
            "num_tasks": self.num_tasks,
            "transductive": self.transductive,
            "interval": "1.96 * std(ddof=1) / sqrt(num_tasks), over tasks only",
            **numbers,
        }

    def __str__(self) -> str:
        parts = []
        for name in self.values:
            mean, half = self.mean_ci95(name)
            if name.rpartition("/")[2] == "accuracy":
                parts.append(f"{name} {100 * mean:.2f} ± {100 * half:.2f} %")
            else:
                parts.append(f"{name} {mean:.4g} ± {half:.2g}")
        kind = "transductive" if self.transductive else "inductive"
        return f"{', '.join(parts)} ({self.num_tasks} tasks, 95 % interval, {kind})"


def evaluate(
    learner: MetaLearner,
    variables: Variables,
    tasks: Tasks,
    loss_fn: LossFn | None = None,
    *,
    num_tasks: int = 600,
    key: Key,
    tasks_per_call: int = 100,
    metrics: Mapping[str, Metric] | None = None,
    progress: bool | None = False,
) -> Evaluation:
    """Adapts to `num_tasks` tasks and reports their query loss and accuracy.

    Task i depends on `key` and i only, so two learners with the same key see the same
    tasks, and more tasks extend fewer.

    Args:
      learner: Learner whose `adapt` and `predict` are used.
      variables: Variables that were learned.
      tasks: A `TaskSampler`, a function `key -> Task`, or a `TaskStream`, of which the
        first tasks are taken whatever the key.
      loss_fn: Loss of one task. The default is the learner's own; for learners that
        carry none, cross-entropy for integer targets and mean squared error for real ones.
      num_tasks: T, number of tasks, at least 2.
      key: Consumed.
      tasks_per_call: Number of tasks in one compiled call.
      metrics: Further metrics `{name: (outputs, examples) -> scalar}` of the queries of one
        task, such as `{"query/f1": ml.metrics.f1}`.
      progress: Whether to draw a progress bar; `None` decides by the terminal.

    Returns:
      An `Evaluation`; `print` shows means, intervals and whether it is transductive.

    Raises:
      TypeError: an argument of another kind, such as a result in place of its variables.
      ValueError: bad arguments; in any task non-finite data, labels outside the logits, or
        queries whose class the learner masks for want of support; with the number of the
        first such task.

    Warns:
      UserWarning: predictions are of classes that are not in their task, or a metric is
        not finite in some task.

    Example:
      >>> print(ml.evaluate(learner, variables, tasks, key=jax.random.key(1)))
    """
    kinds.learner(learner)
    kinds.variables(variables)
    check_key(key)
    num_tasks = kinds.count("num_tasks", num_tasks, least=2, most=MOST_TASKS)
    tasks_per_call = kinds.count("tasks_per_call", tasks_per_call)
    judged = check_judgement(loss_fn, metrics)
    tasks = as_tasks(tasks)
    different = getattr(tasks, "num_tasks", None)
    if different is not None and num_tasks > different:
        raise ValueError(
            f"num_tasks is {num_tasks}, but {tasks.name!r} has {different} different "
            "tasks: an interval over repeated ones would be far too narrow. Give "
            f"num_tasks={different} or fewer."
        )
    first = tasks.first(keys_of_task(key, 0)[0])
    check_task(learner, variables, first, loss_fn, metrics)
    batch, shares = min(tasks_per_call, num_tasks), mesh.shares()
    batch = -(-batch // shares) * shares
    cost.check_room("tasks_per_call", batch, first)
    values, transductive = _measured(
        learner, variables, tasks, judged, num_tasks, batch, key, progress
    )
    digests = values.pop("digest")
    _check_values(values)
    return Evaluation(
        values=values,
        transductive=transductive,
        learner=str(describe(learner).get("name", "custom")),
        tasks=tasks.name,
        fingerprint=hashlib.sha256(digests.tobytes()).hexdigest()[:16],
    )


def keys_of_task(key: Key, number: Array | int) -> Array:
    """Keys `[3]` of evaluation task `number`: of its draw, adaptation and prediction."""
    return jax.random.split(jax.random.fold_in(key, number), 3)


MOST_TASKS = 10**8  # far more than any interval needs


def _measured(
    learner: MetaLearner,
    variables: Variables,
    tasks: TaskSampler | TaskStream,
    judged: Judgement,
    num_tasks: int,
    batch: int,
    key: Key,
    progress: bool | None,
) -> tuple[dict[str, np.ndarray], bool]:
    """What was found of each task, and whether any prediction was transductive."""
    if isinstance(tasks, TaskStream):
        draw, batches = _row, tasks.batches(batch, 0)
    else:
        draw, data = _Drawn(tasks.sample), mesh.everywhere(tasks.data)
    if progress is not None:
        kinds.flag("progress", progress)
    key, variables = mesh.everywhere((key, variables))
    run, parts, transductive = None, [], False
    with Progress(num_tasks, show=progress, label="evaluate", unit="task") as bar:
        for start in range(0, num_tasks, batch):
            # The last batch runs over the end and is cut, so that all share one program.
            numbers = jnp.arange(start, start + batch, dtype=jnp.int32)
            if draw is _row:
                data = mesh.everywhere(next_batch(batches, start // batch, batch))
            common = (variables, data, key)
            if run is None:
                make = functools.partial(_evaluator, learner, draw, judged)
                call = lambda run, *args: jax.block_until_ready(run(*args))
                run, (values, flag), _ = cost.with_room(make, call, common, numbers)
            else:
                values, flag = run(common, numbers)
            transductive |= bool(flag)
            used = min(batch, num_tasks - start)
            parts.append({k: np.asarray(v)[:used] for k, v in values.items()})
            bar.update(used)
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}, transductive


def _check_values(values: dict[str, np.ndarray]) -> None:
    """Takes what was counted of the data of each task out of the values, and judges it."""
    outside, ways = values.pop("outside"), int(values.pop("ways")[0])
    broken, unanswered = values.pop("not_finite"), values.pop("unanswered")
    stray = values.pop("stray")
    if broken.any():
        task, part = np.argwhere(broken)[0]
        raise ValueError(
            f"task {task} holds numbers in {labels.PARTS[part]} that are not finite; so do "
            f"{int(broken.any(-1).sum())} of {len(broken)} tasks. Clean the data, or put "
            "zeros in masked rows."
        )
    if outside.any():
        task, part = np.argwhere(outside)[0]
        several = f" in {int(outside.any(-1).sum())} of {len(outside)} tasks"
        where, word = f"task {task}", labels.PARTS[part]
        raise ValueError(labels.message(int(outside.sum()), where, word, ways, several))
    if unanswered.any():
        several = f" in {int((unanswered > 0).sum())} of {len(unanswered)} tasks"
        where = f"task {np.argmax(unanswered > 0)}"
        raise ValueError(labels.no_answer(int(unanswered.sum()), where, several))
    if stray.any():
        warnings.warn(
            f"{int(stray.sum())} predictions, in {int((stray > 0).sum())} of {len(stray)} "
            "tasks, are of classes that are not in their task, because the tasks have "
            "fewer classes than the learner has logits. mask_absent_classes=True of the "
            "learner leaves these classes out.",
            stacklevel=3,
        )
    found = {name: ~np.isfinite(array) for name, array in values.items()}
    if found := {name: broken for name, broken in found.items() if broken.any()}:
        told = ", ".join(
            f"{name} in {int(broken.sum())} of {len(broken)} tasks, first in task "
            f"{int(np.argmax(broken))}"
            for name, broken in found.items()
        )
        remedy = "The metric has no value there."
        if "query/loss" in found:
            remedy = (
                "Adaptation diverged, or a prediction is too large: try fewer inner steps "
                "or a smaller inner rate. A prediction that is no number counts as wrong "
                "in the accuracy."
            )
        warnings.warn(
            f"not finite, and so the means are not either: {told}. The data of these tasks "
            f"are finite. {remedy}",
            stacklevel=3,
        )


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """Task `number` of a sampler."""

    sample: Callable[[PyTree, Key], Task]

    def __call__(self, data: PyTree, key: Key, number: Array) -> Task:
        del number
        return self.sample(data, key)


def _row(tasks: Task, key: Key, number: Array) -> Task:
    """Task `number` of a stream, whose batch `[T, ...]` is at hand."""
    del key
    place = number % tasks.support.mask.shape[0]
    return jax.tree.map(lambda leaf: leaf[place], tasks)


@kept_with_owner
def _evaluator(
    learner: MetaLearner,
    draw: Callable[[PyTree, Key, Array], Task],
    judged: Judgement,
    limit: int,
):
    """The compiled evaluation; cached so that a second call compiles nothing."""
    choice = cost.Choice(limit)

    # Traced for the report, and not again for the flag.
    @functools.partial(jax.jit, inline=True)
    def adapted_to(common: tuple, number: Array) -> tuple[Task, PyTree, Key]:
        variables, data, key = common
        k_task, k_adapt, k_predict = keys_of_task(key, number)
        task = draw(data, k_task, number)
        return task, learner.adapt(variables, task.support, key=k_adapt), k_predict

    # Its trace serves the count of bytes and the program, whatever the tasks at once.
    @functools.partial(jax.jit, inline=True)
    def report_of(common: tuple, number: Array) -> dict[str, Array]:
        task, adapted, key = adapted_to(common, number)
        query = task.query
        outputs = learner.predict(adapted, query.x, key=key, mask=query.mask)
        report = judge(learner, judged, outputs, query)
        ways = labels.num_classes(judged[0] or learner.loss_fn, outputs, query.y)
        parts = (task.support, query)
        none, nobody = jnp.zeros(2, jnp.int32), jnp.zeros((), jnp.int32)
        return report | {
            "digest": _digest(task),
            "outside": none if ways is None else labels.outside_of(task, ways),
            "unanswered": nobody if ways is None else labels.unanswered(task, outputs),
            "stray": nobody if ways is None else labels.stray(task, outputs),
            "ways": jnp.asarray(ways or 0, jnp.int32),
            "not_finite": jnp.stack([labels.not_finite(part) for part in parts]),
        }

    def several(common: tuple, numbers: Array) -> tuple[tuple, dict[str, Array]]:
        one = functools.partial(report_of, common)
        chunk = min(numbers.shape[0], cost.tasks_at_once(jax.vmap(one), numbers[:1]))
        cost.note(chunk)
        return (), jax.lax.map(one, numbers, batch_size=chunk)

    def run(common: tuple, numbers: Array) -> tuple[dict[str, Array], Array]:
        with cost.choosing(choice):
            values = mesh.share(several, common, numbers)[1]
        task, adapted, key = adapted_to(common, numbers[0])
        flag = is_transductive(learner, adapted, task.query.x, key=key)
        return mesh.replicated((values, flag))

    return compiled(run), choice


def _digest(task: Task) -> Array:
    """A checksum of the examples of a task, uint32."""
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves((task.support, task.query))):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        else:
            bits = leaf.astype(jnp.uint32)
        places = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761)
        places = places + jnp.uint32(2 * number + 1)
        # Not linear in the bits: in a weighted sum the top bits of many numbers, their
        # signs, cancel, and tasks that differ by a factor of two look alike.
        total = total + jnp.sum(_mixed(bits.reshape(-1) + _mixed(places)), dtype=jnp.uint32)
    return total


def _mixed(bits: Array) -> Array:
    """A one-to-one map of uint32 whose every bit depends on every bit (MurmurHash3)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def paired_difference(
    first: Evaluation, second: Evaluation, name: str = "query/accuracy"
) -> tuple[float, float]:
    """Mean of `first - second` over the same tasks, and its 95 % half-width.

    Far tighter than the difference of two separate intervals.

    Args:
      first: Results of one learner.
      second: Results of another one over the same tasks.
      name: Name of a metric of both.

    Raises:
      TypeError: an argument is no `Evaluation`.
      ValueError: the evaluations are not over the same tasks, or a metric is not in both.
    """
    for name_of, given in (("first", first), ("second", second)):
        kinds.instance(given, Evaluation, name_of, "Give what ml.evaluate returned.")
    if first.fingerprint != second.fingerprint or first.num_tasks != second.num_tasks:
        raise ValueError(
            f"the evaluations are over different tasks: {first.num_tasks} of "
            f"{first.tasks!r} and {second.num_tasks} of {second.tasks!r}, digests "
            f"{first.fingerprint} and {second.fingerprint}. "
            "Evaluate both with the same sampler, key and num_tasks."
        )
    if name not in first.values or name not in second.values:
        raise ValueError(
            f"metric {name!r} is not in both evaluations; there are "
            f"{sorted(first.values)} and {sorted(second.values)}."
        )
    one, other = (np.asarray(e.values[name], np.float64) for e in (first, second))
    return metrics_of.mean_ci95(one - other)
