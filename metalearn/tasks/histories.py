"""Tasks from histories of different lengths: all that a user has rated but the queries."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, given
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree

MOST_GROUP = 2**31 - 1  # what `info` holds


def histories(
    x: PyTree,
    y: Any,
    group: Any,
    *,
    num_query: int = 10,
    least_support: int = 3,
    most_support: int = 90,
    shown: int | None = None,
    is_query: Any = None,
    name: str = "histories",
) -> TaskSampler:
    """Tasks of groups of rows, such as users, whose numbers of rows differ.

    A task draws a group, `num_query` of its rows as queries, and as support all its other
    rows, but at most `most_support` of them. Rows are drawn without replacement, in random
    order. A support set has room for `most_support` rows; those that are left are masked.

    Args:
      x: Inputs, a pytree with leaves `[R, ...]`.
      y: Targets `[R]` or `[R, D]`.
      group: Number of the group of each row, int `[R]`, 0 or more.
      num_query: Q, number of query rows of a task.
      least_support: Smallest number of support rows; groups with fewer rows than these and
        the queries are left out. With 0, a support set may be empty.
      most_support: Largest number of support rows, the size of a support set.
      shown: Number of these rows that a task shows, the first ones of their random order;
        all if None. So samplers that differ in it alone draw the same queries, and the
        support set of one is part of that of another.
      is_query: Mask of the rows that may be queries, bool `[R]`; the others are support.
        All rows may be either if None.
      name: Name in logs and results.

    Returns:
      A sampler. `info` holds `task`, the number of the group. `sampler.sample` tells
      `num_tasks`, the number of groups that are drawn from, and `left_out`.

    Raises:
      TypeError: `group` is not of integer type, or `is_query` is not bool.
      ValueError: leading axes differ, an option is out of range, values are not finite, or
        no group has enough rows.

    Example:
      >>> x, y = jnp.arange(9.0)[:, None], jnp.ones((9, 1))
      >>> tasks = ml.tasks.histories(x, y, [0, 0, 0, 0, 0, 1, 1, 1, 1], num_query=2,
      ...                            least_support=1, most_support=4)
      >>> task = tasks(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.shape, int(task.support.mask.sum()) in (2, 3)
      ((4, 1), (2, 1), True)
    """
    checks.whole_number("num_query", num_query, least=1)
    checks.whole_number("least_support", least_support, least=0)
    checks.whole_number("most_support", most_support, least=max(least_support, 1))
    shown = most_support if shown is None else shown
    checks.whole_number("shown", shown, least=1, most=most_support)
    group, queries = _checked(x, y, group, is_query)
    both = is_query is None
    # Rows sorted by group, and within a group those that may be queries first.
    names, place = np.unique(group, return_inverse=True)
    order = np.lexsort((~queries, place))
    counts = np.bincount(place)
    num_queries = np.bincount(place, weights=queries).astype(np.int64)
    enough = (
        counts >= num_query + least_support
        if both
        else (num_queries >= num_query) & (counts - num_queries >= least_support)
    )
    kept = np.flatnonzero(enough)
    if not len(kept):
        raise ValueError(
            f"none of {len(counts)} groups has {num_query} query rows and "
            f"{least_support} support rows; the largest has {counts.max()} rows, and at "
            f"most {num_queries.max()} of one may be queries. Ask for fewer."
        )
    starts = np.cumsum(counts) - counts
    data = {
        "x": jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[order]), x),
        "y": jnp.asarray(np.asarray(y)[order]),
        "groups": jnp.asarray(names[kept], jnp.int32),
        "starts": jnp.asarray(starts[kept], jnp.int32),
        "counts": jnp.asarray(counts[kept], jnp.int32),
        "queries": jnp.asarray((counts if both else num_queries)[kept], jnp.int32),
    }
    sample = Histories(
        num_tasks=len(kept),
        largest=max(int(counts[kept].max()), num_query + most_support),
        num_query=int(num_query),
        most_support=int(most_support),
        shown=int(shown),
        apart=not both,
        left_out=len(counts) - len(kept),
    )
    return TaskSampler(sample, data, name)


@dataclasses.dataclass(frozen=True)
class Histories:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations.

    Attributes:
      num_tasks: Number of groups that are drawn from.
      largest: Number of rows of the largest group, or of a task if that is more.
      num_query: Number of query rows of a task.
      most_support: Largest number of support rows that are drawn.
      shown: Number of them that a task shows, the size of a support set.
      apart: Whether queries come from rows of their own, the first ones of a group.
      left_out: Number of groups that have too few rows.
    """

    num_tasks: int
    largest: int
    num_query: int
    most_support: int
    shown: int
    apart: bool
    left_out: int = dataclasses.field(compare=False)

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_group, k_rows = jax.random.split(key)
        return self.one(data, jax.random.randint(k_group, (), 0, self.num_tasks), k_rows)

    def one(self, data: PyTree, number: Array, key: Key) -> Task:
        """A task of the group at place `number`; the key draws its rows."""
        count, queries = data["counts"][number], data["queries"][number]
        place, num, most = jnp.arange(self.largest), self.num_query, self.most_support
        # The order of random scores is a random order; what may not be drawn has -1.
        scores = jax.random.uniform(key, (self.largest,))

        def drawn(allowed: Array, size: int) -> Array:
            return jax.lax.top_k(jnp.where(allowed, scores, -1), size)[1]

        if self.apart:
            query = drawn(place < queries, num)
            support = drawn((place >= queries) & (place < count), most)
            left = count - queries
        else:
            rows = drawn(place < count, num + most)
            query, support, left = rows[:num], rows[num:], count - num
        start = data["starts"][number]

        def part(rows: Array, mask: Array) -> Examples:
            # A masked row shows the first one of the group, so that it is finite.
            rows = start + jnp.where(mask, rows, 0)
            x = jax.tree.map(lambda leaf: leaf[rows], data["x"])
            return Examples(x=x, y=data["y"][rows], mask=mask)

        return Task(
            support=part(support[: self.shown], jnp.arange(self.shown) < left),
            query=part(query, jnp.ones((num,), bool)),
            info={"task": data["groups"][number]},
        )


def _checked(x: PyTree, y: Any, group: Any, is_query: Any) -> tuple[np.ndarray, np.ndarray]:
    """Group and mask of queries of each row."""
    given.check_kept(x, "x")
    given.check_kept(y, "y")
    given.check_unmasked(group, "group")
    given.check_unmasked(is_query, "is_query")
    group = np.asarray(group)
    if group.shape == (0,):
        raise ValueError("group is empty; expected one row or more.")
    if group.ndim != 1 or group.dtype.kind not in "iu":
        raise TypeError(
            f"group has shape {group.shape} and dtype {group.dtype}; expected whole "
            "numbers [R], one a row. Number the names: names, group = numpy.unique(names, "
            "return_inverse=True)."
        )
    if group.min() < 0 or group.max() > MOST_GROUP:
        row = int(group.argmin() if group.min() < 0 else group.argmax())
        raise ValueError(
            f"group has {group[row]} in row {row}, counted from 0; expected numbers from 0 "
            f"to {MOST_GROUP:,}. Number the names: names, group = numpy.unique(names, "
            "return_inverse=True)."
        )
    mask = np.ones(len(group), bool) if is_query is None else np.asarray(is_query)
    if mask.dtype != bool:
        raise TypeError(f"is_query has dtype {mask.dtype}; expected bool.")
    parts = {"x": x, "y": y, "is_query": mask}
    for part, tree in parts.items():
        if isinstance(tree, (list, tuple)) or not jax.tree.leaves(tree):
            raise TypeError(
                f"{part} is a {type(tree).__name__}; expected an array, or a dictionary of "
                "arrays: give numpy.asarray of it."
            )
        for leaf in jax.tree.leaves(tree):
            if np.shape(leaf)[:1] != group.shape:
                raise ValueError(
                    f"{part} has shape {np.shape(leaf)} for {len(group)} rows of `group`; "
                    "expected one row each."
                )
            values = np.asarray(leaf)
            if not (values.dtype == bool or jnp.issubdtype(values.dtype, jnp.number)):
                raise TypeError(
                    f"{part} has dtype {values.dtype}; expected numbers. Number the names: "
                    "names, codes = numpy.unique(values, return_inverse=True)."
                )
            real = jnp.issubdtype(values.dtype, jnp.inexact)
            if real and not np.isfinite(values.astype(complex)).all():
                values = values.astype(complex)
                bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
                raise ValueError(
                    f"{part} is not finite in row {int(bad.argmax())}, counted from 0, and "
                    f"in {int(bad.sum())} of {len(bad)} rows. Drop or fill them."
                )
    return group.astype(np.int64), mask
