"""Tasks from a table of rows: each group of rows, such as a user, is a task."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, columns, kinds
from metalearn.core.columns import Columns, Table
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree


def from_table(
    table: Any,
    *,
    group: str,
    x: Sequence[str],
    y: str,
    num_support: int = 5,
    num_query: int = 5,
    classes: bool | None = None,
    categorical: Sequence[str] = (),
    encode: str = "one-hot",
    like: TaskSampler | None = None,
    name: str | None = None,
) -> TaskSampler:
    """Tasks from a table, one for each value of a column: the cold start of a user.

    A task draws a group, and from it `num_support + num_query` different rows in random
    order. The table is kept on the device, and the tasks are drawn there.

    Args:
      table: Data frame, dictionary of columns `[R]` or `[R, D]`, or structured array.
      group: Column that tells the tasks apart, such as "user".
      x: Input columns. Numbers are taken as they are, so scale what is large; text and
        categories become one-hot numbers, which follow the numbers, or codes: see `encode`.
      y: Target column. Numbers are targets of regression, float32 `[N, 1]`; text and
        categories are classes, int32 `[N]`.
      num_support: Number of support rows of a task.
      num_query: Number of query rows of a task.
      classes: Whether the target is a class. Default: whether it is text, a category or
        true and false; whole numbers are numbers unless this says True.
      categorical: Input columns of whole numbers that are names, such as "movie".
      encode: Word for what becomes of categories: "one-hot", beside the numbers in float32
        `[N, D]`; or "codes", for embeddings: `x` is then a dictionary of `numbers`, float32
        `[N, D]`, and `codes`, int32 `[N, C]`.
      like: Sampler of an earlier `from_table`, whose mapping from values to numbers is
        taken. Give the training tasks here when you make the test tasks.
      name: Name in logs and results.

    Returns:
      A sampler. `info` holds `task`, the number of the group. `sampler.sample` tells
      `num_tasks`, `groups` (value of each group), `left_out` (number of groups with too few
      rows, of which a warning tells), and `columns`, which holds the mapping.

    Raises:
      TypeError: `table` is something else.
      ValueError: a column is missing or unusable, a value is missing (with column and row)
        or unknown to `like`, or no group has enough rows.

    Example:
      >>> stars = [5, 3, 4, 2, 5, 1]
      >>> table = {"user": [1, 1, 1, 2, 2, 2], "film": list("abcabc"), "stars": stars}
      >>> tasks = ml.tasks.from_table(table, group="user", x=["film"], y="stars",
      ...                             num_support=2, num_query=1)
      >>> tasks(jax.random.key(0)).support.x.shape, tasks.sample.columns.categories
      ((2, 3), {'film': ('a', 'b', 'c')})
    """
    checks.whole_number("num_support", num_support, least=1)
    checks.whole_number("num_query", num_query, least=1)
    checks.one_of("encode", encode, ("one-hot", "codes"))
    read = Table(table)
    x, categorical = (_names(n, v) for n, v in (("x", x), ("categorical", categorical)))
    _check_columns(read, group, x, y, categorical)
    if like is None:
        meaning = _meaning(read, group, x, y, classes, categorical, encode)
    else:
        meaning = _meaning_of(like, group, x, y, classes, encode)
    groups = columns.values_of(read[group], group)
    places = columns.coded(read[group], groups, group)
    rows, kept = _rows_of_groups(places, group, groups, num_support + num_query)
    counts = np.asarray([len(r) for r in rows], np.int32)
    chosen = np.concatenate(rows)
    numbers, codes = meaning.inputs(read)
    data = {
        "numbers": numbers[chosen],
        "codes": codes[chosen],
        "y": meaning.targets(read)[chosen],
        "starts": np.cumsum(counts, dtype=np.int32) - counts,
        "counts": counts,
    }
    sample = TableTasks(
        *(len(rows), int(counts.max()), int(num_support), int(num_query)),
        one_hot=meaning.encode == "one-hot",
        widths=meaning.widths,
        columns=meaning,
        groups=tuple(groups[number] for number in kept),
        left_out=len(groups) - len(rows),
    )
    label = name or f"{group}-{num_support}shot"
    return TaskSampler(sample, jax.tree.map(jnp.asarray, data), label)


@dataclasses.dataclass(frozen=True)
class TableTasks:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations.

    Attributes:
      num_tasks: Number of groups that are drawn from.
      largest: Number of rows of the largest group.
      num_support: Number of support rows of a task.
      num_query: Number of query rows of a task.
      one_hot: Whether codes become one-hot numbers.
      widths: Number of values of each column of categories.
      columns: Meaning of the columns.
      groups: Value of each group, in the order of `info["task"]`.
      left_out: Number of groups that have too few rows.
    """

    num_tasks: int
    largest: int
    num_support: int
    num_query: int
    one_hot: bool
    widths: tuple[int, ...]
    columns: Columns = dataclasses.field(compare=False)
    groups: tuple = dataclasses.field(compare=False)
    left_out: int = dataclasses.field(compare=False)

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_group, k_rows = jax.random.split(key)
        number = jax.random.randint(k_group, (), 0, self.num_tasks)
        return self.one(data, number, k_rows)

    def one(self, data: PyTree, number: Array, key: Key) -> Task:
        """A task of group `number`; the key draws its rows."""
        cut = self.num_support
        inside = jnp.arange(self.largest) < data["counts"][number]
        total = cut + self.num_query
        rows = jax.random.choice(key, self.largest, (total,), False, inside / inside.sum())
        rows = data["starts"][number] + rows

        def part(rows: Array) -> Examples:
            x = self._inputs(data["numbers"][rows], data["codes"][rows])
            return Examples(x=x, y=data["y"][rows], mask=jnp.ones(rows.shape, bool))

        info = {"task": jnp.asarray(number, jnp.int32)}
        return Task(support=part(rows[:cut]), query=part(rows[cut:]), info=info)

    def _inputs(self, numbers: Array, codes: Array) -> PyTree:
        if not self.widths:
            return numbers
        if not self.one_hot:
            return {"numbers": numbers, "codes": codes}
        # Of the drawn rows only: the whole table would take its width in memory.
        wide = [jax.nn.one_hot(codes[:, i], num) for i, num in enumerate(self.widths)]
        return jnp.concatenate([numbers, *wide], axis=1)


