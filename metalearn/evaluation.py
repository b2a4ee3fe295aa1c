"""What a learner is worth: means over tasks with intervals, and paired comparisons."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn import _checks, _cost, metrics
from metalearn._task import TaskSampler, as_sampler
from metalearn._typing import Array, Key, LossFn, PyTree
from metalearn.learner import MetaLearner, describe, is_transductive
from metalearn.model import Variables
from metalearn.sinks import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Per-task results.

    Attributes:
      values: `{name: float [T]}`, e.g. `query/loss`, `query/accuracy`.
      transductive: Whether the prediction of one query depended on the others; measured.
      learner: Name of the algorithm.
      tasks: Name of the sampler.
      fingerprint: Identifies the tasks; equal for equal sampler and key.
    """

    values: dict[str, np.ndarray]
    transductive: bool
    learner: str
    tasks: str
    fingerprint: tuple

    @property
    def num_tasks(self) -> int:
        return len(next(iter(self.values.values())))

    def mean_ci95(self, name: str) -> tuple[float, float]:
        """Mean over tasks and half-width of its 95 % interval."""
        return metrics.mean_ci95(self.values[name])

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
            if name.endswith("accuracy"):
                parts.append(f"{name} {100 * mean:.2f} ± {100 * half:.2f} %")
            else:
                parts.append(f"{name} {mean:.4g} ± {half:.2g}")
        kind = "transductive" if self.transductive else "inductive"
        return f"{', '.join(parts)} ({self.num_tasks} tasks, 95 % interval, {kind})"


def evaluate(
    learner: MetaLearner,
    variables: Variables,
    tasks: Any,
    loss_fn: LossFn | None = None,
    *,
    num_tasks: int = 600,
    key: Key,
    tasks_per_call: int = 100,
    progress: bool | None = False,
) -> Evaluation:
    """Adapts to `num_tasks` tasks and reports their query loss and accuracy.

    Task i depends on `key` and i only, so two learners with the same key see the same
    tasks, and more tasks extend fewer.

    Args:
      learner: Its `adapt` and `predict` are used.
      variables: What was learned.
      tasks: A `TaskSampler` or a function `key -> Task`.
      loss_fn: Loss of one task; default: cross-entropy for integer targets, mean squared
        error for real ones.
      num_tasks: T, at least 2.
      key: Consumed.
      tasks_per_call: Tasks in one compiled call.
      progress: Whether to draw a progress bar; `None` decides by the terminal.

    Returns:
      An `Evaluation`; `print` shows means, intervals and whether it is transductive.

    Raises:
      ValueError: bad arguments, non-finite data, labels outside the logits.

    Example:
      >>> print(ml.evaluate(learner, variables, tasks, key=jax.random.key(1)))
    """
    if num_tasks < 2:
        raise ValueError(f"num_tasks is {num_tasks}; an interval needs 2 or more.")
    sampler = as_sampler(tasks)
    k_first = jax.random.split(jax.random.fold_in(key, 0), 3)[0]
    first = jax.jit(sampler.sample)(sampler.data, k_first)
    outputs = jax.eval_shape(
        lambda v, t: learner.predict(
            learner.adapt(v, t.support, key=jax.random.key(0)), t.query.x
        ),
        variables,
        first,
    )
    _checks.values_of_task(first, outputs)
    run = _evaluator(learner, sampler.sample, loss_fn)
    batch = min(tasks_per_call, num_tasks)
    bar = Progress(num_tasks, show=progress, label="evaluate", unit="task")
    parts, transductive = [], False
    for start in range(0, num_tasks, batch):
        # The last batch runs over the end and is cut, so that all share one program.
        numbers = jnp.arange(start, start + batch, dtype=jnp.int32)
        values, flag = run(variables, sampler.data, key, numbers)
        transductive |= bool(flag)
        used = min(batch, num_tasks - start)
        parts.append({k: np.asarray(v)[:used] for k, v in values.items()})
        bar.update(used)
    bar.close()
    return Evaluation(
        values={k: np.concatenate([p[k] for p in parts]) for k in parts[0]},
        transductive=transductive,
        learner=str(describe(learner).get("name", "custom")),
        tasks=sampler.name,
        fingerprint=(sampler.name, *np.asarray(jax.random.key_data(key)).tolist()),
    )


@functools.lru_cache(maxsize=64)
def _evaluator(learner: MetaLearner, sample: Any, loss_fn: LossFn | None):
    """The compiled evaluation; cached so that a second call compiles nothing."""

    def run(variables: Variables, data: PyTree, key: Key, numbers: Array):
        def adapted_to(number: Array):
            k_task, k_adapt, k_predict = jax.random.split(
                jax.random.fold_in(key, number), 3
            )
            task = sample(data, k_task)
            return task, learner.adapt(variables, task.support, key=k_adapt), k_predict

        def one(number: Array) -> dict[str, Array]:
            task, adapted, k_predict = adapted_to(number)
            outputs = learner.predict(adapted, task.query.x, key=k_predict)
            loss = loss_fn or metrics.default_loss(task.query)
            report = metrics.of_task(loss, outputs, task.query)
            return {f"query/{k}": v for k, v in report.items()}

        num = numbers.shape[0]
        chunk = min(num, _cost.tasks_at_once(jax.vmap(one), numbers[:1]))
        values = jax.lax.map(one, numbers, batch_size=chunk)
        task, adapted, k_predict = adapted_to(numbers[0])
        return values, is_transductive(learner, adapted, task.query.x, key=k_predict)

    return jax.jit(run)


def paired_difference(
    first: Evaluation, second: Evaluation, name: str = "query/accuracy"
) -> tuple[float, float]:
    """Mean of `first - second` over the same tasks, and its 95 % half-width.

    Far tighter than the difference of two separate intervals.

    Raises:
      ValueError: the evaluations are not over the same tasks.
    """
    if first.fingerprint != second.fingerprint or first.num_tasks != second.num_tasks:
        raise ValueError(
            f"the evaluations are over different tasks: {first.num_tasks} of "
            f"{first.fingerprint} and {second.num_tasks} of {second.fingerprint}. "
            "Evaluate both with the same sampler, key and num_tasks."
        )
    return metrics.mean_ci95(first.values[name] - second.values[name])


__all__ = ["Evaluation", "TaskSampler", "evaluate", "paired_difference"]
