"""A graph with features and labels of its nodes, checked."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metalearn.core import given
from metalearn.core.cost import in_bytes
from metalearn.data import arguments

UNLABELLED = -1
MOST_BYTES = 4 * 2**30  # of the features


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """An undirected graph.

    Attributes:
      name: Name of the graph.
      features: Features of the nodes, float32 `[V, D]`.
      edges: Links, int32 `[E, 2]`: each once, smaller node first, in order; none from a
        node to itself.
      labels: Class of each node, int32 `[V]`; `UNLABELLED` (-1) for nodes without a class,
        which are in the graph and in no task.
      class_names: Name of each class.
      info: Numbers of what was found: `self_links` and `repeated` links, which are left
        out, `isolated` nodes without a link and `empty` ones without a feature, which stay.
    """

    name: str
    features: np.ndarray
    edges: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    info: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 of features, links, labels and names."""
        found = hashlib.sha256(repr((self.features.shape, self.class_names)).encode())
        for part in (self.features, self.edges, self.labels):
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()


def graph_of(
    features: Any,
    edges: Any,
    labels: Any,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "own",
) -> Graph:
    """A graph from arrays.

    Links have no direction: `(u, v)` and `(v, u)` are the same. Links that come again and
    links of a node with itself are left out and counted. Nodes without a link stay.

    Args:
      features: Features `[V, D]`, finite; or rows in compressed form (CSR): an object with
        `data`, `indices`, `indptr` and `shape`, such as a `scipy.sparse.csr_array`, or a
        mapping with these keys. Columns that a row repeats add up.
      edges: Links `[E, 2]`, integers of `0..V-1`; E may be 0.
      labels: Class of each node, `[V]`: text, or integers of 0 or more; -1 is a node
        without a class.
      class_names: Name of each class, where labels are `0..C-1`.
      name: Name of the graph.

    Returns:
      The graph. Classes are numbered in the order of their labels.

    Raises:
      TypeError: an array has an unusable dtype.
      ValueError: shapes do not fit together, or a value is unusable; names array, row and
        column.

    Example:
      >>> graph = graph_of(np.eye(3), [[0, 1], [1, 0], [2, 2]], ["a", "b", "a"])
      >>> graph.edges.tolist(), graph.info["repeated"], graph.info["isolated"]
      ([[0, 1]], 1, 1)
    """
    features = _features(features)
    num = len(features)
    labels, names = _labels(labels, num, class_names)
    edges = _edges(edges, num)
    loops = edges[:, 0] == edges[:, 1]
    kept = np.unique(np.sort(edges[~loops], axis=1), axis=0).reshape(-1, 2)
    info = {
        "self_links": int(loops.sum()),
        "repeated": int(len(edges) - loops.sum() - len(kept)),
        "isolated": num - len(np.unique(kept)),
        "empty": int((~features.any(axis=1)).sum()),
    }
    return Graph(
        name=name,
        features=features,
        edges=kept.astype(np.int32),
        labels=labels,
        class_names=names,
        info=info,
    )


def as_edges(data: Mapping[str, Any], num: int) -> np.ndarray:
    """Links `[E, 2]` of the entries of a square matrix in compressed form.

    Args:
      data: Mapping with `data`, `indices`, `indptr` and `shape`. An entry of 0 is no link.
      num: Number of nodes.

    Raises:
      ValueError: see `graph_of`; or the matrix is not square.
    """
    values, rows, columns, shape = _compressed(data, "adj")
    if shape != (num, num):
        raise ValueError(
            f"adj has the shape {list(shape)}; expected [{num}, {num}], a row and a column "
            "for each node of the features."
        )
    finite = np.isfinite(values)
    if not finite.all():
        place = int(finite.argmin())
        raise ValueError(
            f"adj holds {values[place]} in row {rows[place]}, column {columns[place]}, "
            "counted from 0; expected finite numbers, of which 0 is no link."
        )
    return np.stack([rows, columns], axis=1)[values != 0]


