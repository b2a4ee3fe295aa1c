"""Training on families of tasks that arrive one after another, with a model that grows.

The continual adaptation of H. Yao, Y. Wei, J. Huang, Z. Li, Hierarchically Structured
Meta-learning, ICML 2019, section 4.4; its thresholds are those of the released code.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import optax

from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables
from metalearn.core.types import Key
from metalearn.training.averaging import judged
from metalearn.training.fit import fit
from metalearn.training.trainer import TrainState, meta_trainer

Grow = Callable[[Variables, Key], Variables]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continual:
    """What `fit_continually` leaves.

    Attributes:
      stages: Variables at the end of each stage, before what grows there; averages of
        them under `averaging`.
      state: After the last step.
      history: A row for each window: `step`, `stage`, the metric.
      grown: Steps after which the model grew.
    """

    stages: list[Variables]
    state: TrainState
    history: list[dict[str, Any]]
    grown: list[int]


def fit_continually(
    learner: MetaLearner,
    outer_opt: optax.GradientTransformation,
    stages: Sequence[tuple[Any, int]],
    *,
    tasks_per_step: int,
    key: Key,
    grow: Grow | None = None,
    metric: str = "query/loss",
    worse: float = 1.25,
    check_every: int = 1000,
    medians: int = 1,
    rest: int = 8000,
    progress: bool | None = None,
) -> Continual:
    """Trains on one stage after another; grows the model when a window is much worse.

    Every `check_every` steps the mean metric of that window is compared with the one
    before. If it is more than `worse` times that (less, if `worse` is below one), and
    `rest` steps have passed since the model last grew, `grow` changes the variables and
    the outer optimiser starts anew. What a stage has left over, fewer steps than a window,
    is reported but not compared: the mean of a few steps is mostly noise.

    Args:
      learner: Any; `add_leaf` grows an `hsml`.
      outer_opt: The outer optimiser. A rate that decays would have to know when the next
        stage comes; `averaging` need not.
      stages: Pairs of tasks, as `fit` takes them, and the number of outer steps on them.
      tasks_per_step: T.
      key: Consumed.
      grow: `(variables, key) -> variables`; never grows if `None`.
      metric: Of the history of `fit`.
      worse: A ratio: 1.25 for a loss, 0.85 for an accuracy in the released code. Where
        the metric is negative, as a log-density may be, the difference that the ratio
        makes counts in the same direction.
      check_every: Steps of a window; 1,000 for curves and 100 for images there.
      medians: Parts of a window, a divisor of `check_every`; it counts, and is reported,
        as the median of their means. The mean of a window, 1, has the heavy tails of the
        losses of tasks; the median of some 20 has fewer, and still sees what a new family
        changes. Parts end at multiples of their length: where a stage begins between two,
        the pieces at the ends of a window are left out.
      rest: Steps between two changes, also before the first. What becomes worse within them
        is the new standard: it grows nothing later either.
      progress: Whether to draw progress bars.

    Returns:
      A `Continual`.

    Raises:
      TypeError: `grow` is no function.
      ValueError: no stage, one that is no pair, a number below one, parts that do not
        divide a window, a ratio of one or not above zero, or a metric that is not reported.

    Example:
      >>> found = ml.fit_continually(
      ...     ml.hsml(model, ml.losses.mse, optax.sgd(1e-3), tree=(2, 2, 1)),
      ...     ml.averaging(optax.adam(1e-3)),
      ...     [(ml.tasks.function_families(families=("sine", "line")), 20_000),
      ...      (ml.tasks.function_families(), 20_000)],
      ...     tasks_per_step=25, key=jax.random.key(0), grow=ml.add_leaf)
    """
    if not isinstance(stages, Iterable):
        raise ValueError(
            f"stages is {stages!r}; expected pairs of tasks and a number of steps."
        )
    stages = list(stages)
    if not stages:
        raise ValueError("stages is empty; expected pairs of tasks and a number of steps.")
    for name, value in (("check_every", check_every), ("medians", medians), ("rest", rest)):
        checks.whole_number(name, value, least=1)
    if check_every % medians:
        raise ValueError(
            f"medians is {medians}; expected a divisor of check_every={check_every}, so "
            "that the parts of a window are as long."
        )
    checks.number("worse", worse, positive=True)
    if worse == 1:
        raise ValueError(
            "worse is 1; expected a ratio above one for a loss, below one for an accuracy."
        )
    if grow is not None and not callable(grow):
        raise TypeError(
            f"grow is a {type(grow).__name__}; expected `(variables, key) -> variables`, "
            "such as ml.add_leaf, or None."
        )
    for stage in stages:
        if not isinstance(stage, (tuple, list)) or len(stage) != 2:
            raise ValueError(
                f"a stage is a {type(stage).__name__}; expected a pair of tasks and a "
                "number of steps, such as (ml.tasks.sinusoid(), 1000)."
            )
        checks.whole_number("the steps of a stage", stage[1], least=1)
    trainer = meta_trainer(learner, outer_opt)
    k_fit, k_grow = jax.random.split(key)
    state, before, changed, done = None, None, 0, 0
    ends, history, grown = [], [], []
    for stage, (tasks, num_steps) in enumerate(stages):
        end = done + num_steps
        while done < end:
            window = min(check_every, end - done)
            result = fit(
                trainer,
                tasks,
                state=state,
                num_steps=done + window,
                tasks_per_step=tasks_per_step,
                key=k_fit,
                # Rows end at multiples of this: one for the whole window, or one a part.
                log_every=done + window if medians == 1 else check_every // medians,
                progress=progress,
            )
            state, begun, done = result.state, done, done + window
            if metric not in (row := result.history[-1]):
                raise ValueError(
                    f"metric {metric!r} is not reported; there are {sorted(row)}."
                )
            value = _median(result.history, metric, begun, check_every // medians)
            history.append({"step": done, "stage": stage, metric: value})
            if done == end:
                ends.append(judged(state))  # before it may grow for the next stage
            if window < check_every:
                continue
            fell = False
            if before is not None:
                limit = before + (worse - 1) * abs(before)
                fell = value > limit if worse > 1 else value < limit
            if grow is not None and fell and done - changed >= rest:
                variables = grow(state.variables, jax.random.fold_in(k_grow, done))
                opt_state = outer_opt.init(variables.params)
                state = dataclasses.replace(state, variables=variables, opt_state=opt_state)
                grown.append(done)
                changed = done
            before = value
    return Continual(stages=ends, state=state, history=history, grown=grown)


def _median(rows: list[dict[str, Any]], metric: str, begun: int, part: int) -> float:
    """Of the means of whole parts, or of all rows of a window that has none."""
    starts = [begun, *(row["step"] for row in rows)]
    whole = [
        row[metric]
        for start, row in zip(starts, rows, strict=False)
        if row["step"] - start == part
    ]
    return statistics.median(whole or [row[metric] for row in rows])
