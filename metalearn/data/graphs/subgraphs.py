"""The subgraph around each node, all of one size."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np

from metalearn.core import cost
from metalearn.data import arguments
from metalearn.data.graphs.graph import Graph

Degrees = Literal["subgraph", "graph"]


class Subgraphs(NamedTuple):
    """Subgraphs of the nodes of a graph.

    Attributes:
      nodes: Nodes of the subgraph of each node, int32 `[V, M]`: itself first, then in the
        order of their distance. Places that are left hold the node itself.
      links: Normalised adjacency matrix of each subgraph, float32 `[V, M, M]`; zero in rows
        and columns of places that are left.
      cut: Number of subgraphs that had more than M nodes.
    """

    nodes: np.ndarray
    links: np.ndarray
    cut: int


def subgraphs(
    graph: Graph, *, hops: int, size: int, degrees: Degrees = "subgraph", seed: int = 0
) -> Subgraphs:
    """The nodes at most `hops` links away from each node, and the links between them.

    Of a subgraph with more than `size` nodes the nearest stay, and of those that are
    equally far a random choice, which is the same in every run.

    Args:
      graph: The graph.
      hops: Largest distance, 1 or more.
      size: Number M of nodes, the node itself counted.
      degrees: Degrees by which links are normalised: of the subgraph alone, or of the whole
        graph. With the latter, a network of as many layers as hops gives the node itself
        what it would give in the whole graph, unless the subgraph was cut.
      seed: Seed of the choice.

    Raises:
      TypeError: the graph is something else.
      ValueError: a number is out of range, `degrees` is no such word, or the links of all
        subgraphs are larger than the memory.

    Example:
      >>> graph = graph_of(np.eye(3), [[0, 1], [1, 2]], ["a", "b", "a"])
      >>> subgraphs(graph, hops=1, size=2).nodes.tolist()
      [[0, 1], [1, 0], [2, 1]]
    """
    arguments.record("graph", graph, Graph, "graph_of(...)")
    arguments.count("hops", hops, least=1)
    arguments.count("size", size, least=1)
    arguments.count("seed", seed, least=0)
    arguments.one_of("degrees", degrees, get_args(Degrees))
    _check_memory(len(graph), min(size, len(graph)))
    near: list[list[int]] = [[] for _ in range(len(graph))]
    for one, other in graph.edges.tolist():
        near[one].append(other)
        near[other].append(one)
    rng = np.random.default_rng(seed)
    size = min(size, len(graph))
    nodes = np.repeat(np.arange(len(graph), dtype=np.int32)[:, None], size, axis=1)
    links = np.zeros((len(graph), size, size), np.float32)
    whole = 1 / np.sqrt([1 + len(found) for found in near])
    cut = 0
    for centre in range(len(graph)):
        found, was_cut = _around(near, centre, hops, size, rng)
        cut += was_cut
        nodes[centre, : len(found)] = found
        place = {node: i for i, node in enumerate(found)}
        own = np.eye(len(found))
        for i, node in enumerate(found):
            own[i, [place[other] for other in near[node] if other in place]] = 1
        roots = whole[found] if degrees == "graph" else 1 / np.sqrt(own.sum(1))
        links[centre, : len(found), : len(found)] = own * roots[:, None] * roots[None]
    return Subgraphs(nodes, links, cut)


def _check_memory(num: int, size: int) -> None:
    """Refuses subgraphs of which the host, often the device too, could not hold two."""
    cost.check_bytes(
        f"the links of {num:,} subgraphs of {size:,} nodes each, on the host and once more "
        "on the device,",
        2 * 4 * int(num) * int(size) * (int(size) + 1),
        "Lower the nodes of a subgraph (size, --app.most-nodes).",
        cost.host_memory(),
    )


def _around(
    near: list[list[int]], centre: int, hops: int, size: int, rng: np.random.Generator
) -> tuple[list[int], bool]:
    """Nodes around a node, nearest first, and whether some were left out."""
    found, seen, last = [centre], {centre}, [centre]
    for _ in range(hops):
        further = sorted({other for node in last for other in near[node]} - seen)
        room = size - len(found)
        if len(further) > room:
            chosen = rng.choice(len(further), room, replace=False)
            return [*found, *(further[i] for i in sorted(chosen))], True
        found += further
        seen.update(further)
        last = further
    return found, False