def _features(features: Any) -> np.ndarray:
    """Features as float32 `[V, D]`."""
    parts = ("data", "indices", "indptr", "shape")
    if hasattr(features, "tocsr"):
        features = features.tocsr()
    if not isinstance(features, (Mapping, np.ndarray)) and all(
        hasattr(features, part) for part in parts
    ):
        features = {part: getattr(features, part) for part in parts}
    if isinstance(features, Mapping):
        values, rows, columns, shape = _compressed(features, "attr")
        _check_size(shape)
        found = np.zeros(shape, np.float32)
        np.add.at(found, (rows, columns), values.astype(np.float32))
        _check_finite(found)
        return found
    given.check_unmasked(features, "features")
    found = _array(features, "features")
    if found.ndim != 2 or 0 in found.shape:
        raise ValueError(
            f"features have the shape {list(found.shape)}; expected [V, D], a row for each "
            "of one or more nodes."
        )
    if found.dtype.kind not in "biuf":
        raise TypeError(
            f"features have dtype {found.dtype}; expected numbers. Make numbers of words."
        )
    _check_size(found.shape)
    _check_finite(found)
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    _check_finite(found)
    return found


def _check_size(shape: tuple[int, ...]) -> None:
    needed = 4 * int(shape[0]) * int(shape[1])
    if needed > MOST_BYTES:
        raise ValueError(
            f"features {list(shape)} take {in_bytes(needed)}; expected at most "
            f"{in_bytes(MOST_BYTES)}. Leave rare features out."
        )


def _check_finite(features: np.ndarray) -> None:
    if features.dtype.kind == "f" and not (fine := np.isfinite(features)).all():
        row, column = (int(place[0]) for place in np.nonzero(~fine))
        raise ValueError(
            f"features hold {features[row, column]} in row {row}, column {column}, counted "
            f"from 0, and {int((~fine).sum())} of their values are not finite in float32; "
            "expected finite numbers."
        )


def _edges(edges: Any, num: int) -> np.ndarray:
    """Links as int64 `[E, 2]`."""
    given.check_unmasked(edges, "edges")
    found = _array(edges, "edges")
    if found.size == 0 and found.shape in ((0,), (0, 2)):
        return np.zeros((0, 2), np.int64)
    if found.ndim != 2 or found.shape[1] != 2:
        hint = " Transpose them." if found.ndim == 2 and found.shape[0] == 2 else ""
        raise ValueError(
            f"edges have the shape {list(found.shape)}; expected [E, 2], a link in each "
            f"row.{hint}"
        )
    if found.dtype.kind not in "iu":
        raise TypeError(
            f"edges have dtype {found.dtype}; expected integers, rows of the features."
        )
    outside = (found < 0) | (found >= num)
    if outside.any():
        row, column = (int(place[0]) for place in np.nonzero(outside))
        raise ValueError(
            f"edges hold {int(found[row, column])} in row {row}, column {column}, counted "
            f"from 0, and {int(outside.sum())} of their values are outside 0..{num - 1}, "
            f"the {num} nodes of the features."
        )
    return found.astype(np.int64)


