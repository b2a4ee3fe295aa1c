"""Image tasks whose images are shifted and mirrored at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from metalearn.core import checks, given
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree
from metalearn.tasks.styles import image_tasks


def augmented(sampler: TaskSampler, *, shift: int = 4, mirror: bool = True) -> TaskSampler:
    """Image tasks whose images are shifted and mirrored, each by a draw of its own.

    An image moves by up to `shift` pixels along both axes, uniformly over the whole
    numbers, and what comes in is black: a random crop of the padded image, as in K. He,
    X. Zhang, S. Ren, J. Sun, Deep Residual Learning, CVPR 2016, section 4.2. Half of the
    images are mirrored left to right. For meta-training of photographs; characters are
    others when mirrored. Labels and masks do not change.

    Args:
      sampler: Sampler of tasks whose inputs are images `[N, H, W, C]` of floats, with 0 for
        black.
      shift: Largest shift in pixels, 0 or more and below both sides.
      mirror: Whether images are mirrored with probability one half.

    Returns:
      A sampler of tasks of the same shapes.

    Raises:
      ValueError: `shift` is no whole number in that range, or the inputs are no images.
      TypeError: `sampler` is neither a `TaskSampler` nor a function `key -> Task`, but a
        `TaskStream`, say; or `mirror` is no bool.

    Example:
      >>> images, labels = jnp.ones((20, 8, 8, 3)), jnp.arange(20) // 4
      >>> tasks = ml.data.few_shot(images, labels, num_ways=3, num_query=2)
      >>> ml.tasks.augmented(tasks, shift=2)(jax.random.key(0)).support.x.shape
      (3, 8, 8, 3)
    """
    checks.whole_number("shift", shift, least=0)
    given.flag("mirror", mirror)
    sampler, task = image_tasks(sampler)
    side = min(min(e.x.shape[1:3]) for e in (task.support, task.query))
    if shift >= side:
        raise ValueError(
            f"shift is {shift} for images with a side of {side} pixels; expected less than "
            "the side, so that something of the image stays."
        )
    change = _Moved(int(shift), bool(mirror))
    sample = ChangedImages(sampler.sample, change)
    return TaskSampler(sample, sampler.data, f"{sampler.name} (augmented)")


@dataclasses.dataclass(frozen=True)
class ChangedImages:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations.

    Attributes:
      sample: Function `(data, key) -> Task` that draws the images.
      change: Function `(images, key) -> images` of equal shape `[N, H, W, C]`.
    """

    sample: Callable[[PyTree, Key], Task]
    change: Callable[[Array, Key], Array]

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_task, k_support, k_query = jax.random.split(key, 3)
        task = self.sample(data, k_task)
        return dataclasses.replace(
            task,
            support=self._changed(task.support, k_support),
            query=self._changed(task.query, k_query),
        )

    def _changed(self, examples: Examples, key: Key) -> Examples:
        return dataclasses.replace(examples, x=self.change(examples.x, key))


@dataclasses.dataclass(frozen=True)
class _Moved:
    """Shifts and mirrors images."""

    shift: int
    mirror: bool

    def __call__(self, x: Array, key: Key) -> Array:
        k_shift, k_mirror = jax.random.split(key)
        reach = self.shift
        if reach:
            corners = jax.random.randint(k_shift, (len(x), 2), 0, 2 * reach + 1)
            wide = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))

            def cut(image: Array, corner: Array) -> Array:
                start = (corner[0], corner[1], 0)
                return jax.lax.dynamic_slice(image, start, x.shape[1:])

            x = jax.vmap(cut)(wide, corners)
        if self.mirror:
            turned = jax.random.bernoulli(k_mirror, shape=(len(x), 1, 1, 1))
            # Images are data: neither branch has a derivative.
            x = jnp.where(turned, x[:, :, ::-1], x)
        return x
