"""Tasks that arrive one after another: follow the meta-leader, its baselines, its regret.

C. Finn, A. Rajeswaran, S. Kakade, S. Levine. Online Meta-Learning. ICML 2019.
"""

from __future__ import annotations

import dataclasses
import hashlib
import numbers
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from metalearn.core import checks, mesh
from metalearn.core.learner import MetaLearner, describe
from metalearn.core.task import Task
from metalearn.core.types import Key, LossFn
from metalearn.training.checkpoint import CheckpointMismatch, Checkpoints
from metalearn.training.rounds import Rounds, prepare
from metalearn.training.sinks import Progress, Sink
from metalearn.training.trainer import MetaTrainer, TrainState

TRAIN_ON = ("all", "past", "current")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineResult:
    """What a sequence of T tasks leaves.

    Attributes:
      state: After the last task, to go on from or to adapt with.
      values: `{name: float [T]}`: metrics on the held-out data of each task after
        adaptation to all of its data.
      needed: Float `[T]`, learning efficiency: examples of the task after which the
        threshold was reached first; NaN where it never was. `None` without a threshold.
      history: A row for each arrival of data, in order: `task`, `examples` of it so far,
        outer `steps` so far, the metrics, `seconds`.
      fingerprint: Digest of the tasks in their order; equal for equal sequences.
    """

    state: TrainState
    values: dict[str, np.ndarray]
    needed: np.ndarray | None
    history: list[dict[str, Any]]
    fingerprint: str


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

    All tasks lie on the device from the start; counts say what has arrived, nothing
    reads beyond them, and one compiled program serves all rounds. Baselines of the paper
    are other arguments:

    | | learner | `train_on` | `restart` |
    |---|---|---|---|
    | FTML | `maml(...)` or any other | "all" | False |
    | train on everything (TOE) | `no_adaptation(...)` | "all" | False |
    | joint training, then fine-tuning (FTL) | `fine_tune(...)` | "past" | False |
    | from scratch on each task | `no_adaptation(...)` | "current" | True |

    Differs from the paper's text: D_tr and D_val share no example (there they are drawn
    independently); while fewer than K + Q examples of a task are there, D_tr gets half of
    them, K at most. Whether a task is mastered does not end it, as in algorithm 1.

    Args:
      trainer: From `meta_trainer`; keep it, and another call compiles nothing.
      tasks: In order of arrival, of equal shapes: `support` is D_t in order of arrival
        `[N, ...]`, `query` its held-out data. Padded rows at the end of `support` never
        arrive. Or a batch of tasks, axes `[T, N, ...]`.
      batch_size: Examples that arrive at once, at least 2.
      meta_steps: N_meta, outer steps after each arrival.
      tasks_per_step: Tasks of one outer step, drawn with replacement.
      num_support: K, examples of D_tr.
      num_query: Q, examples of D_val.
      key: Consumed; the same key resumes the same run.
      adapting: Whose `adapt` is the update procedure, e.g. with more inner steps; the
        trained learner when `None`.
      loss_fn: Of the judgement, as in `evaluate`.
      train_on: Tasks that outer steps draw from: "all" so far, those "past" (none during
        the first task, which then has no outer steps), or the "current" one.
      restart: Whether each task begins with new variables and a new outer optimiser.
      metric: What the threshold is about; smaller is better if it ends with "loss".
      threshold: Proficiency, e.g. 0.9 of "query/accuracy".
      sinks: Functions that get every row of the history.
      progress: Whether to draw a progress bar; `None` decides by the terminal.
      checkpoints: Saved to after each task.
      resume: Goes on after the last finished task. `tasks` may have become longer since:
        the rounds before are as they were, to the bit. Another outer optimiser is refused
        by its state, or by its functions' names and the numbers they hold. What these do
        not show is for you to keep: the body of a function of yours, a rate that is an
        array, the transformations within `optax.partition` or `optax.MultiSteps`.

    Returns:
      An `OnlineResult`.

    Raises:
      NonFiniteGradient: with the task; checkpoints and sinks keep the finished ones.
      CheckpointMismatch: what to resume is of other tasks, another outer optimiser or
        another setting.
      ValueError: bad arguments or data in any task, found before anything is computed.

    Example:
      >>> learner = ml.maml(model, ml.losses.cross_entropy, optax.sgd(0.1), num_steps=5)
      >>> found = ml.follow_the_meta_leader(
      ...     ml.meta_trainer(learner, optax.adam(1e-3)), tasks, batch_size=25,
      ...     meta_steps=50, tasks_per_step=5, num_support=10, num_query=10,
      ...     metric="query/accuracy", threshold=0.9, key=jax.random.key(0))
      >>> found.values["query/accuracy"], found.needed
    """
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on is {train_on!r}; expected one of {TRAIN_ON}.")
    checks.whole_number("batch_size", batch_size, least=2)
    checks.whole_number("meta_steps", meta_steps, least=1)
    if resume and checkpoints is None:
        raise ValueError("resume=True needs checkpoints to resume from; give Checkpoints.")
    if checkpoints is not None and not resume and checkpoints.latest() is not None:
        raise ValueError(
            f"{checkpoints.folder} already holds checkpoint {checkpoints.latest()} of "
            "another run. Go on from it with resume=True, or give an empty folder."
        )
    rounds = prepare(
        trainer,
        tasks,
        tasks_per_step=tasks_per_step,
        num_support=num_support,
        num_query=num_query,
        key=key,
        adapting=adapting,
        loss_fn=loss_fn,
    )
    if metric not in rounds.reported:
        raise ValueError(
            f"metric {metric!r} is not reported; there are {list(rounds.reported)}."
        )
    number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if threshold is not None and not (number and np.isfinite(threshold)):
        raise ValueError(f"threshold is {threshold!r}; expected a finite number or None.")
    identity = {
        "learner": describe(trainer.learner),
        "adapting": describe(rounds.adapting),
        **dict(trainer.config),
        "key": jax.random.key_data(key).tolist(),
        "batch_size": batch_size,
        "meta_steps": meta_steps,
        "tasks_per_step": tasks_per_step,
        "num_support": num_support,
        "num_query": num_query,
        "train_on": train_on,
        "restart": restart,
    }
    sizes, state, history, done = rounds.sizes, rounds.start(0), [], 0
    if resume and checkpoints.latest() is not None:
        state, history, done = _restore(checkpoints, state, identity, rounds.digests)
    if not mesh.leads():
        sinks, progress = (), False
    arrivals = -(-sizes // batch_size)
    total, begun = int(arrivals.sum()), int(arrivals[:done].sum())
    bar = Progress(total, start=begun, show=progress, label="online", unit="arrival")
    steps = history[-1]["steps"] if history else 0
    try:
        for task in range(done, len(sizes)):
            if restart and task > 0:
                state = rounds.start(task)
            first = task if train_on == "current" else 0
            num = task + (train_on != "past") - first
            for arrival in range(1, int(arrivals[task]) + 1):
                began = time.perf_counter()
                have = min(arrival * batch_size, int(sizes[task]))
                counts = np.where(np.arange(len(sizes)) < task, sizes, 0)
                counts[task] = have
                if num:
                    state = rounds.train(state, counts, (first, num), meta_steps, task)
                    steps += meta_steps
                row = {"task": task, "examples": have, "steps": steps}
                row |= rounds.judge(state, task, have)
                row["seconds"] = round(time.perf_counter() - began, 3)
                history.append(row)
                for sink in sinks:
                    sink(row)
                bar.update(1, {"task": task, metric: row[metric]})
            if checkpoints is not None:
                extra = {"identity": identity, "tasks": rounds.digests[: task + 1]}
                checkpoints.save(task + 1, state, {**extra, "history": history})
    finally:
        bar.close()
    return _result(rounds, state, history, metric, threshold)


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
      trainer: From `meta_trainer`.
      tasks: As in `follow_the_meta_leader`.
      num_steps: Outer steps; those of the whole sequence, `history[-1]["steps"]`, are the
        same budget.
      tasks_per_step: As in `follow_the_meta_leader`.
      num_support: K.
      num_query: Q.
      key: Consumed.
      adapting: The update procedure U_t.
      loss_fn: Of the judgement.

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
    checks.whole_number("num_steps", num_steps, least=1)
    rounds = prepare(
        trainer,
        tasks,
        tasks_per_step=tasks_per_step,
        num_support=num_support,
        num_query=num_query,
        key=key,
        adapting=adapting,
        loss_fn=loss_fn,
    )
    sizes = rounds.sizes
    state = rounds.train(rounds.start(0), sizes, (0, len(sizes)), num_steps, 0)
    history = [
        {"task": task, "examples": int(size), "steps": num_steps}
        | rounds.judge(state, task, int(size))
        for task, size in enumerate(sizes)
    ]
    return _result(rounds, state, history, "query/loss", None)


def regret(found: OnlineResult, best: OnlineResult, name: str = "query/loss") -> np.ndarray:
    """Cumulative regret `sum_{s<=t} f_s(U_s(w_s)) - f_s(U_s(w*))` for t = 1..T.

    Args:
      found: Of a played sequence, by whatever method.
      best: Of `best_in_hindsight` on the same tasks.
      name: A metric of both; differences change their sign unless it ends with "loss".

    Returns:
      Float `[T]`.

    Raises:
      ValueError: other tasks or another order, or an unknown metric.
    """
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
    return np.cumsum(_sign(name) * (found.values[name] - best.values[name]))


def _restore(
    checkpoints: Checkpoints, like: TrainState, identity: dict, digests: list[str]
) -> tuple[TrainState, list[dict[str, Any]], int]:
    """State, history and number of finished tasks."""
    done = checkpoints.latest()
    state, extra = checkpoints.restore(done, like=like)
    if "identity" not in extra:
        raise CheckpointMismatch(
            f"{checkpoints.folder} holds checkpoints that follow_the_meta_leader did not "
            "write. Give the folder of an online run, or an empty one and resume=False."
        )
    there, here = extra["identity"], identity
    wrong = [
        f"{name}: {there.get(name)} there, {value} here"
        for name, value in here.items()
        # Older checkpoints lack the optimiser, and nothing else.
        if there.get(name, value if name == "outer_opt" else None) != value
    ]
    wrong += [
        f"task {number}: digest {old} there, {new} here"
        for number, (old, new) in enumerate(zip(extra["tasks"], digests, strict=False))
        if old != new
    ]
    if done > len(digests):
        raise CheckpointMismatch(
            f"{checkpoints.folder} holds a run that has finished {done} tasks, but only "
            f"{len(digests)} are given. Give those as well; tasks may only be added."
        )
    if wrong:
        raise CheckpointMismatch(
            f"checkpoint {done} in {checkpoints.folder} is of another run:\n  "
            + "\n  ".join(wrong)
            + "\nGive the same to go on with it exactly; tasks may only be added."
        )
    return mesh.everywhere(state), extra["history"], done


def _result(
    rounds: Rounds,
    state: TrainState,
    history: list[dict[str, Any]],
    metric: str,
    threshold: float | None,
) -> OnlineResult:
    last = {row["task"]: row for row in history}  # the last arrival of each task
    values = {
        name: np.asarray([last[task][name] for task in sorted(last)])
        for name in rounds.reported
    }
    needed = None
    if threshold is not None:
        needed = np.full(len(rounds.sizes), np.nan)
        for row in reversed(history):
            if _sign(metric) * (row[metric] - threshold) <= 0:
                needed[row["task"]] = row["examples"]
    return OnlineResult(
        state=state,
        values=values,
        needed=needed,
        history=history,
        fingerprint=hashlib.sha256("".join(rounds.digests).encode()).hexdigest()[:16],
    )


def _sign(metric: str) -> int:
    return 1 if metric.endswith("loss") else -1
