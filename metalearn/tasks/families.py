"""Few-shot regression of functions from four families, the toy benchmark of HSML."""

from __future__ import annotations

import functools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree

FAMILIES = ("sine", "line", "quadratic", "cubic")

# Ranges of the coefficients, constant term last. A sine is `a sin(w x) + b`, because the
# phase of the paper is an offset in the released code.
_RANGES = {
    "sine": ((0.1, 5.0), (0.8, 1.2), (0.0, 2 * np.pi)),
    "line": ((-3.0, 3.0), (-3.0, 3.0)),
    "quadratic": ((-0.2, 0.2), (-2.0, 2.0), (-3.0, 3.0)),
    "cubic": ((-0.1, 0.1), (-0.2, 0.2), (-2.0, 2.0), (-3.0, 3.0)),
}


def function_families(
    num_support: int = 10,
    num_query: int = 10,
    families: Collection[str] = FAMILIES,
) -> TaskSampler:
    """Sines, lines, quadratics and cubics without noise; each task has one family.

    The inputs are `x ~ U[-5, 5]`, and the family is uniform. The coefficients are those of
    H. Yao, Y. Wei, J. Huang, Z. Li, Hierarchically Structured Meta-learning, ICML 2019, and
    its released code.

    Args:
      num_support: Number N of support points ("shots").
      num_query: Number Q of query points, drawn independently.
      families: Names out of `FAMILIES` to draw from.

    Returns:
      A sampler, the same object for equal arguments. The tasks have `x` and `y`, float
      `[N, 1]`. Their `info` holds `family`, an index into `FAMILIES`, and `coefficients`
      `[4]`, which `curve` reads.

    Raises:
      TypeError: `families` is not several names.
      ValueError: a number of points is below one, or `families` is empty or has an unknown
        name.

    Example:
      >>> task = ml.tasks.function_families(num_support=5)(jax.random.key(0))
      >>> task.support.x.shape, sorted(task.info)
      ((5, 1), ['coefficients', 'family'])
    """
    checks.whole_number("num_support", num_support, least=1)
    checks.whole_number("num_query", num_query, least=1)
    several = isinstance(families, Collection) and not isinstance(families, str)
    if not several or not all(isinstance(name, str) for name in families):
        raise TypeError(
            f"families is {families!r}; expected several names out of {FAMILIES}."
        )
    if not families or not set(families) <= set(FAMILIES):
        raise ValueError(f"families is {families}; expected some of {FAMILIES}.")
    return _sampler(num_support, num_query, tuple(families))


@functools.lru_cache
def _sampler(num_support: int, num_query: int, families: tuple[str, ...]) -> TaskSampler:
    # The cache keeps NumPy arrays. JAX arrays, if made while a caller is traced, would
    # belong to that trace and fail in the next.
    drawn = np.asarray([FAMILIES.index(name) for name in families], np.int32)
    padded = np.zeros((len(FAMILIES), 4, 2), np.float32)
    for row, name in enumerate(FAMILIES):
        ranges = _RANGES[name]
        padded[row, 4 - len(ranges) :] = ranges

    def sample(data: PyTree, key: Key) -> Task:
        del data
        k_family, k_coefficients, k_x = jax.random.split(key, 3)
        family = jax.random.choice(k_family, jnp.asarray(drawn))
        unit = jax.random.uniform(k_coefficients, (4,))
        low, high = jnp.unstack(jnp.asarray(padded, unit.dtype)[family], axis=-1)
        coefficients = low + (high - low) * unit
        shape = (num_support + num_query, 1)
        x = jax.random.uniform(k_x, shape, minval=-5.0, maxval=5.0)
        y = curve(family, coefficients, x)
        return Task(
            support=Examples.of(x[:num_support], y[:num_support]),
            query=Examples.of(x[num_support:], y[num_support:]),
            info={"family": family, "coefficients": coefficients},
        )

    return TaskSampler(sample, (), f"{'-'.join(families)}-{num_support}shot")


def curve(family: Array, coefficients: Array, x: Array) -> Array:
    """Values at `x` of the function that a task was drawn from.

    Args:
      family: Int32 scalar, index into `FAMILIES`.
      coefficients: Coefficients of the family `[4]`, the constant term last, padded with
        zeros in front.
      x: Points of any shape.

    Example:
      >>> line = ml.tasks.FAMILIES.index("line")
      >>> curve(line, jnp.array([0.0, 0.0, 2.0, 1.0]), jnp.array([0.0, 3.0])).tolist()
      [1.0, 7.0]
    """
    c3, c2, c1, c0 = coefficients
    sine = c2 * jnp.sin(c1 * x) + c0
    polynomial = ((c3 * x + c2) * x + c1) * x + c0
    # Both curves are finite for all coefficients, so the unused one spoils no derivative.
    return jnp.where(family == FAMILIES.index("sine"), sine, polynomial)
