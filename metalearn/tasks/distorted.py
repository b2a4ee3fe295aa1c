"""Image tasks whose images are turned, stretched, slanted and shifted at random."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from metalearn.core import checks
from metalearn.core.task import TaskSampler
from metalearn.core.types import Array, Key
from metalearn.tasks.augmented import ChangedImages
from metalearn.tasks.styles import image_tasks


def distorted(sampler: TaskSampler, strength: float = 0.2) -> TaskSampler:
    """Image tasks whose images are distorted, each by an affine map of its own.

    The pixel at p, counted from the centre, is what the image has at `A p + t`, between
    four pixels by bilinear interpolation and 0 outside. The entries of `A - I` are uniform
    in `-strength..strength`, so that an image is turned, stretched and slanted, and those
    of t uniform in `-strength/2..strength/2` of the sides. For meta-training of drawn
    characters, which are few and of which each drawer makes another: G. Koch, R. Zemel,
    R. Salakhutdinov, Siamese Neural Networks for One-shot Image Recognition, ICML deep
    learning workshop 2015, draw angle, shear, scale and shift one by one, each
    with probability one half. Labels and masks do not change.

    Args:
      sampler: Sampler of tasks whose inputs are images `[N, H, W, C]` of floats, with 0 for
        the background.
      strength: Largest change of an entry of the map, 0 or more and below 0.5, where maps
        cannot be told from one that folds the image to a line.

    Returns:
      A sampler of tasks of the same shapes.

    Raises:
      ValueError: `strength` is out of that range, or the inputs are no images.
      TypeError: `sampler` is neither a `TaskSampler` nor a function `key -> Task`, but a
        `TaskStream`, say.

    Example:
      >>> images, labels = jnp.ones((20, 8, 8, 1)), jnp.arange(20) // 4
      >>> tasks = ml.data.few_shot(images, labels, num_ways=3, num_query=2)
      >>> ml.tasks.distorted(tasks, 0.1)(jax.random.key(0)).support.x.shape
      (3, 8, 8, 1)
    """
    checks.number("strength", strength)
    # det A = (1 + a)(1 + d) - b c is least at (1 - s)^2 - s^2 = 1 - 2 s.
    if strength >= 0.5:
        raise ValueError(
            f"strength is {strength}; expected 0 or more and below 0.5, beyond which an "
            "image can fold to a line. Around 0.2 is usual."
        )
    sampler, _ = image_tasks(sampler)
    sample = ChangedImages(sampler.sample, _Affine(float(strength)))
    return TaskSampler(sample, sampler.data, f"{sampler.name} (distorted)")


@dataclasses.dataclass(frozen=True)
class _Affine:
    """Draws an affine map for each image."""

    strength: float

    def __call__(self, x: Array, key: Key) -> Array:
        k_matrix, k_shift = jax.random.split(key)
        reach = self.strength
        num, dtype = len(x), x.dtype
        changes = jax.random.uniform(k_matrix, (num, 2, 2), dtype, -reach, reach)
        shifts = jax.random.uniform(k_shift, (num, 2), dtype, -reach / 2, reach / 2)
        sides = jnp.asarray(x.shape[1:3], dtype)
        matrices = changes + jnp.eye(2, dtype=dtype)[None]
        return jax.vmap(affine)(x, matrices, shifts * sides[None])


def affine(image: Array, matrix: Array, shift: Array) -> Array:
    """Image `[H, W, C]` whose pixel at p from the centre is that at `matrix p + shift`."""
    height, width, channels = image.shape
    axes = [jnp.arange(n, dtype=image.dtype) - (n - 1) / 2 for n in (height, width)]
    places = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))  # [2, H, W]
    centre = jnp.asarray([(height - 1) / 2, (width - 1) / 2], image.dtype)
    at = jnp.einsum("ij,jhw->ihw", matrix, places) + (shift + centre)[:, None, None]

    def channel(values: Array) -> Array:
        return map_coordinates(values, [at[0], at[1]], order=1, mode="constant", cval=0.0)

    return jnp.stack([channel(image[..., c]) for c in range(channels)], -1)
