"""Few-shot regression of sine waves."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Key, PyTree


def sinusoid(num_support: int = 10, num_query: int = 10) -> TaskSampler:
    """Sine waves `y = A sin(x - phase)` of random amplitude and phase.

    The distributions are `A ~ U[0.1, 5]`, `phase ~ U[0, pi]` and `x ~ U[-5, 5]` (Finn et
    al. 2017, section 5.1).

    Args:
      num_support: Number N of support points ("shots").
      num_query: Number Q of query points, drawn independently.

    Returns:
      A sampler of tasks. They have `x` and `y`, float32 `[N, 1]`, and `info` with
      `amplitude` and `phase`.

    Example:
      >>> task = ml.tasks.sinusoid(num_support=10)(jax.random.key(0))
      >>> task.support.x.shape, sorted(task.info)
      ((10, 1), ['amplitude', 'phase'])
    """
    checks.whole_number("num_support", num_support, least=1)
    checks.whole_number("num_query", num_query, least=1)
    return _sampler(num_support, num_query)


# Behind the checks: to a cache 3.0 and True are the numbers 3 and 1.
@functools.lru_cache
def _sampler(num_support: int, num_query: int) -> TaskSampler:
    def sample(data: PyTree, key: Key) -> Task:
        del data
        k_amplitude, k_phase, k_x = jax.random.split(key, 3)
        amplitude = jax.random.uniform(k_amplitude, (), minval=0.1, maxval=5.0)
        phase = jax.random.uniform(k_phase, (), minval=0.0, maxval=jnp.pi)
        shape = (num_support + num_query, 1)
        x = jax.random.uniform(k_x, shape, minval=-5.0, maxval=5.0)
        y = amplitude * jnp.sin(x - phase)
        return Task(
            support=Examples.of(x[:num_support], y[:num_support]),
            query=Examples.of(x[num_support:], y[num_support:]),
            info={"amplitude": amplitude, "phase": phase},
        )

    return TaskSampler(sample, (), f"sinusoid-{num_support}shot")
