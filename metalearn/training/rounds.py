"""What an online run is made of: a buffer of tasks, outer steps on it, judgement.

The buffer is whole on the device from the start. Counts say what has arrived of each task;
they are arguments of the compiled programs, so that none is compiled again as it grows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, cost, kinds, labels, mesh, metrics
from metalearn.core.keys import check_key
from metalearn.core.learner import MetaLearner
from metalearn.core.plans import check_planned
from metalearn.core.programs import compiled, kept_with_owner
from metalearn.core.task import Examples, Task, TaskSampler, stack_tasks
from metalearn.core.types import Array, Key, LossFn, PyTree
from metalearn.training.batches import tasks_of_step
from metalearn.training.diagnosis import not_finite
from metalearn.training.judgement import Judgement, check_judgement, judge
from metalearn.training.loop import (
    advance_of,
    copied,
    first_call,
    no_totals,
)
from metalearn.training.trainer import MetaTrainer, TrainState, check_trainer


class Rounds(NamedTuple):
    """A checked sequence of T tasks and what is done with it.

    Attributes:
      start: `task -> TrainState`, new variables and a new optimiser, other ones for
        another task.
      train: `(state, counts [T], (first, num), steps, task) -> state`: outer steps on
        tasks `first` to `first + num - 1`, of which `counts` examples have arrived.
      judge: `(state, task, have) -> {name: float}` after adaptation to the first `have`
        examples of a task.
      adapting: Learner whose `adapt` is the update procedure.
      sizes: Number of examples that each task brings, int `[T]`.
      digests: Digest of each task.
      reported: Names of the metrics.
    """

    start: Callable[[int], TrainState]
    train: Callable[..., TrainState]
    judge: Callable[[TrainState, int, int], dict[str, float]]
    adapting: MetaLearner
    sizes: np.ndarray
    digests: list[str]
    reported: tuple[str, ...]


def counted(tasks_per_step: Any, num_support: Any, num_query: Any) -> dict[str, int]:
    """The numbers of an outer step as Python's own.

    Raises:
      ValueError: a number below one, or no integer.
    """
    given = {"tasks_per_step": tasks_per_step, "num_support": num_support}
    given["num_query"] = num_query
    return {name: kinds.count(name, value) for name, value in given.items()}


def prepare(
    trainer: MetaTrainer,
    tasks: Sequence[Task] | Task,
    *,
    tasks_per_step: int,
    num_support: int,
    num_query: int,
    key: Key,
    adapting: MetaLearner | None,
    loss_fn: LossFn | None,
) -> Rounds:
    """Finds everything that can be wrong with tasks, before anything is computed.

    Raises:
      TypeError: not a trainer, or not tasks.
      ValueError: a number below one, shapes or values that do not fit; names the task.
    """
    check_trainer(trainer)
    check_key(key)
    if adapting is not None:
        kinds.learner(adapting, "adapting")
    judged = check_judgement(loss_fn, None)
    mesh.check_enough(tasks_per_step, mesh.shares())
    tasks = _stacked(tasks)
    sizes, most = _sizes(tasks), tasks.support.mask.shape[1]
    if num_support + num_query > most:
        raise ValueError(
            f"num_support + num_query is {num_support + num_query}, but a task has room "
            f"for {most} examples. Ask for fewer, or bring larger tasks."
        )
    adapting = adapting or trainer.learner
    first = jax.tree.map(lambda leaf: leaf[0], tasks)
    cost.check_room("tasks_per_step", tasks_per_step, first)
    like = jax.eval_shape(trainer.init, key, first)
    report = functools.partial(_report, adapting, judged)
    outputs, reported = jax.eval_shape(report, like.variables, first, key)
    loss_fn = judged[0] or adapting.loss_fn
    classes = labels.num_classes(loss_fn, outputs, first.query.y) is not None
    digests = _checked(tasks, outputs if classes else None)

    tasks = mesh.everywhere(tasks)
    k_start, k_train, k_judge = mesh.everywhere(jax.random.split(key, 3))
    init = jax.jit(trainer.init)

    def start(task: int) -> TrainState:
        return mesh.everywhere(init(jax.random.fold_in(k_start, task), first))

    def judge(state: TrainState, task: int, have: int) -> dict[str, float]:
        run = _compiled_judge(adapting, judged)
        found = run(state.variables, tasks, np.int32(task), np.int32(have), k_judge)
        return {name: float(value) for name, value in jax.device_get(found).items()}

    return Rounds(
        start=start,
        train=_training(
            trainer,
            tasks,
            sizes,
            like,
            Episode(num_support, num_query, classes and trainer.learner.masks_absent),
            tasks_per_step,
            k_train,
        ),
        judge=judge,
        adapting=adapting,
        sizes=sizes,
        digests=digests,
        reported=tuple(reported),
    )


def goal_of(
    rounds: Rounds, metric: str, threshold: float | None, higher_is_better: bool | None
) -> Callable[[Mapping[str, float]], bool] | None:
    """Whether a row reaches the threshold; `None` without one."""
    if metric not in rounds.reported:
        raise ValueError(
            f"metric {metric!r} is not reported; there are {list(rounds.reported)}."
        )
    if threshold is None:
        return None
    number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if not (number and np.isfinite(threshold)):
        raise ValueError(f"threshold is {threshold!r}; expected a finite number or None.")
    if metrics.higher_is_better(metric, higher_is_better):
        return lambda row: row[metric] >= threshold
    return lambda row: row[metric] <= threshold


def _training(
    trainer: MetaTrainer,
    tasks: Task,
    sizes: np.ndarray,
    like: TrainState,
    sample: Episode,
    tasks_per_step: int,
    key: Key,
) -> Callable[..., TrainState]:
    """The function `train` of `Rounds`."""
    buffer = {"examples": tasks.support, "info": tasks.info}
    drawn = jax.eval_shape(
        sample, {**buffer, "counts": jnp.asarray(sizes), "first": 0, "num": 1}, key
    )
    fresh = mesh.everywhere(no_totals(trainer, like, drawn, tasks_per_step))
    limit = None

    def train(
        state: TrainState,
        counts: np.ndarray,
        among: tuple[int, int],
        steps: int,
        task: int,
    ) -> TrainState:
        nonlocal limit
        numbers = {"first": np.int32(among[0]), "num": np.int32(among[1])}
        data = {**buffer, "counts": counts.astype(np.int32), **numbers}
        # A key for each task: where variables restart, the number of the step does too.
        k_task, stop = jax.random.fold_in(key, task), int(state.step) + steps
        sampler = TaskSampler(sample, data, "online")
        check_planned(trainer.learner, sampler)
        # Every task was looked at before the first round, so labels are not counted.
        numbers = (trainer, sampler, tasks_per_step, k_task, True, stop, None)
        make = functools.partial(advance_of, *numbers)
        if limit is None:
            _, done, choice = first_call(make, state, fresh, stop)
            limit = choice.limit
        else:
            done = make(limit)[0](state, copied(fresh), stop)
        state, totals = done
        if int(totals["first_bad"]) >= 0:
            raise not_finite(
                totals,
                lambda number: tasks_of_step(
                    sampler,
                    tasks_per_step,
                    k_task,
                    number,
                    trainer.learner,
                    state.variables,
                ),
                where=f", during task {task}",
                kept="Checkpoints and sinks keep what came before.",
            )
        return state

    return train


def _checked(tasks: Task, outputs: PyTree) -> list[str]:
    """Checks the values of every task; returns their digests."""
    digests = []
    for number, task in enumerate(_rows(jax.device_get(tasks))):
        try:
            checks.values_of_task(task, outputs)
        except ValueError as error:
            raise ValueError(f"task {number}: {error}") from error
        digests.append(_digest(task))
    return digests


def drawn_from(
    sizes: np.ndarray, task: int, have: int, train_on: str
) -> tuple[np.ndarray, tuple[int, int]]:
    """What outer steps draw from while `task` is the current one.

    Returns:
      Two arguments of `train`: how many examples of each task are there, `[T]`, and the
      first of the tasks to draw from with their number.
    """
    counts = np.where(np.arange(len(sizes)) < task, sizes, 0)
    counts[task] = have
    first = task if train_on == "current" else 0
    return counts, (first, task + (train_on != "past") - first)


@dataclasses.dataclass(frozen=True)
class Episode:
    """`(data, key) -> Task`: a task of the buffer and disjoint mini-batches of its data.

    Equal for equal settings, so compilations are shared.

    Attributes:
      num_support: K, rows of the support set.
      num_query: Q, rows of the query set.
      answered: Whether queries of classes without a support example are left out, for
        learners that mask such classes.
    """

    num_support: int
    num_query: int
    answered: bool = False

    def __call__(self, data: PyTree, key: Key) -> Task:
        """Reads `examples` `[T, N, ...]`, `info`, `counts` `[T]`, `first` and `num`."""
        k_task, k_rows = jax.random.split(key)
        task = data["first"] + jax.random.randint(k_task, (), 0, data["num"])
        count, num = data["counts"][task], data["examples"].mask.shape[1]
        scores = jax.random.uniform(k_rows, (num,))
        # Rows that have arrived come first, in random order; masks hide the others.
        scores = jnp.where(jnp.arange(num) < count, scores, -1.0)
        order = jax.lax.top_k(scores, self.num_support + self.num_query)[1]
        wanted = self.num_support + self.num_query
        half = jnp.minimum(self.num_support, count // 2)
        split = jnp.where(count < wanted, half, self.num_support)
        left = jnp.minimum(self.num_query, count - split)

        def part(start: Array | int, size: int, valid: Array) -> Examples:
            rows = order[start + jnp.arange(size)]
            chosen = jax.tree.map(lambda leaf: leaf[task, rows], data["examples"])
            return _hide(chosen, jnp.arange(size) < valid)

        found = Task(
            support=part(0, self.num_support, split),
            query=part(split, self.num_query, left),
            info={"task": task, **jax.tree.map(lambda leaf: leaf[task], data["info"])},
        )
        if not self.answered:
            return found
        keep = found.query.mask & ~labels.without_support(found)
        return dataclasses.replace(found, query=_hide(found.query, keep))


def _hide(examples: Examples, mask: Array) -> Examples:
    """The same examples under another mask, with zeros in the rows that it hides."""
    # A model may look across examples without a mask, and what has not arrived must not
    # be seen. Selection and not a product: 0 times NaN would be NaN.

    def zeroed(leaf: Array) -> Array:
        wide = mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))
        return jnp.where(wide, leaf, jnp.zeros_like(leaf))

    x, y = jax.tree.map(zeroed, (examples.x, examples.y))
    return Examples(x=x, y=y, mask=mask)


def _stacked(tasks: Sequence[Task] | Task) -> Task:
    """A batch `[T, N, ...]` on the device."""
    if not isinstance(tasks, Task):
        if not isinstance(tasks, Iterable) or isinstance(tasks, (str, dict)):
            raise TypeError(
                f"tasks is a {type(tasks).__name__}; expected a sequence of ml.Task in "
                "order of arrival, or a batch of them [T, N, ...]."
            )
        tasks = list(tasks)
        for number, task in enumerate(tasks):
            if not isinstance(task, Task):
                raise TypeError(
                    f"task {number} is a {type(task).__name__}; expected ml.Task with the "
                    "data that arrive as support and the held-out data as query."
                )
        return stack_tasks(tasks)
    if np.ndim(tasks.support.mask) != 2 or not len(tasks.support.mask):
        raise ValueError(
            f"tasks.support.mask has shape {np.shape(tasks.support.mask)}; expected a "
            "batch of tasks [T, N] or a sequence of tasks. Put one task into a list."
        )
    return jax.tree.map(jnp.asarray, tasks)


def _sizes(tasks: Task) -> np.ndarray:
    """Examples of each task, int `[T]`."""
    mask = np.asarray(tasks.support.mask)
    sizes = mask.sum(1)
    for number, (row, size) in enumerate(zip(mask, sizes, strict=True)):
        if size < 2 or not row[:size].all():
            raise ValueError(
                f"task {number} has {size} valid examples and mask {row.astype(int)}; "
                "expected 2 or more, with padded rows after them. Sort its rows."
            )
    return sizes.astype(np.int64)


def _report(
    learner: MetaLearner, judged: Judgement, variables: PyTree, task: Task, key: Key
) -> tuple[PyTree, dict[str, Array]]:
    k_adapt, k_predict = jax.random.split(key)
    adapted = learner.adapt(variables, task.support, key=k_adapt)
    query = task.query
    outputs = learner.predict(adapted, query.x, key=k_predict, mask=query.mask)
    return outputs, judge(learner, judged, outputs, query)


@kept_with_owner
def _compiled_judge(learner: MetaLearner, judged: Judgement):
    """One program for all tasks and all numbers of examples."""

    def run(variables: PyTree, tasks: Task, number: Array, have: Array, key: Key):
        task = jax.tree.map(lambda leaf: leaf[number], tasks)
        support = _hide(task.support, jnp.arange(task.support.mask.shape[0]) < have)
        task = dataclasses.replace(task, support=support)
        key = jax.random.fold_in(jax.random.fold_in(key, number), have)
        return _report(learner, judged, variables, task, key)[1]

    return compiled(run)


def _rows(tasks: Task) -> list[Task]:
    leaves, treedef = jax.tree.flatten(tasks)
    return [treedef.unflatten(row) for row in zip(*leaves, strict=True)]


def _digest(task: Task) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves((task.support, task.query)):
        found.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]
