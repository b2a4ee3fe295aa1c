"""Tasks that arrive one after another: follow the meta-leader, its baselines, its regret.

C. Finn, A. Rajeswaran, S. Kakade, S. Levine. Online Meta-Learning. ICML 2019.

Baselines of the paper are other arguments of `follow_the_meta_leader`:

| | learner | `train_on` | `restart` |
|---|---|---|---|
| FTML | `maml(...)` or any other | "all" | False |
| train on everything (TOE) | `no_adaptation(...)` | "all" | False |
| joint training, then fine-tuning (FTL) | `fine_tune(...)` | "past" | False |
| from scratch on each task | `no_adaptation(...)` | "current" | True |

What differs from the paper's text. D_tr and D_val share no example (there they are drawn
independently). While fewer than K + Q examples of a task are there, D_tr gets half of them,
K at most. Whether a task is mastered does not end it, as in algorithm 1.

How it runs. All tasks lie on the device from the start. Counts say what has arrived,
nothing reads beyond them, and one compiled program serves all rounds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from metalearn.core import checks, kinds, mesh, metrics
from metalearn.core.learner import MetaLearner, describe
from metalearn.core.task import Task
from metalearn.core.types import Key, LossFn
from metalearn.training.arguments import check_online
from metalearn.training.checkpoint import CheckpointMismatch, Checkpoints
from metalearn.training.resume import (
    alone,
    check_folder,
    check_same_run,
    check_same_start,
    place_of_run,
    restore_latest,
)
from metalearn.training.rounds import Rounds, counted, drawn_from, goal_of, prepare
from metalearn.training.sinks import Progress, Sink
from metalearn.training.trainer import MetaTrainer, TrainState

TRAIN_ON = ("all", "past", "current")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineResult:
    """What a sequence of T tasks leaves.

    Attributes:
      state: State after the last task, to go on from or to adapt with.
      values: `{name: float [T]}`: metrics on the held-out data of each task after
        adaptation to all of its data.
      needed: Learning efficiency, float `[T]`: examples of the task after which the
        threshold was reached first; NaN where it never was. `None` without a threshold.
      history: Rows, one for each arrival of data, in order: `task`, `examples` of it so
        far, outer `steps` so far, the metrics, `seconds`.
      fingerprint: Digest of the tasks in their order; equal for equal sequences.
    """

    state: TrainState
    values: dict[str, np.ndarray]
    needed: np.ndarray | None
    history: list[dict[str, float]]
    fingerprint: str


@alone
def follow_the_meta_leader(
    trainer: MetaTrainer,
    tasks: Sequence[Task] | Task,
    *,
    batch_size: int,
    meta_steps: int,
    tasks_per_step: int,
    num_support: int,
    num_query: int,
    key: Key,
    adapting: MetaLearner | None = None,
    loss_fn: LossFn | None = None,
    train_on: str = "all",
    restart: bool = False,
    metric: str = "query/loss",
    threshold: float | None = None,
    higher_is_better: bool | None = None,
    sinks: Sequence[Sink] = (),
    progress: bool | None = None,
    checkpoints: Checkpoints | None = None,
    resume: bool = False,
) -> OnlineResult:
    """Plays a sequence of tasks: meta-training, adaptation and judgement at each arrival.

    Task t brings its data D_t in batches. After each batch come (algorithms 1 and 2)

    1. `meta_steps` outer steps; each draws tasks uniformly from those seen so far, the
       current one included, and of each disjoint mini-batches D_tr and D_val of the data
       that has arrived;
    2. the update procedure: adaptation to all of D_t so far;
    3. the metrics of the adapted model on the held-out data of task t.

    What differs from the paper stands at the top of the file, as do the paper's baselines.

    Args:
      trainer: Learner and outer optimiser, from `meta_trainer`; keep it, and another call
        compiles nothing.
      tasks: Tasks in order of arrival, of equal shapes: `support` is D_t in order of
        arrival `[N, ...]`, `query` its held-out data. Padded rows at the end of `support`
        never arrive. Or a batch of tasks, axes `[T, N, ...]`.
      batch_size: Number of examples that arrive at once, at least 2.
      meta_steps: N_meta, outer steps after each arrival.
      tasks_per_step: Number of tasks of one outer step, drawn with replacement.
      num_support: K, examples of D_tr.
      num_query: Q, examples of D_val.
      key: Consumed; the same key resumes the same run.
      adapting: Learner whose `adapt` is the update procedure, e.g. with more inner steps;
        the trained learner when `None`.
      loss_fn: Loss of the judgement, as in `evaluate`.
      train_on: Tasks that outer steps draw from: "all" so far, those "past" (none during
        the first task, which then has no outer steps), or the "current" one.
      restart: Whether each task begins with new variables and a new outer optimiser.
      metric: Name of the number that the threshold is about.
      threshold: Value at which a task counts as mastered, e.g. 0.9 of "query/accuracy".
      higher_is_better: Whether more of `metric` is better; `None` for the metrics of
        `ml.metrics.HIGHER_IS_BETTER`, which says it.
      sinks: Functions that get every row of the history.
      progress: Whether to draw a progress bar; `None` decides by the terminal.
      checkpoints: Place to save to after each task; nothing is saved if `None`.
      resume: Whether to go on after the last finished task. `tasks` may have become longer
        since: the rounds before are as they were, to the bit. The run must be the same:
        both learners by name and numbers (`describe`), the tasks by their data, the
        settings and the key, and the variables and the state of the outer optimiser by
        their structure: Adam in place of SGD is refused, and so is a judgement of the
        first task before training that differs, as with another loss, model or inner
        rate. The rate of the outer optimiser is not seen: keep it yourself.

    Returns:
      An `OnlineResult`.

    Raises:
      NonFiniteGradient: with the task; checkpoints and sinks keep the finished ones.
      CheckpointMismatch: the checkpoint is of another run, as far as `resume` sees.
      ValueError: bad arguments or data in any task, found before anything is computed.

    Example:
      >>> learner = ml.maml(model, ml.losses.cross_entropy, optax.sgd(0.1), num_steps=5)
      >>> found = ml.follow_the_meta_leader(
      ...     ml.meta_trainer(learner, optax.adam(1e-3)), tasks, batch_size=25,
      ...     meta_steps=50, tasks_per_step=5, num_support=10, num_query=10,
      ...     metric="query/accuracy", threshold=0.9, key=jax.random.key(0))
      >>> found.values["query/accuracy"], found.needed
    """
    checks.one_of("train_on", train_on, TRAIN_ON)
    batch_size = kinds.count("batch_size", batch_size, least=2)
    meta_steps = kinds.count("meta_steps", meta_steps)
    check_online(restart, resume, progress, sinks)
    check_folder(checkpoints, resume)
    step = counted(tasks_per_step, num_support, num_query)
    rounds = prepare(trainer, tasks, **step, key=key, adapting=adapting, loss_fn=loss_fn)
    mastered = goal_of(rounds, metric, threshold, higher_is_better)
    settings = {"batch_size": batch_size, "meta_steps": meta_steps, **step}
    settings |= {"train_on": train_on, "restart": restart}
    identity = _identity(trainer, rounds, key) | settings
    sizes, state, history, done = rounds.sizes, rounds.start(0), [], 0
    start = _start(rounds, state, batch_size) if checkpoints else {}
    if resume and checkpoints.latest() is not None:
        told = (identity, start, rounds.digests)
        state, history, done = _restore(checkpoints, state, *told)
    if not mesh.leads():
        sinks, progress = (), False
    arrivals = -(-sizes // batch_size)
    total, begun = int(arrivals.sum()), int(arrivals[:done].sum())
    with Progress(total, start=begun, show=progress, label="online", unit="arrival") as bar:
        for task in range(done, len(sizes)):
            if restart and task > 0:
                state = rounds.start(task)
            for arrival in range(1, int(arrivals[task]) + 1):
                have = min(arrival * batch_size, int(sizes[task]))
                before = history[-1]["steps"] if history else 0
                state, row = _round(rounds, state, task, have, before, meta_steps, train_on)
                history.append(row)
                for sink in sinks:
                    sink(dict(row))
                bar.update(1, {"task": task, metric: row[metric]})
            if checkpoints is not None:
                extra = {"identity": identity, "tasks": rounds.digests[: task + 1]}
                extra |= {"start": start, "place": place_of_run()}
                checkpoints.save(task + 1, state, {**extra, "history": history})
    return _result(rounds, state, history, mastered)


def _identity(trainer: MetaTrainer, rounds: Rounds, key: Key) -> dict[str, Any]:
    return {
        "learner": describe(trainer.learner),
        "adapting": describe(rounds.adapting),
        "key": jax.random.key_data(key).tolist(),
    }


def _start(rounds: Rounds, state: TrainState, batch_size: int) -> dict[str, float]:
    """The judgement of the first arrival before training, to tell one run from another."""
    found = rounds.judge(state, 0, int(min(batch_size, rounds.sizes[0])))
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _round(
    rounds: Rounds,
    state: TrainState,
    task: int,
    have: int,
    before: int,
    meta_steps: int,
    train_on: str,
) -> tuple[TrainState, dict[str, float]]:
    """The outer steps after one arrival, with `before` already done, and its row."""
    began, steps = time.perf_counter(), before
    counts, among = drawn_from(rounds.sizes, task, have, train_on)
    if among[1]:
        state = rounds.train(state, counts, among, meta_steps, task)
        steps += meta_steps
    row = {"task": task, "examples": have, "steps": steps}
    row |= rounds.judge(state, task, have)
    row["seconds"] = round(time.perf_counter() - began, 3)
    return state, row


def best_in_hindsight(
    trainer: MetaTrainer,
    tasks: Sequence[Task] | Task,
    *,
    num_steps: int,
    tasks_per_step: int,
    num_support: int,
    num_query: int,
    key: Key,
    adapting: MetaLearner | None = None,
    loss_fn: LossFn | None = None,
) -> OnlineResult:
    """What regret compares with: one initialisation, trained on all tasks together.

    The paper's comparator is the minimiser over fixed meta-parameters w of
    `sum_t f_t(U_t(w))`. This approximates it by `num_steps` outer steps on all data of all
    tasks, from the initialisation that `follow_the_meta_leader` has with the same key. It
    is no bound: another run may find better parameters, and regret may be negative.

    Args:
      trainer: Learner and outer optimiser, from `meta_trainer`.
      tasks: Tasks as in `follow_the_meta_leader`.
      num_steps: Number of outer steps; that of the whole sequence,
        `history[-1]["steps"]`, is the same budget.
      tasks_per_step: Number of tasks of one outer step, drawn with replacement.
      num_support: K, examples of D_tr.
      num_query: Q, examples of D_val.
      key: Consumed.
      adapting: Learner whose `adapt` is the update procedure U_t; the trained one when
        `None`.
      loss_fn: Loss of the judgement, as in `evaluate`.

    Returns:
      An `OnlineResult` whose history has one row a task.

    Raises:
      NonFiniteGradient: an outer step was not finite.
      ValueError: bad arguments or data.

    Example:
      >>> best = ml.best_in_hindsight(trainer, tasks, num_steps=found.history[-1]["steps"],
      ...                             tasks_per_step=5, num_support=10, num_query=10,
      ...                             key=jax.random.key(0))
      >>> ml.regret(found, best)[-1]
    """
    num_steps = kinds.count("num_steps", num_steps)
    step = counted(tasks_per_step, num_support, num_query)
    rounds = prepare(trainer, tasks, **step, key=key, adapting=adapting, loss_fn=loss_fn)
    sizes = rounds.sizes
    state = rounds.train(rounds.start(0), sizes, (0, len(sizes)), num_steps, 0)
    history = [
        {"task": task, "examples": int(size), "steps": num_steps}
        | rounds.judge(state, task, int(size))
        for task, size in enumerate(sizes)
    ]
    return _result(rounds, state, history, None)


def regret(
    found: OnlineResult,
    best: OnlineResult,
    name: str = "query/loss",
    *,
    higher_is_better: bool | None = None,
) -> np.ndarray:
    """Cumulative regret `sum_{s<=t} f_s(U_s(w_s)) - f_s(U_s(w*))` for t = 1..T.

    Args:
      found: Result of a played sequence, by whatever method.
      best: Result of `best_in_hindsight` on the same tasks.
      name: Name of a metric of both. Where more is better, the differences change their
        sign, so that regret is always what was lost.
      higher_is_better: Whether more of it is better; `None` for the metrics of
        `ml.metrics.HIGHER_IS_BETTER`, which says it.

    Returns:
      Float `[T]`.

    Raises:
      TypeError: an argument is no `OnlineResult`.
      ValueError: other tasks or another order, a metric that is not in both, or one of
        which nothing says whether more is better.
    """
    remedy = "Give what follow_the_meta_leader and best_in_hindsight returned."
    kinds.instance(found, OnlineResult, "found", remedy)
    kinds.instance(best, OnlineResult, "best", remedy)
    if found.fingerprint != best.fingerprint:
        raise ValueError(
            f"the results are of different tasks, digests {found.fingerprint} and "
            f"{best.fingerprint}. Regret compares on the same tasks in the same order."
        )
    if name not in found.values or name not in best.values:
        raise ValueError(
            f"metric {name!r} is not in both results; there are {sorted(found.values)} "
            f"and {sorted(best.values)}."
        )
    sign = -1 if metrics.higher_is_better(name, higher_is_better) else 1
    return np.cumsum(sign * (found.values[name] - best.values[name]))


def _restore(
    checkpoints: Checkpoints,
    like: TrainState,
    identity: dict[str, Any],
    start: dict[str, float],
    digests: list[str],
) -> tuple[TrainState, list[dict[str, float]], int]:
    """State, history and number of finished tasks of the newest checkpoint."""
    state, notes = restore_latest(
        checkpoints,
        like,
        writer="follow_the_meta_leader",
        holds=("identity", "tasks", "history"),
    )
    done = checkpoints.latest()
    if done > len(digests):
        raise CheckpointMismatch(
            f"{checkpoints.folder} holds a run that has finished {done} tasks, but only "
            f"{len(digests)} are given. Give those as well; tasks may only be added."
        )
    others = [
        f"task {number}: digest {old} there, {new} here"
        for number, (old, new) in enumerate(zip(notes["tasks"], digests, strict=False))
        if old != new
    ]
    check_same_run(
        checkpoints,
        notes["identity"],
        identity,
        others=others,
        but="; tasks may only be added",
    )
    if notes.get("start"):  # older ones have none
        same = place_of_run() == notes["place"]
        check_same_start(checkpoints, notes["start"], start, same)
    return mesh.everywhere(state), notes["history"], done


def _result(
    rounds: Rounds,
    state: TrainState,
    history: list[dict[str, float]],
    mastered: Callable[[Mapping[str, float]], bool] | None,
) -> OnlineResult:
    last = {row["task"]: row for row in history}  # the last arrival of each task
    values = {
        name: np.asarray([last[task][name] for task in sorted(last)])
        for name in rounds.reported
    }
    needed = None
    if mastered is not None:
        needed = np.full(len(rounds.sizes), np.nan)
        for row in reversed(history):  # the first row that reaches it is written last
            if mastered(row):
                needed[row["task"]] = row["examples"]
    return OnlineResult(
        state=state,
        values=values,
        needed=needed,
        history=history,
        fingerprint=hashlib.sha256("".join(rounds.digests).encode()).hexdigest()[:16],
    )
