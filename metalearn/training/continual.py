"""Training on families of tasks that arrive one after another, with a model that grows.

The continual adaptation of H. Yao, Y. Wei, J. Huang, Z. Li, Hierarchically Structured
Meta-learning, ICML 2019, section 4.4; its thresholds are those of the released code.

Windows, and what they count as. What a stage has left over, fewer steps than a window, is
reported but not compared: the mean of a few steps is mostly noise. With one part a window
counts as its mean, which has the heavy tails of the losses of tasks. The median of some 20
parts has lighter ones, and still sees what a new family changes. Parts end at multiples of
their length: where a stage begins between two, the pieces at the ends of a window are left
out.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable

import jax
import optax

from metalearn.core import checks, kinds, metrics
from metalearn.core.keys import check_key
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables
from metalearn.core.task import Tasks, as_tasks
from metalearn.core.types import Key
from metalearn.training.averaging import judged
from metalearn.training.fit import fit
from metalearn.training.judgement import logits_of
from metalearn.training.loop import no_totals
from metalearn.training.trainer import MetaTrainer, TrainState, meta_trainer

Grow = Callable[[Variables, Key], Variables]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continual:
    """What `fit_continually` leaves.

    Attributes:
      stages: Variables at the end of each stage, before what grows there; averages of
        them under `averaging`.
      state: State after the last step.
      history: Rows, one for each window: `step`, `stage`, the metric.
      grown: Steps after which the model grew.
    """

    stages: list[Variables]
    state: TrainState
    history: list[dict[str, float]]
    grown: list[int]


def fit_continually(
    learner: MetaLearner,
    outer_opt: optax.GradientTransformation,
    stages: Iterable[tuple[Tasks, int]],
    *,
    tasks_per_step: int,
    key: Key,
    grow: Grow | None = None,
    metric: str = "query/loss",
    worse: float | None = None,
    check_every: int = 1000,
    medians: int = 1,
    rest: int = 8000,
    higher_is_better: bool | None = None,
    progress: bool | None = None,
) -> Continual:
    """Trains on one stage after another; grows the model when a window is much worse.

    Every `check_every` steps the mean metric of that window is compared with the one
    before. If it is more than `worse` times that (less, where more is better), and
    `rest` steps have passed since the model last grew, `grow` changes the variables and
    the outer optimiser starts anew. What a stage has left over, fewer steps than a window,
    is reported but not compared. More on windows stands at the top of the file.

    Args:
      learner: Learner of any kind; `add_leaf` grows an `hsml`.
      outer_opt: The outer optimiser. A rate that decays would have to know when the next
        stage comes; `averaging` need not.
      stages: Pairs of tasks, as `fit` takes them, and the number of outer steps on them.
      tasks_per_step: T, tasks of one outer step.
      key: Consumed.
      grow: `(variables, key) -> variables`; never grows if `None`.
      metric: Name of a number in the history of `fit`.
      worse: Ratio of two windows, above one where less is better and below one where more
        is. `None` is that of the released code: 1.25 for a loss, 0.85 for an accuracy.
        Where the metric is negative, as a log-density may be, the difference that the
        ratio makes counts in the same direction.
      check_every: Number of steps of a window; 1,000 for curves and 100 for images in the
        released code.
      medians: Number of parts of a window, a divisor of `check_every`. A window counts,
        and is reported, as the median of the means of its parts: with one part the mean,
        with some 20 a number that single tasks move less.
      rest: Number of steps between two changes, also before the first. What becomes worse
        within them is the new standard: it grows nothing later either.
      higher_is_better: Whether more of `metric` is better; `None` for the metrics of
        `ml.metrics.HIGHER_IS_BETTER`, which says it.
      progress: Whether to draw progress bars.

    Returns:
      A `Continual`.

    Raises:
      TypeError: `grow` is no function.
      ValueError: no stage, one that is no pair, a number below one, parts that do not
        divide a window, a ratio of one, not above zero or on the wrong side of one, or a
        metric that is not reported or of which nothing says whether more is better.

    Example:
      >>> found = ml.fit_continually(
      ...     ml.hsml(model, ml.losses.mse, optax.sgd(1e-3), tree=(2, 2, 1)),
      ...     ml.averaging(optax.adam(1e-3)),
      ...     [(ml.tasks.function_families(families=("sine", "line")), 20_000),
      ...      (ml.tasks.function_families(), 20_000)],
      ...     tasks_per_step=25, key=jax.random.key(0), grow=ml.add_leaf)
    """
    check_key(key)
    stages = _checked(stages)
    tasks_per_step = kinds.count("tasks_per_step", tasks_per_step)
    check_every = kinds.count("check_every", check_every)
    medians, rest = kinds.count("medians", medians), kinds.count("rest", rest)
    if check_every % medians:
        raise ValueError(
            f"medians is {medians}; expected a divisor of check_every={check_every}, so "
            "that the parts of a window are as long."
        )
    worse = _ratio(worse, metric, higher_is_better)
    names = ("variables", "key")
    kinds.function("grow", grow, names, "ml.add_leaf", optional=True)
    trainer = meta_trainer(learner, outer_opt)
    _check_stages(trainer, stages, tasks_per_step, key, metric)
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
            value = _median(result.history, metric, begun, check_every // medians)
            history.append({"step": done, "stage": stage, metric: value})
            if done == end:
                ends.append(judged(state))  # before it may grow for the next stage
            if window < check_every:
                continue
            fell = before is not None and _is_worse(value, before, worse)
            if grow is not None and fell and done - changed >= rest:
                variables = grow(state.variables, jax.random.fold_in(k_grow, done))
                opt_state = outer_opt.init(variables.params)
                state = dataclasses.replace(state, variables=variables, opt_state=opt_state)
                grown.append(done)
                changed = done
            before = value
    return Continual(stages=ends, state=state, history=history, grown=grown)


def _check_stages(
    trainer: MetaTrainer,
    stages: list[tuple[Tasks, int]],
    tasks_per_step: int,
    key: Key,
    metric: str,
) -> None:
    """Looks at a task of every stage, so that a wrong last one costs no other.

    Raises:
      ValueError: bad data in a stage, or a metric that no step reports.
    """
    state = None
    for number, (tasks, _) in enumerate(stages):
        first = as_tasks(tasks).first(key)
        if state is None:
            state = jax.eval_shape(trainer.init, key, first)
        try:
            logits_of(trainer.learner, state.variables, first)
            reported = no_totals(trainer, state, first, tasks_per_step)["sums"]
        except (TypeError, ValueError) as error:
            raise type(error)(f"stage {number}: {error}") from error
        if metric not in reported:
            raise ValueError(
                f"metric {metric!r} is not reported; there are {sorted(reported)}."
            )


def _checked(stages: Iterable[tuple[Tasks, int]]) -> list[tuple[Tasks, int]]:
    if not isinstance(stages, Iterable):
        raise ValueError(
            f"stages is {stages!r}; expected pairs of tasks and a number of steps."
        )
    stages = list(stages)
    if not stages:
        raise ValueError("stages is empty; expected pairs of tasks and a number of steps.")
    for stage in stages:
        if not isinstance(stage, (tuple, list)) or len(stage) != 2:
            raise ValueError(
                f"a stage is a {type(stage).__name__}; expected a pair of tasks and a "
                "number of steps, such as (ml.tasks.sinusoid(), 1000)."
            )
        kinds.count("the steps of a stage", stage[1])
        as_tasks(stage[0])  # a wrong last stage costs none of the others
    return [(tasks, int(steps)) for tasks, steps in stages]


def _ratio(worse: float | None, metric: str, said: bool | None) -> float:
    """The ratio of two windows beyond which the later one is worse."""
    if worse is not None:
        checks.number("worse", worse, positive=True)
        if worse == 1:
            raise ValueError(
                "worse is 1; expected a ratio above one for a loss, below one for an "
                "accuracy."
            )
    more = metrics.higher_is_better(metric, said)
    if worse is None:
        return 0.85 if more else 1.25
    if more == (worse > 1):
        better, side = ("more", "below") if more else ("less", "above")
        raise ValueError(
            f"worse is {worse} for the metric {metric!r}, of which {better} is better; "
            f"expected a ratio {side} one. Give such a ratio, or say "
            f"higher_is_better={not more} if that is wrong."
        )
    return worse


def _is_worse(value: float, before: float, worse: float) -> bool:
    # The difference and not the quotient, whose direction a negative metric would turn.
    limit = before + (worse - 1) * abs(before)
    return value > limit if worse > 1 else value < limit


def _median(rows: list[dict[str, float]], metric: str, begun: int, part: int) -> float:
    """Median of the means of whole parts, or of all rows if a window has no whole part."""
    starts = [begun, *(row["step"] for row in rows)]
    whole = [
        row[metric]
        for start, row in zip(starts, rows, strict=False)
        if row["step"] - start == part
    ]
    return statistics.median(whole or [row[metric] for row in rows])
