"""What judges a learner: its own loss or a given one, accuracy, and metrics of users."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds, labels, trees
from metalearn.core import metrics as metrics_of
from metalearn.core.keys import of_seed
from metalearn.core.learner import MetaLearner, hashable
from metalearn.core.model import Variables
from metalearn.core.pairing import paired
from metalearn.core.programs import kept_with_owner
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, LossFn, PyTree

Metric = Callable[[PyTree, Examples], Array]
Judgement = tuple[LossFn | None, tuple[tuple[str, Metric], ...]]


def check_judgement(
    loss_fn: LossFn | None, metrics: Mapping[str, Metric] | None
) -> Judgement:
    """The loss and the further metrics as the key of a cache.

    Raises:
      TypeError: a function of other arguments, or a name that is no string.
      ValueError: the name of a metric that is reported anyway.
    """
    wanted = ("outputs", "examples")
    kinds.function("loss_fn", loss_fn, wanted, "ml.losses.mse", optional=True)
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(
            f"metrics is a {type(metrics).__name__}; expected names and functions, such as "
            '{"query/f1": ml.metrics.f1}.'
        )
    for name, fn in (metrics or {}).items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"the metric {name!r} has no name; expected one as 'query/f1'.")
        if name in RESERVED:
            raise ValueError(
                f"the metric {name!r} is reported already; give another name, or loss_fn "
                "for another loss."
            )
        kinds.function(f"the metric {name!r}", fn, wanted, "ml.metrics.f1")
    pairs = ((name, hashable(fn)) for name, fn in (metrics or {}).items())
    return hashable(loss_fn), tuple(pairs)


COUNTED = ("digest", "outside", "unanswered", "stray", "ways", "not_finite")
RESERVED = ("query/loss", "query/accuracy", *COUNTED)


def check_task(
    learner: MetaLearner,
    variables: Variables,
    task: Task,
    loss_fn: LossFn | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> list[str]:
    """Checks the values of one concrete task, by shapes alone on the learner's side.

    Returns:
      The names that `evaluate` would report.

    Raises:
      ValueError: non-finite data, labels outside the logits or of masked ones; a metric is
        no scalar.
    """
    judged = check_judgement(loss_fn, metrics)
    outputs, reported = jax.eval_shape(_report_of(learner, judged), variables, task)
    for name, value in reported.items():
        if value.shape:
            raise ValueError(
                f"the metric {name!r} has shape {value.shape}; expected a scalar, the mean "
                "over the valid examples of a task."
            )
    _check_first(learner, judged[0], task, outputs)
    return list(reported)


def logits_of(learner: MetaLearner, variables: Variables, task: Task) -> int | None:
    """The number of logits that labels have to be within; checks one concrete task.

    Nothing is judged: how a learner trains need not be how it would be judged.

    Raises:
      ValueError: non-finite data, or labels outside the logits or of masked ones.
    """
    outputs, _ = jax.eval_shape(_report_of(learner, None), variables, task)
    return _check_first(learner, None, task, outputs)


def _check_first(
    learner: MetaLearner, loss_fn: LossFn | None, task: Task, outputs: PyTree
) -> int | None:
    ways = labels.num_classes(loss_fn or learner.loss_fn, outputs, task.query.y)
    checks.values_of_task(task, None if ways is None else outputs)
    if ways is not None and learner.masks_absent and (n := int(labels.unsupported(task))):
        raise ValueError(labels.no_answer(n, "the first task"))
    return ways


@kept_with_owner
def _report_of(
    learner: MetaLearner, judged: Judgement | None
) -> Callable[[Variables, Task], tuple[PyTree, dict[str, Array]]]:
    """One function a learner and judgement, so that a second check traces nothing."""

    def report(variables: Variables, task: Task):
        adapted = learner.adapt(variables, task.support, key=of_seed(0))
        query = task.query
        outputs = learner.predict(adapted, query.x, key=of_seed(0), mask=query.mask)
        return outputs, {} if judged is None else judge(learner, judged, outputs, query)

    return report


def judge(
    learner: MetaLearner, judged: Judgement, outputs: PyTree, query: Examples
) -> dict[str, Array]:
    """The metrics of one task, in float32 at least.

    The learner's own loss judges where no other is given; it is guessed from the targets
    only for learners that carry none.
    """
    loss_fn = judged[0] or learner.loss_fn or _guessed(query)
    report = metrics_of.of_task(loss_fn, outputs, query)
    report = {f"query/{name}": value for name, value in report.items()}
    report |= {name: jnp.asarray(paired(fn, outputs, query)) for name, fn in judged[1]}
    return {name: _real(value) for name, value in report.items()}


def _guessed(query: Examples) -> LossFn:
    loss_fn = metrics_of.default_loss(query)

    def guessed(outputs: PyTree, examples: Examples) -> Array:
        try:
            return loss_fn(outputs, examples)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"{error} This loss was guessed from the targets, because the learner "
                "carries none: give loss_fn=(outputs, examples) -> scalar, or "
                "ml.MetaLearner(..., loss_fn=...)."
            ) from error

    return functools.wraps(loss_fn)(guessed)


def _real(value: Array) -> Array:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value.astype(jnp.float32)
    return trees.widened(value)