def _names(option: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, str) or not hasattr(names, "__iter__"):
        raise TypeError(
            f"{option} is {names!r}; expected a list of names of columns, such as "
            f"[{names!r}]."
        )
    return tuple(names)


def _check_columns(
    table: Table, group: str, x: tuple[str, ...], y: str, categorical: tuple[str, ...]
) -> None:
    options = {"group": (group,), "x": x, "y": (y,), "categorical": categorical}
    for option, names in options.items():
        table.check_names(option, names)
    if not x or len(set(x)) < len(x):
        raise ValueError(f"x is {list(x)}; expected one column or more, each once.")
    if y in (*x, group):
        raise ValueError(
            f"y is {y!r}, which is also {'among x' if y in x else 'the group'}: the answer "
            "would be given away. Take it out."
        )
    if not set(categorical) <= set(x):
        others = sorted(set(categorical) - set(x))
        raise ValueError(f"categorical names {others}, which are not among x={list(x)}.")


def _meaning(
    table: Table,
    group: str,
    x: tuple[str, ...],
    y: str,
    classes: bool | None,
    categorical: tuple[str, ...],
    encode: str,
) -> Columns:
    """The meaning of the columns, as seen from the values of this table."""
    categories = {}
    for column in x:
        values, order = table[column], table.order_of(column)
        if column in categorical or order is not None or not columns.is_number(values):
            categories[column] = columns.values_of(values, column, order)
            found = len(categories[column])
            if encode == "one-hot" and found > columns.MOST_VALUES:
                raise ValueError(
                    f"column {column!r} has {found:,} values, and one-hot inputs of that "
                    f"width are not made (at most {columns.MOST_VALUES:,}). Give "
                    "encode='codes' for a network with an embedding, or leave it out."
                )
    values, order = table[y], table.order_of(y)
    if classes is not None:
        kinds.flag("classes", classes)
    if classes is None:
        truth = values.dtype.kind == "b"
        classes = truth or order is not None or not columns.is_number(values)
    names = columns.values_of(values, y, order) if classes else None
    return Columns(x, y, group, categories, names, encode)


def _meaning_of(
    like: Any,
    group: str,
    x: tuple[str, ...],
    y: str,
    classes: bool | None,
    encode: str,
) -> Columns:
    meaning = getattr(getattr(like, "sample", None), "columns", None)
    if not isinstance(meaning, Columns):
        raise TypeError(
            f"like is a {type(like).__name__}; expected a sampler of ml.tasks.from_table."
        )
    if (meaning.x, meaning.y) != (x, y):
        raise ValueError(
            f"x is {list(x)} and y is {y!r}, but `like` was made with x={list(meaning.x)} "
            f"and y={meaning.y!r}. Give the same columns in the same order."
        )
    kind = meaning.classes is not None
    # The default of `encode` may be given by nobody.
    other = [] if encode in ("one-hot", meaning.encode) else [f"encode={encode!r}"]
    if other or classes not in (None, kind):
        other += [] if classes in (None, kind) else [f"classes={classes}"]
        raise ValueError(
            f"{' and '.join(other)} was given, but `like` was made with "
            f"encode={meaning.encode!r} and classes={kind}, and decides. Leave it out."
        )
    return dataclasses.replace(meaning, group=group)


def _rows_of_groups(
    codes: np.ndarray, group: str, groups: tuple, least: int
) -> tuple[list[np.ndarray], list[int]]:
    """Rows of each group that has enough of them, and the numbers of these groups."""
    # Stable, so that equal tables give equal tasks on every machine.
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(groups))
    found = np.split(order, np.cumsum(counts)[:-1])
    kept = np.flatnonzero(counts >= least).tolist()
    if not kept:
        raise ValueError(
            f"none of the {len(groups)} groups of {group!r} has the {least} rows of "
            f"support and query together; the largest has {counts.max()}. Ask for fewer."
        )
    if len(kept) < len(groups):
        warnings.warn(
            f"{len(groups) - len(kept)} of {len(groups)} groups of {group!r} have fewer "
            f"than {least} rows, which support and query take together, and are left out.",
            stacklevel=3,
        )
    return [found[number] for number in kept], kept
