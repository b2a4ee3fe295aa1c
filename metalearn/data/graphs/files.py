"""Graphs from files of NumPy arrays (.npz), those of the user too.

| name | file | what |
|---|---|---|
| cora | cora.npz | 2,708 papers, 7 fields |
| citeseer | citeseer.npz | 3,312 papers, 6 fields |
| amazon_clothing20 | amazon_clothing20.npz | 9,360 products, 20 kinds |
| own | graph.npz | a graph of the user |

Each file has these arrays, and may have others, which are not read:

- `labels` `[V]`, and `class_names` `[C]` if there are names;
- `features` `[V, D]`, or `attr_data`, `attr_indices`, `attr_indptr`, `attr_shape` in CSR;
- `edges` `[E, 2]`, or `adj_data`, `adj_indices`, `adj_indptr`, `adj_shape` in CSR.

Cora and Citeseer are those of A. McCallum et al. (2000) and C. L. Giles et al. (1998) as
`gnn-benchmark` stores them (O. Shchur et al., 2018): 5,429 and 4,715 citations. Loaded are
5,278 and 4,536 links: 151 and 55 pairs come again, and 124 of Citeseer cite themselves. The
clothing graph is the part of the
20 test classes of K. Ding et al. (GPN, CIKM 2020).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metalearn.data.graphs.graph import MOST_BYTES, Graph, as_edges, graph_of
from metalearn.data.lookup import check_name, place_of
from metalearn.data.npz import read_arrays

# Name: one line, and the file.
LAYOUTS: dict[str, tuple[str, str]] = {
    "cora": ("2,708 papers of 7 fields, 5,278 links", "cora.npz"),
    "citeseer": ("3,312 papers of 6 fields, 4,536 links", "citeseer.npz"),
    "amazon_clothing20": (
        "9,360 products of 20 kinds, 29,077 links",
        "amazon_clothing20.npz",
    ),
    "own": ("a graph of your own: features, edges and labels", "graph.npz"),
}
_PARTS = ("data", "indices", "indptr", "shape")
_WANTED = (
    *("features", "edges", "labels", "class_names"),
    *(f"{matrix}_{part}" for matrix in ("attr", "adj") for part in _PARTS),
)


def load_graph(name: str, data_dir: str | Path | None) -> Graph:
    """Reads a graph.

    Args:
      name: A name of `LAYOUTS`.
      data_dir: Folder of the file, or the folder that has it in a folder of that name, or
        in `planetoid` for cora and citeseer.

    Raises:
      FileNotFoundError: the file is missing.
      ValueError: the name is unknown; the file is damaged, holds objects or lacks an array;
        or see `graph_of`. The file is named.
    """
    check_name("graph", name, LAYOUTS)
    file = LAYOUTS[name][1]
    folders = (name, "planetoid")
    path = place_of(f"the graph {name!r}", data_dir, (file,), within=folders) / file
    try:
        arrays, _ = read_arrays(path, _WANTED, most=MOST_BYTES)
        return _graph(name, arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _graph(name: str, arrays: dict[str, np.ndarray]) -> Graph:
    found = {}
    for dense, matrix in (("features", "attr"), ("edges", "adj")):
        keys = {part: f"{matrix}_{part}" for part in _PARTS}
        whole = all(key in arrays for key in keys.values())
        if (dense in arrays) == whole:
            given = "both" if whole else "neither"
            raise ValueError(
                f"it has {given} of {dense} and {', '.join(keys.values())}; expected one "
                "of the two."
            )
        compressed = {part: arrays[key] for part, key in keys.items()} if whole else None
        found[dense] = arrays[dense] if compressed is None else compressed
    if "labels" not in arrays:
        raise ValueError("it lacks labels; expected the class of each node, [V].")
    edges = found["edges"]
    if arrays["labels"].ndim != 1:
        raise ValueError(
            f"labels have the shape {list(arrays['labels'].shape)}; expected [V]."
        )
    if isinstance(edges, dict):
        edges = as_edges(edges, len(arrays["labels"]))
    return graph_of(
        found["features"],
        edges,
        arrays["labels"],
        class_names=arrays.get("class_names"),
        name=name,
    )