def _labels(
    labels: Any, num: int, class_names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Classes as int32 `[V]`, and their names."""
    given.check_unmasked(labels, "labels")
    if isinstance(labels, (list, tuple)) and any(isinstance(v, str) for v in labels):
        # NumPy would make text of what is none, and of a missing label the class nan.
        for row, label in enumerate(labels):
            if not isinstance(label, str):
                raise TypeError(
                    f"labels hold {label!r} in row {row}, counted from 0, beside text; "
                    "expected text alone. For nodes without a class give integers, and -1."
                )
    found = _array(labels, "labels")
    if found.dtype.kind == "O" and all(isinstance(v, str) for v in found.ravel()):
        found = found.astype(str)
    if found.shape != (num,):
        raise ValueError(
            f"labels have the shape {list(found.shape)}; expected [{num}], one for each "
            "row of the features."
        )
    if found.dtype.kind not in "iuU":
        raise TypeError(
            f"labels have dtype {found.dtype}; expected integers or text, one class a node."
        )
    if found.dtype.kind == "U":
        found = given.one_form(found)
        empty = np.char.strip(found) == ""
        if empty.any():
            raise ValueError(
                f"labels are empty in row {int(empty.argmax())}, counted from 0; expected "
                "the name of a class. For nodes without one give integers, and -1."
            )
        there = np.ones(num, bool)
    else:
        if (found.astype(np.int64) < UNLABELLED).any():
            row = int((found.astype(np.int64) < UNLABELLED).argmax())
            raise ValueError(
                f"labels hold {int(found[row])} in row {row}, counted from 0; expected 0 "
                "or more, or -1 for a node without a class."
            )
        there = found.astype(np.int64) != UNLABELLED
    kept, place = np.unique(found[there], return_inverse=True)
    if len(kept) < 2:
        raise ValueError(f"labels name {len(kept)} classes; expected 2 or more.")
    names = tuple(str(value) for value in kept.tolist())
    if class_names is not None:
        names = _names(class_names, kept)
    codes = np.full(num, UNLABELLED, np.int32)
    codes[there] = place
    return codes, names


def _names(class_names: Sequence[str], kept: np.ndarray) -> tuple[str, ...]:
    names = arguments.names("class_names", class_names, numbered=True)
    if kept.dtype.kind == "U" or int(kept[-1]) >= len(names):
        raise ValueError(
            f"class_names has {len(names)} names and labels go up to {kept[-1]!r}; "
            "expected labels 0..C-1 and C names."
        )
    if len(set(names)) < len(names):
        raise ValueError("class_names has a name twice; expected each once.")
    return tuple(names[int(value)] for value in kept)


def _compressed(
    data: Mapping[str, Any], what: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """Values, row and column of each entry, and the shape, of a matrix in CSR."""
    if lacking := [k for k in ("data", "indices", "indptr", "shape") if k not in data]:
        raise ValueError(f"{what} lacks {', '.join(lacking)}; expected a matrix in CSR.")
    values, columns = (_array(data[k], f"{what}_{k}") for k in ("data", "indices"))
    starts, shape = (_array(data[k], f"{what}_{k}") for k in ("indptr", "shape"))
    for name, array in (("indices", columns), ("indptr", starts), ("shape", shape)):
        if array.dtype.kind not in "iu" or array.ndim != 1:
            raise ValueError(
                f"{what}_{name} is {array.dtype}{list(array.shape)}; expected integers in "
                "one row."
            )
    if len(shape) != 2 or (shape < 1).any():
        raise ValueError(f"{what}_shape is {shape.tolist()}; expected two numbers above 0.")
    num, width = (int(size) for size in shape)
    if values.shape != columns.shape or values.dtype.kind not in "biuf":
        raise ValueError(
            f"{what}_data is {values.dtype}{list(values.shape)} and {what}_indices "
            f"{list(columns.shape)}; expected as many numbers as columns."
        )
    starts = starts.astype(np.int64)
    counts = np.diff(starts)
    if len(starts) != num + 1 or starts[0] != 0 or starts[-1] != len(values):
        raise ValueError(
            f"{what}_indptr has {len(starts)} values from {starts[:1].tolist()} to "
            f"{starts[-1:].tolist()}; expected {num + 1} from 0 to {len(values)}."
        )
    if (counts < 0).any():
        row = int((counts < 0).argmax())
        raise ValueError(
            f"{what}_indptr falls in row {row}, from {starts[row]} to {starts[row + 1]}; "
            "expected the first entry of each row, in order."
        )
    rows = np.repeat(np.arange(num), counts)
    outside = (columns < 0) | (columns >= width)
    if outside.any():
        place = int(outside.argmax())
        raise ValueError(
            f"{what}_indices holds {int(columns[place])} at {place}, in row "
            f"{int(rows[place])}, counted from 0; expected columns 0..{width - 1}."
        )
    return values, rows, columns.astype(np.int64), (num, width)


def _array(values: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is no array ({error}); give equal rows.") from None
