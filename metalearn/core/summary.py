"""What a learner is made of, told from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalearn.core import checks, cost, flow, kinds, probe, trees
from metalearn.core.keys import of_seed
from metalearn.core.learner import MetaLearner
from metalearn.core.task import Examples, Task, Tasks, TaskStream, as_tasks
from metalearn.core.types import PyTree


class Row(NamedTuple):
    """One array of a learner.

    Attributes:
      path: Path of the leaf, such as "model/Dense_0/kernel".
      shape: Its shape.
      dtype: Name of its dtype.
      adapts: Whether each task has its own, made by `adapt`.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    adapts: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The numbers of a learner; `print` shows them as a table.

    Attributes:
      learner: Name and settings.
      params: Parameters, all learned in the outer loop.
      state: Arrays that are carried along, e.g. running averages.
      task: Shapes and dtypes of one task.
      task_bytes: Bytes of the arrays of one task.
      adapted_bytes: Bytes of what `adapt` makes for one task and no other shares.
      adaptation_bytes: Bytes that `adapt` writes in all, before the compiler fuses
        anything.
    """

    learner: str
    params: tuple[Row, ...]
    state: tuple[Row, ...]
    task: Task
    task_bytes: int
    adapted_bytes: int
    adaptation_bytes: int

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(row.size for row in self.params)

    @property
    def num_adapted(self) -> int:
        """Number of parameters that adapt."""
        return sum(row.size for row in self.params if row.adapts)

    def __str__(self) -> str:
        rows = [*self.params, *self.state]
        paths = max((len(row.path) for row in rows), default=0)
        shapes = max((len(_shape(row)) for row in rows), default=0)

        def line(row: Row) -> str:
            mark = "adapts" if row.adapts else ""
            return (
                f"  {mark:6}  {row.path:{paths}}  {_shape(row):{shapes}}  {row.size:>11,}"
            )

        lines = [self.learner, f"task of {cost.in_bytes(self.task_bytes)}"]
        for name in ("support", "query"):
            examples: Examples = getattr(self.task, name)
            told = (f"{part} {_leaves(getattr(examples, part))}" for part in ("x", "y"))
            lines.append(f"  {name:7}  {', '.join(told)}")
        lines.append(
            f"{self.num_params:,} parameters learned outside, of which "
            f"{self.num_adapted:,} adapt inside"
        )
        lines += map(line, self.params)
        if self.state:
            lines.append(f"state of {sum(row.size for row in self.state):,} numbers")
            lines += map(line, self.state)
        lines.append(
            f"adaptation to a task makes {cost.in_bytes(self.adapted_bytes)} of its own "
            f"and writes {cost.in_bytes(self.adaptation_bytes)}"
        )
        return "\n".join(lines)

    __repr__ = __str__


def summary(learner: MetaLearner, tasks: Task | Tasks) -> Summary:
    """Parameters, shapes and bytes of a learner, without computing anything.

    Args:
      learner: The learner.
      tasks: A task, a batch of tasks, or what draws them: a sampler, a stream, a function
        `key -> Task`.

    Returns:
      A `Summary`, which `print` shows as a table.

    Raises:
      TypeError: `learner` is no learner, or `tasks` are none.

    Example:
      >>> learner = ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=5)
      >>> print(ml.summary(learner, ml.tasks.sinusoid()))
    """
    kinds.learner(learner)
    task = _one(tasks)
    key = jax.eval_shape(lambda: of_seed(0))
    variables = jax.eval_shape(learner.init, key, task)
    closed, adapted = jax.make_jaxpr(
        lambda v, s, k: learner.adapt(v, s, key=k), return_shape=True
    )(variables, task.support, key)
    shared = [
        found.same is not None for found in flow.of_outputs(closed.jaxpr, closed.consts)
    ]
    own = {
        path: leaf
        for path, leaf, is_shared in zip(
            trees.leaf_paths(adapted), jax.tree.leaves(adapted), shared, strict=True
        )
        if not is_shared
    }
    return Summary(
        learner=repr(learner),
        params=_rows(variables.params, own),
        state=_rows(variables.state, {}),
        task=task,
        task_bytes=_size(task),
        adapted_bytes=_size(own),
        adaptation_bytes=cost.traced_bytes(closed.jaxpr),
    )


def _one(tasks: Any) -> Task:
    """Shapes of one task."""
    if not isinstance(tasks, Task):
        source = as_tasks(tasks)
        if isinstance(source, TaskStream):
            return probe.like(source.first())
        key = jax.eval_shape(lambda: of_seed(0))
        return jax.eval_shape(source.sample, source.data, key)
    if jnp.ndim(tasks.support.mask) == 2:
        tasks = jax.eval_shape(lambda t: jax.tree.map(lambda leaf: leaf[0], t), tasks)
    checks.one_task(tasks)
    return probe.like(tasks)


def _rows(tree: PyTree, own: dict[str, Any]) -> tuple[Row, ...]:
    # A parameter adapts if `adapt` computes the one of its path, with or without the part
    # "model" of learners that learn more than the model.
    computed = {path.removeprefix("params/").removeprefix("model/") for path in own}
    paths = trees.leaf_paths(tree)
    leaves = map(probe.like, jax.tree.leaves(tree))
    return tuple(
        Row(path, leaf.shape, leaf.dtype.name, path.removeprefix("model/") in computed)
        for path, leaf in zip(paths, leaves, strict=True)
    )


def _size(tree: PyTree) -> int:
    return sum(
        math.prod(leaf.shape) * getattr(leaf.dtype, "itemsize", 0)
        for leaf in jax.tree.leaves(tree)
    )


def _shape(row: Any) -> str:
    return f"[{', '.join(map(str, row.shape))}] {row.dtype}"


def _leaves(tree: PyTree) -> str:
    return " and ".join(_shape(leaf) for leaf in jax.tree.leaves(tree))
