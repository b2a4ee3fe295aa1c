"""Why a step was not finite: first its data, then which part of the step it was."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from metalearn.core import trees
from metalearn.core.task import Task
from metalearn.training.loop import NonFiniteGradient, Totals, named_metrics
from metalearn.training.trainer import FAULTS

_LOWER = (
    "Lower the inner or outer rate, clip gradients (ml.inner.clip_by_global_norm in an "
    "inner optimiser, optax.clip_by_global_norm in the outer one), or give adaptive inner "
    "optimisers an eps_root."
)


def not_finite(
    totals: Totals, tasks_of: Callable[[int], Task], *, where: str = "", kept: str
) -> NonFiniteGradient:
    """The error of the first step that was not finite.

    Args:
      totals: Sums of the window in which the step lies.
      tasks_of: `step -> tasks [T, ...]`, drawn once more.
      where: What else tells the step, such as ", during task 3".
      kept: What is as it was before the step.
    """
    step, fault = int(totals["first_bad"]), int(totals["fault"])
    parts = [words for bit, words in FAULTS.items() if fault & bit]
    if names := named_metrics(totals):
        named = f"the metric {' and '.join(names)}"
        parts = [named if words == FAULTS[2] else words for words in parts]
    found = " and ".join(parts) or "the meta-gradient, a metric or the update"
    cause = _cause(step, fault, tasks_of)
    return NonFiniteGradient(
        f"step {step} is not finite{where}: found in {found}. {kept} {cause}"
    )


def _cause(step: int, fault: int, tasks_of: Callable[[int], Task]) -> str:
    data = ""
    if jax.process_count() == 1:
        if bad := _bad_data(tasks_of(step)):
            return (
                f"The data of the step are the cause: {bad}. Clean them, or put zeros in "
                "masked rows."
            )
        data = "The data of the step are finite. "
    if fault == 4:
        return (
            f"{data}So is the meta-gradient: the outer optimiser makes the fault. Look at "
            "its rate and its schedule."
        )
    if fault == 8:
        return (
            f"{data}So is the meta-gradient: the running averages of the model are at "
            "fault. Look at the sizes of its inputs."
        )
    if step == 0:
        data += (
            "No outer step had been done, so the outer rate is not the cause: look at the "
            "inner rate, at the loss and at the sizes of inputs and targets. "
        )
    return data + _LOWER


def _bad_data(tasks: Task) -> str:
    """Which leaf of a batch is not finite, in words; empty if all are."""
    for part in ("support", "query"):
        examples = getattr(tasks, part)
        for name in ("x", "y"):
            leaves = jax.tree_util.tree_leaves_with_path(getattr(examples, name))
            for path, leaf in leaves:
                if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact):
                    continue
                bad = ~np.isfinite(np.asarray(leaf).astype(np.float64))
                of_task = bad.reshape(len(bad), -1).sum(1)
                if of_task.any():
                    task, inside = int(np.argmax(of_task > 0)), trees.path_string(path)
                    place = f"{part}.{name}" + (f" at {inside}" if inside else "")
                    count = f"{of_task[task]} numbers that are not finite"
                    return f"{place} of task {task} holds {count}"
    return ""
