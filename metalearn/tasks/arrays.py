"""What users give as a task, as checked NumPy arrays; text labels as class indices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, given, pixels, trees
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, PyTree

PARTS = ("support", "query")
EXPECTED = (
    "expected an ml.Task, or a tuple (support_x, support_y, query_x, query_y) of arrays "
    "with a row for each example"
)


class Rows(NamedTuple):
    """Valid examples of one set on the host.

    Attributes:
      x: Inputs, a pytree of NumPy arrays `[N, ...]`: float32, int32 or uint8.
      y: Targets, a pytree of NumPy arrays `[N, ...]`: float32, int32 or text.
    """

    x: PyTree
    y: PyTree

    @property
    def num(self) -> int:
        return len(jax.tree.leaves(self.x)[0])


class HostTask(NamedTuple):
    """One task on the host."""

    support: Rows
    query: Rows
    info: dict[str, np.ndarray]


def host_task(given: Any, where: str) -> HostTask:
    """A task of a user as checked arrays, without padded rows.

    Args:
      given: A `Task`, or a tuple of four.
      where: What it is called in messages, such as "task 3".

    Raises:
      TypeError: it is something else, or an array has an unusable dtype.
      ValueError: a set is empty, rows do not fit together, or a number is not finite.
    """
    if isinstance(given, Task):
        info = {k: np.asarray(v) for k, v in dict(given.info).items()}
        sets = [_rows(getattr(given, part), f"{where}: {part}") for part in PARTS]
        return HostTask(*sets, info)
    if not isinstance(given, (tuple, list)) or len(given) != 4:
        size = f" of {len(given)}" if isinstance(given, (tuple, list)) else ""
        raise TypeError(f"{where} is a {type(given).__name__}{size}; {EXPECTED}.")
    pairs = zip(PARTS, (given[:2], given[2:]))
    sets = [_checked(x, y, f"{where}: {part}") for part, (x, y) in pairs]
    return HostTask(*sets, {})


def _rows(examples: Examples, where: str) -> Rows:
    mask = np.asarray(examples.mask)
    if mask.ndim != 1:
        raise ValueError(
            f"{where} has a mask of shape {mask.shape}; expected [N] of one task. Give the "
            "tasks of a batch one by one."
        )
    checks.mask_of_bools(mask, f"the mask of {where}")
    keep = lambda leaf: np.asarray(leaf)[mask]
    return _checked(*jax.tree.map(keep, (examples.x, examples.y)), where)


def _checked(x: PyTree, y: PyTree, where: str) -> Rows:
    x = _leaves(x, f"{where} x", _input)
    y = _leaves(y, f"{where} y", _target)
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves((x, y))}
    if len(sizes) != 1 or sizes & {0, None}:
        shapes = [jax.tree.map(np.shape, part) for part in (x, y)]
        raise ValueError(
            f"{where} has x of shape {shapes[0]} and y of {shapes[1]}; expected [N, ...] "
            "with the same N of 1 or more, one row an example."
        )
    return Rows(x, y)


def _leaves(tree: PyTree, where: str, convert: Any) -> PyTree:
    """Lists are arrays here, and only dictionaries and tuples are containers."""
    pairs, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, list) or node is None
    )
    found = []
    for path, leaf in pairs:
        name = f"{where} {trees.path_string(path)}".rstrip()
        given.check_unmasked(leaf, name)
        try:
            array = np.asarray(leaf)
        except ValueError as error:
            raise ValueError(f"{name} is no array ({error}); give equal rows.") from None
        found.append(convert(array, name))
    if not found:
        raise ValueError(f"{where} is empty; expected an array [N, ...].")
    return jax.tree.unflatten(treedef, found)


def _input(array: np.ndarray, where: str) -> np.ndarray:
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return array  # bytes stay bytes on the device: a quarter of the memory
    if kind in "iu":
        return _int32(array, where)
    if kind == "b" or kind == "f" or jnp.issubdtype(array.dtype, jnp.floating):
        return _finite(array.astype(np.float32), where)
    raise TypeError(
        f"{where} has dtype {array.dtype}; expected numbers. Make numbers of it: columns "
        "of text are mapped by ml.tasks.from_table."
    )


def _target(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind == "O" and all(isinstance(v, str) for v in array.reshape(-1)):
        array = array.astype(str)
    kind = array.dtype.kind
    if kind == "U":
        return given.one_form(array)
    if kind in "iub":
        return _int32(array, where)
    if kind == "f" or jnp.issubdtype(array.dtype, jnp.floating):
        return _finite(array.astype(np.float32), where)
    raise TypeError(
        f"{where} has dtype {array.dtype}; expected integers or text for classes, floats "
        "for numbers."
    )


def _int32(array: np.ndarray, where: str) -> np.ndarray:
    if array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
        raise ValueError(
            f"{where} holds {array.min()} to {array.max()}, beyond 32 bits; number the "
            "values from 0 (np.unique(..., return_inverse=True))."
        )
    return array.astype(np.int32)


def _finite(array: np.ndarray, where: str) -> np.ndarray:
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0]) if array.ndim else 0
        raise ValueError(
            f"{where} holds {int(bad.sum())} values that are not finite in float32, the "
            f"first in row {row}; expected finite numbers. Fill or drop these rows."
        )
    return array


def check_images(x: PyTree, where: str, *, few: bool = False) -> None:
    """Refuses images and flattened images whose values are those of a usual mistake.

    Arrays of two axes beside the rows are left alone: they may be series of any range.

    Args:
      x: Inputs of many examples, leaves `[R, ...]`.
      where: What they are, such as "support x".
      few: Whether they are of one task, see `pixels.check_values`.

    Raises:
      ValueError: as `pixels.check_values`, and where.
    """
    for leaf in jax.tree.leaves(x):
        codes = leaf.dtype == np.int32 and leaf.ndim != 4
        if leaf.ndim == 3 or codes:
            continue
        try:
            pixels.check_values(leaf, few=few)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


class Labels(NamedTuple):
    """How text becomes class indices.

    Attributes:
      names: Names of the classes if all tasks share them; `None` if each has its own.
    """

    names: tuple[str, ...] | None


def is_text(y: PyTree) -> bool:
    """Whether targets are text."""
    return any(leaf.dtype.kind == "U" for leaf in jax.tree.leaves(y))


def labels_of(tasks: Sequence[HostTask], how: str | Sequence[str] | None) -> Labels | None:
    """How the labels of tasks become class indices; `None` leaves integers alone.

    Args:
      tasks: All tasks.
      how: "shared", "own", names of all classes, or `None` to see from the tasks.

    Raises:
      ValueError: `how` is something else, or tasks have different classes and it is not
        said what that means.
    """
    if isinstance(how, (list, tuple, np.ndarray)) and len(how):
        names = tuple(given.one_form(np.asarray([str(name) for name in how])).tolist())
        if len(set(names)) < len(names):
            raise ValueError(f"labels is {how!r}; expected every name once.")
        return Labels(names)
    if how not in (None, "shared", "own"):
        raise ValueError(
            f"labels is {how!r}; expected 'shared' (one list of classes for all tasks), "
            "'own' (each task has classes of its own) or the names of all classes."
        )
    text = [is_text((task.support.y, task.query.y)) for task in tasks]
    if how is None and not any(text):
        return None
    if how == "own":
        return Labels(None)
    sets = [_classes(task) for task in tasks]
    if how is None and any(found != sets[0] for found in sets):
        other = next(i for i, found in enumerate(sets) if found != sets[0])
        raise ValueError(
            f"task 0 has the classes {_short(sets[0])}, task {other} has "
            f"{_short(sets[other])}. Say labels='shared' if all tasks speak of the same "
            "classes and some lack a few, or labels='own' if a class of one task means "
            "nothing in another."
        )
    return Labels(tuple(map(str, _sorted(set().union(*sets)))))


def coded(task: HostTask, labels: Labels, where: str) -> tuple[HostTask, tuple[str, ...]]:
    """The task with class indices, and the names of its classes.

    Raises:
      ValueError: a label is none of the classes, or of classes of its own a query shows
        one that the support set lacks.
    """
    names = labels.names
    if names is None:
        found = _classes(task)
        missing = found - _set(task.support.y)
        if missing:
            raise ValueError(
                f"{where} asks for {_short(missing)} in its query, but the support set has "
                f"{_short(_set(task.support.y))} only. Give support of every class."
            )
        names = _sorted(found)
    index = {str(name): i for i, name in enumerate(names)}

    def codes(rows: Rows) -> Rows:
        one = isinstance(rows.y, np.ndarray) and rows.y.ndim == 1
        if not one or rows.y.dtype.kind == "f":
            shapes = jax.tree.map(lambda leaf: f"{leaf.dtype}{[*leaf.shape]}", rows.y)
            raise ValueError(
                f"{where} has targets {shapes}; labels are text or integers [N]. Leave out "
                "labels= for numbers."
            )
        unknown = {str(v) for v in rows.y.tolist()} - set(index)
        if unknown:
            raise ValueError(
                f"{where} has the label {min(unknown)!r}; expected one of "
                f"{_short(index)}. Add it to labels, or correct it."
            )
        y = np.asarray([index[str(v)] for v in rows.y.tolist()], np.int32)
        return rows._replace(y=y)

    named = tuple(str(name) for name in names)
    return task._replace(support=codes(task.support), query=codes(task.query)), named


def _classes(task: HostTask) -> set:
    return _set(task.support.y) | _set(task.query.y)


def _set(y: PyTree) -> set:
    return {v for leaf in jax.tree.leaves(y) for v in leaf.reshape(-1).tolist()}


def _sorted(names: Iterable[Any]) -> list[Any]:
    """Numbers by size, then text."""
    return sorted(names, key=lambda name: (isinstance(name, str), name))


def _short(names: Iterable[Any]) -> str:
    names = _sorted(names)
    shown = ", ".join(repr(name) for name in names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown


def scaled(x: PyTree) -> PyTree:
    """Bytes as float32 0..1; everything else as it is. Of NumPy or of jax."""
    return jax.tree.map(_scaled, x)


def _scaled(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) / 255 if leaf.dtype == jnp.uint8 else leaf
