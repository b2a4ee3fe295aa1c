"""Image tasks in several styles: original, blurred, edges, inverted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks
from metalearn.core.keys import of_seed
from metalearn.core.task import Examples, Task, TaskSampler, TaskStream, as_tasks
from metalearn.core.types import Array, Key, PyTree
from metalearn.tasks.mixtures import shape_of_task

_SLACK = 0.1  # of interpolation, which overshoots at edges


def styled(
    sampler: TaskSampler,
    styles: Sequence[str] = ("original", "blurred", "edges"),
    *,
    blur: float = 1.0,
) -> TaskSampler:
    """Image tasks in several styles; each task has one style, drawn uniformly.

    These tasks follow Art-Multi of H. Yao, X. Wu, Z. Tao, Y. Li, B. Ding, R. Li,
    Z. Li, Automated Relational Meta-learning, ICLR 2020, which shows images unchanged,
    blurred, and as pencil drawings. The support and the query set of a task have the same
    style. Labels and masks do not change.

    Args:
      sampler: Sampler of tasks whose inputs are images `[N, H, W, C]` of floats in 0..1.
      styles: S styles out of "original", "blurred" (Gaussian), "edges" (a quarter of the
        magnitude of the Sobel gradient, at most 1) and "inverted".
      blur: Standard deviation of "blurred" in pixels.

    Returns:
      A sampler. `info["style"]` is an index into `styles`, int32.

    Raises:
      ValueError: `styles` is empty or has an unknown name, the inputs are no images of
        0..1, or `info` has a style already.
      TypeError: `sampler` is neither a `TaskSampler` nor a function `key -> Task`.

    Example:
      >>> images, labels = jnp.ones((20, 8, 8, 1)), jnp.arange(20) // 4
      >>> tasks = ml.data.few_shot(images, labels, num_ways=3, num_query=2)
      >>> task = ml.tasks.styled(tasks, ("original", "edges"))(jax.random.key(0))
      >>> task.support.x.shape, sorted(task.info)
      ((3, 8, 8, 1), ['class_ids', 'num_ways', 'style'])
    """
    given = (styles,) if isinstance(styles, str) else styles
    listed = isinstance(given, Sequence) and len(given) > 0
    if not listed or any(style not in list(STYLES) for style in given):
        raise ValueError(f"styles is {styles!r}; expected some of {', '.join(STYLES)}.")
    styles = tuple(given)
    checks.number("blur", blur, positive=True)
    sampler, task = image_tasks(sampler)
    if "style" in task.info:
        raise ValueError("tasks have 'style' in info already; style them once.")
    if not set(styles) <= {"original", "blurred"}:
        check_range(sampler.first(of_seed(0)))
    sample = _Styled(sampler.sample, styles, float(blur))
    return TaskSampler(sample, sampler.data, f"{sampler.name} ({', '.join(styles)})")


def image_tasks(sampler: Any) -> tuple[TaskSampler, Task]:
    """Checks a sampler of images; returns the sampler and the shapes of a task.

    Raises:
      TypeError: `sampler` is not a sampler on the device.
      ValueError: the inputs are not images of floats.
    """
    sampler = as_tasks(sampler)
    if isinstance(sampler, TaskStream):
        raise TypeError(
            f"the tasks ({sampler.name!r}) are a TaskStream, which is read on the host. "
            "Give a sampler on the device, as of ml.data.few_shot."
        )
    task = shape_of_task(sampler)
    x = task.support.x
    if getattr(x, "ndim", 0) != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"inputs are {jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), x)}; "
            "expected images [N, H, W, C] of floats."
        )
    return sampler, task


def check_range(task: Task) -> None:
    """Refuses images outside 0..1, of which "inverted" and "edges" would make others.

    Raises:
      ValueError: the images of the task leave 0..1.
    """
    x = np.asarray(task.support.x)[np.asarray(task.support.mask)]
    low, high = float(x.min(initial=0)), float(x.max(initial=0))
    if low < -_SLACK or high > 1 + _SLACK:
        raise ValueError(
            f"images run from {low:g} to {high:g}; styles are made of floats in 0..1 "
            "(white less the image is its inverse). Scale the images to 0..1 before, and "
            "standardise in the network."
        )


@dataclasses.dataclass(frozen=True)
class _Styled:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations."""

    sample: Callable[[PyTree, Key], Task]
    styles: tuple[str, ...]
    blur: float

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_style, k_task = jax.random.split(key)
        style = jax.random.randint(k_style, (), 0, len(self.styles), jnp.int32)
        task = self.sample(data, k_task)
        branches = [functools.partial(STYLES[name], blur=self.blur) for name in self.styles]

        def shown(examples: Examples) -> Examples:
            # Under `vmap` a switch computes all styles; that is little beside the network.
            x = jax.lax.switch(style, branches, examples.x)
            return dataclasses.replace(examples, x=x)

        return Task(
            support=shown(task.support),
            query=shown(task.query),
            info={**task.info, "style": style},
        )


def _blurred(x: Array, *, blur: float) -> Array:
    """Gaussian blur, cut off at four standard deviations; the border is repeated."""
    reach = int(4 * blur + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / blur) ** 2)
    # Python floats, so that the dtype of the images is kept.
    weights = (weights / weights.sum()).tolist()
    return _filtered(_filtered(x, weights, 1), weights, 2)


def _edges(x: Array, *, blur: float) -> Array:
    """A quarter of the magnitude of the Sobel gradient, at most 1."""
    del blur
    smooth, slope = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)
    down = _filtered(_filtered(x, slope, 1), smooth, 2)
    right = _filtered(_filtered(x, smooth, 1), slope, 2)
    # The root has no finite derivative at 0. Images are data, so none is taken.
    return jnp.minimum(jnp.sqrt(down**2 + right**2) / 4, 1)


def _filtered(x: Array, weights: Sequence[float], axis: int) -> Array:
    """Correlation with `weights` along an axis, the border repeated."""
    reach, size = len(weights) // 2, x.shape[axis]
    pad = [(0, 0)] * x.ndim
    pad[axis] = (reach, reach)
    wide = jnp.pad(x, pad, "edge")
    parts = [
        weight * jax.lax.slice_in_dim(wide, i, i + size, axis=axis)
        for i, weight in enumerate(weights)
        if weight
    ]
    return sum(parts[1:], parts[0])


STYLES = {
    "original": lambda x, *, blur: x,
    "blurred": _blurred,
    "edges": _edges,
    "inverted": lambda x, *, blur: 1 - x,
}
