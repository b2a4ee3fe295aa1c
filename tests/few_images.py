"""A few images with labels, and the two ways of making tasks of them."""

import functools

import jax
import numpy as np
import pytest

from metalearn import data

RNG = np.random.default_rng(0)
NUM, WAYS = 24, 4
LABELS = np.arange(NUM) % WAYS
BYTES = RNG.integers(0, 256, (NUM, 12, 12, 3), np.uint8)
UNIT = (BYTES / 255).astype(np.float32)
STANDARD = (UNIT - UNIT.mean()) / UNIT.std()
SIZES = {"num_ways": 3, "num_support": 1, "num_query": 2}

few_shot = functools.partial(data.few_shot, **SIZES)
stream = functools.partial(data.stream, **SIZES)
BOTH = pytest.mark.parametrize("make", [few_shot, stream], ids=["few_shot", "stream"])


@functools.partial(jax.jit, static_argnums=0)
def some(sample, arrays, keys):
    return jax.vmap(functools.partial(sample, arrays))(keys)


def batch_of(tasks, num):
    if hasattr(tasks, "batches"):
        return next(iter(tasks.batches(num, 0)))
    batch = some(tasks.sample, tasks.data, jax.random.split(jax.random.key(0), num))
    return jax.tree.map(np.asarray, batch)


def drawn(tasks, num=8):
    """Images of some tasks."""
    return batch_of(tasks, num).support.x
