"""Judgement while training runs: when, on which tasks, and by which number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from metalearn.core import checks, given, kinds, mesh, metrics
from metalearn.core.keys import of_seed
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables
from metalearn.core.task import Tasks, TaskSampler, as_tasks
from metalearn.core.types import LossFn
from metalearn.training.evaluation import evaluate
from metalearn.training.judgement import Metric, check_judgement, check_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """How training is judged while it runs, on classes held back for that.

    Attributes:
      tasks: Sampler over meta-validation classes; never meta-test ones.
      learner: Learner whose `adapt` and `predict` are used; the trained one when `None`.
      loss_fn: Loss of one task, as in `evaluate`.
      metrics: Further metrics `{name: (outputs, examples) -> scalar}`, as in `evaluate`.
      num_tasks: Number of tasks of each validation, always the same ones.
      every: Steps between validations; a fifth of those of training, 500 at most, when
        `None`. There is one after the last step as well.
      start: Whether the variables that training starts from are judged too, and kept if no
        later ones are better.
      metric: Name of the number that decides.
      patience: Validations without improvement after which training stops; `None` never.
      seed: Seed of the validation tasks.
      higher_is_better: Whether more of `metric` is better; `None` for the metrics of
        `ml.metrics.HIGHER_IS_BETTER`, which says it.

    Raises:
      TypeError: an argument is of another kind.
      ValueError: a number out of range, or nothing says whether more of `metric` is better.
    """

    tasks: Tasks
    learner: MetaLearner | None = None
    loss_fn: LossFn | None = None
    metrics: Mapping[str, Metric] | None = None
    num_tasks: int = 200
    every: int | None = None
    start: bool = False
    metric: str = "query/accuracy"
    patience: int | None = None
    seed: int = 0
    higher_is_better: bool | None = None

    def __post_init__(self):
        as_tasks(self.tasks)
        if self.learner is not None:
            kinds.learner(self.learner, "learner of a validation")
        check_judgement(self.loss_fn, self.metrics)
        kinds.count("num_tasks of a validation", self.num_tasks, least=2)
        if self.every is not None:
            checks.whole_number("every of a validation", self.every, least=1)
        given.flag("start of a validation", self.start)
        if self.patience is not None:
            checks.whole_number("patience of a validation", self.patience, least=1)
        kinds.count("seed of a validation", self.seed, least=0)
        metrics.higher_is_better(self.metric, self.higher_is_better)

    def identity(self) -> dict[str, Any]:
        """What decides between variables, as JSON values."""
        return {
            "metric": self.metric,
            "tasks": as_tasks(self.tasks).name,
            "num_tasks": int(self.num_tasks),
            "seed": int(self.seed),
        }

    def improves(self, value: float, best: float | None) -> bool:
        """Whether a value is better than the best so far; never if it is no number."""
        if not math.isfinite(value):
            return False
        if best is None:
            return True
        more = metrics.higher_is_better(self.metric, self.higher_is_better)
        return value > best if more else value < best

    def measure(self, variables: Variables) -> dict[str, float]:
        """Means over the validation tasks, as `evaluate` names them.

        The learner has to be known by now; see `prepared`.
        """
        result = evaluate(
            self.learner,
            variables,
            self.tasks,
            self.loss_fn,
            num_tasks=self.num_tasks,
            key=of_seed(self.seed),
            metrics=self.metrics,
        )
        return {
            name: float(np.mean(values, dtype=np.float64))
            for name, values in result.values.items()
        }


def prepared(
    validation: Validation, learner: MetaLearner, variables: Variables
) -> Validation:
    """The same with its learner, and with data that need not travel at each validation.

    Looks at one validation task now, so that training does not end in its error.

    Raises:
      ValueError: bad data, or the metric is not reported.
    """
    tasks = as_tasks(validation.tasks)
    if isinstance(tasks, TaskSampler):
        tasks = tasks._replace(data=mesh.everywhere(tasks.data))
    learner = validation.learner or learner
    first = tasks.first(of_seed(validation.seed))
    judged = (validation.loss_fn, validation.metrics)
    reported = check_task(learner, variables, first, *judged)
    if validation.metric not in reported:
        raise ValueError(
            f"validation metric {validation.metric!r} is not reported; there are "
            f"{sorted(reported)}."
        )
    return dataclasses.replace(validation, tasks=tasks, learner=learner)
