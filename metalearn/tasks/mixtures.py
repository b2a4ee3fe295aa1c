"""Heterogeneous tasks: a mixture of several distributions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.keys import of_seed
from metalearn.core.task import Examples, Task, TaskSampler, TaskStream, as_tasks
from metalearn.core.types import Key, PyTree


def mixture(
    samplers: Sequence[TaskSampler | Callable[[Key], Task]],
    weights: Sequence[float] | None = None,
    *,
    label: str = "family",
) -> TaskSampler:
    """Tasks of several distributions; each task is drawn from one of them.

    The benchmark Plain-Multi of H. Yao, Y. Wei, J. Huang, Z. Li, Hierarchically Structured
    Meta-learning, ICML 2019, is such a mixture of image sets.

    A sampler sees one part of its set, so nothing is compared here: what one set trains on
    may be what another one tests. `ml.data.disjoint` compares whole sets and leaves such
    classes out, or refuses them.

    Under `vmap` a task of every distribution is drawn, and one of the tasks is kept. To
    draw a task from `few_shot` is a gather, which costs little compared with a training
    step.

    Args:
      samplers: F distributions of tasks of equal shapes, such as those of `few_shot`.
      weights: Probabilities of the F distributions, up to a factor; equal if `None`.
      label: Name of the entry of `info` that holds the index of the distribution.

    Returns:
      A sampler. `info` holds the entries of all distributions and the index, int32. An
      entry that the drawn distribution lacks is zero.

    Raises:
      ValueError: `samplers` is empty, tasks differ in shapes or dtypes, weights are not
        probabilities, or an `info` has the label already.
      TypeError: a sampler is neither a `TaskSampler` nor a function `key -> Task`.

    Example:
      >>> lines = ml.tasks.function_families(families=("line",))
      >>> tasks = ml.tasks.mixture([ml.tasks.sinusoid(), lines], label="kind")
      >>> sorted(tasks(jax.random.key(0)).info)
      ['amplitude', 'coefficients', 'family', 'kind', 'phase']
    """
    if isinstance(samplers, TaskSampler) or not isinstance(samplers, Sequence):
        given = type(samplers).__name__
        raise TypeError(f"samplers is a {given}; expected a list of distributions.")
    if not isinstance(label, str) or not label:
        raise TypeError(f"label is {label!r}; expected the name of an entry of info.")
    samplers = [as_tasks(sampler) for sampler in samplers]
    if not samplers:
        raise ValueError("samplers is empty; expected at least one distribution of tasks.")
    for i, sampler in enumerate(samplers):
        if isinstance(sampler, TaskStream):
            raise TypeError(
                f"distribution {i} ({sampler.name!r}) is a TaskStream, which is read on "
                "the host. Give samplers on the device, as of ml.data.few_shot."
            )
    tasks = [shape_of_task(sampler) for sampler in samplers]
    names = [f"{i} ({s.name!r})" for i, s in enumerate(samplers)]
    info = _all_info(tasks, names, label)
    probabilities = _probabilities(weights, len(samplers))
    sample = _Mixture(
        tuple(s.sample for s in samplers),
        probabilities,
        # Sorted, so that equal mixtures are equal whatever the order of their entries.
        tuple(sorted((k, v.shape, v.dtype) for k, v in info.items())),
        label,
    )
    name = "+".join(s.name for s in samplers)
    return TaskSampler(sample, tuple(s.data for s in samplers), name)


@dataclasses.dataclass(frozen=True)
class _Mixture:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations.

    Attributes:
      samples: Function `sample` of each distribution.
      probabilities: Probability of each distribution.
      info: Name, shape and dtype of every entry of `info` except the label.
      label: Name of the entry with the index.
    """

    samples: tuple[Callable[[PyTree, Key], Task], ...]
    probabilities: tuple[float, ...]
    info: tuple[tuple[str, tuple[int, ...], Any], ...]
    label: str

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_family, k_task = jax.random.split(key)
        p = jnp.asarray(self.probabilities, jnp.float32)
        family = jax.random.choice(k_family, len(self.samples), p=p).astype(jnp.int32)

        def branch(number: int) -> Callable[[PyTree, Key], Task]:
            def draw(data: PyTree, key: Key) -> Task:
                task = self.samples[number](data[number], key)
                info = {
                    # Branches of a `switch` must return trees of one structure.
                    name: task.info.get(name, jnp.zeros(shape, dtype))
                    for name, shape, dtype in self.info
                }
                return dataclasses.replace(task, info=info)

            return draw

        branches = [branch(i) for i in range(len(self.samples))]
        task = jax.lax.switch(family, branches, data, k_task)
        return dataclasses.replace(task, info={**task.info, self.label: family})


def shape_of_task(sampler: TaskSampler) -> Task:
    """Shapes and dtypes of a task of the sampler.

    Raises:
      TypeError: the sampler does not return tasks.
    """
    # Shapes only: nothing is drawn and no image is copied.
    task = jax.eval_shape(sampler.sample, sampler.data, of_seed(0))
    if not isinstance(task, Task):
        raise TypeError(
            f"{sampler.name!r} gives a {type(task).__name__}; expected a function "
            "`key -> Task`."
        )
    return task


def _all_info(tasks: list[Task], names: list[str], label: str) -> dict[str, Any]:
    """Shapes of everything in `info`, after checking that all tasks fit together."""
    info: dict[str, Any] = {}
    for task, name in zip(tasks, names, strict=True):
        for part in ("support", "query"):
            first, found = (_shapes(getattr(t, part)) for t in (tasks[0], task))
            if first != found:
                raise ValueError(
                    f"tasks of distribution {name} have a {part} set of {found}, those of "
                    f"{names[0]} of {first}. Make ways, shots, queries and the shape of "
                    "images equal."
                )
        if label in task.info:
            raise ValueError(
                f"tasks of distribution {name} have {label!r} in info already; give "
                "another label."
            )
        for entry, value in task.info.items():
            if not hasattr(value, "shape"):
                raise ValueError(
                    f"info[{entry!r}] of distribution {name} is a {type(value).__name__}; "
                    "expected an array. Give each array a name of its own in info."
                )
            known = info.setdefault(entry, value)
            if (known.shape, known.dtype) != (value.shape, value.dtype):
                raise ValueError(
                    f"info[{entry!r}] of distribution {name} is {value.dtype} of shape "
                    f"{value.shape}, before it was {known.dtype} of shape {known.shape}. "
                    "Make them equal or leave the entry out."
                )
    return info


def _shapes(examples: Examples) -> str:
    parts = {"x": examples.x, "y": examples.y}
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape]}", parts))


def _probabilities(weights: Sequence[float] | None, num: int) -> tuple[float, ...]:
    try:
        given = np.asarray([1.0] * num if weights is None else weights)
    except ValueError:  # rows of different lengths
        given = np.asarray(None)
    numbers = given.dtype.kind in "iuf" and given.shape == (num,)
    if not numbers or not np.isfinite(given).all() or given.min() < 0 or not given.sum():
        raise ValueError(
            f"weights is {weights!r}; expected {num} numbers, one for each distribution, "
            "none negative and not all zero."
        )
    return tuple(float(w) for w in given / given.sum())
