"""The normalised adjacency matrix of a graph, and products with it.

`S = D^{-1/2} (A + I) D^{-1/2}` where D holds the row sums of `A + I` (T. Kipf, M. Welling,
ICLR 2017). `S^k X` are the features of SGC (F. Wu et al., ICML 2019). They have no
parameters, so they are made once, on the host.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from metalearn.data import arguments

Rows = Literal["sum", "unit", "none"]
_COLUMNS = 256  # of a product at once: the entries of S times these are in memory


class Sparse(NamedTuple):
    """A square matrix in compressed form (CSR), whose every row has an entry.

    Attributes:
      starts: First entry of each row, int64 `[V + 1]`.
      columns: Column of each entry, int64 `[E]`.
      values: Entries, float32 `[E]`.
    """

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray


def adjacency(edges: np.ndarray, num: int) -> Sparse:
    """`S` of a graph. A node without a link has 1 on the diagonal alone.

    Args:
      edges: Links, integers `[E, 2]`: each once, none of a node with itself.
      num: Number V of nodes.

    Raises:
      TypeError: the links are no whole numbers.
      ValueError: they are not `[E, 2]`, one is of no node, or `num` is no count.
    """
    arguments.count("num", num, least=1)
    if getattr(edges, "shape", None) == (0, 2):  # of no dtype in particular
        edges = np.zeros((0, 2), np.int64)
    edges = arguments.integers("edges", edges, ndim=2, least=0, below=num)
    if edges.shape[1] != 2:
        raise ValueError(f"edges have shape {edges.shape}; expected [E, 2].")
    loops = np.arange(num)
    row = np.concatenate([edges[:, 0], edges[:, 1], loops]).astype(np.int64)
    column = np.concatenate([edges[:, 1], edges[:, 0], loops]).astype(np.int64)
    order = np.lexsort((column, row))
    row, column = row[order], column[order]
    degrees = np.bincount(row, minlength=num)
    roots = 1 / np.sqrt(degrees)
    values = (roots[row] * roots[column]).astype(np.float32)
    return Sparse(np.concatenate([[0], np.cumsum(degrees)]), column, values)


def propagated(matrix: Sparse, features: np.ndarray, hops: int) -> np.ndarray:
    """`S^hops X`, of the dtype of X, `[V, D]`; float32 of whole numbers.

    Row v is made of the features of nodes at most `hops` links away from v, whatever part
    of a split they are in. With no hop it is X.

    Raises:
      TypeError: the matrix or the features are something else.
      ValueError: `hops` is no integer of 0 or more, or there is another number of rows than
        the matrix has.
    """
    arguments.record("matrix", matrix, Sparse, "adjacency(edges, num)")
    features = _real(arguments.numbers("features", features, ndim=2))
    arguments.count("hops", hops, least=0)
    if len(features) != len(matrix.starts) - 1:
        raise ValueError(
            f"features have {len(features)} rows, and the matrix is of "
            f"{len(matrix.starts) - 1} nodes; expected a row for each node."
        )
    found = features
    for _ in range(hops):
        made = np.empty_like(found)
        for start in range(0, found.shape[1], _COLUMNS):
            part = found[:, start : start + _COLUMNS]
            terms = matrix.values.astype(found.dtype)[:, None] * part[matrix.columns]
            made[:, start : start + _COLUMNS] = np.add.reduceat(
                terms, matrix.starts[:-1], axis=0
            )
        found = made
    return found


def scaled_rows(features: np.ndarray, rows: Rows) -> np.ndarray:
    """Features whose rows have an absolute sum or a norm of 1; rows of zeros stay.

    Whole numbers become float32.

    Args:
      features: Features `[V, D]`.
      rows: "sum", "unit" for the Euclidean norm, or "none" for the features as they are.

    Raises:
      TypeError: the features are no numbers.
      ValueError: `rows` is something else, or the features are not `[V, D]`.
    """
    arguments.one_of("rows", rows, get_args(Rows))
    features = arguments.numbers("features", features, ndim=2)
    if rows == "none":
        return features
    features = _real(features)
    # A square leaves the range of float32 where its number does not.
    sizes: Any
    wide = features.astype(np.float64)
    if rows == "sum":
        sizes = np.abs(wide).sum(axis=1, keepdims=True)
    else:
        sizes = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return (wide / np.where(sizes > 0, sizes, 1)).astype(features.dtype)


def _real(features: np.ndarray) -> np.ndarray:
    """Whole numbers as float32, since what is made of them is none; others as they are."""
    return features.astype(np.float32) if features.dtype.kind in "biu" else features
