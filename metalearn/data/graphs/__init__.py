"""Graphs with labelled nodes: files, propagation, subgraphs, splits of their classes."""

from metalearn.data.graphs.episodes import NodeEpisode, node_tasks
from metalearn.data.graphs.files import LAYOUTS, load_graph
from metalearn.data.graphs.graph import Graph, graph_of
from metalearn.data.graphs.propagation import Sparse, adjacency, propagated, scaled_rows
from metalearn.data.graphs.split import NodeSplit, num_splits, split_nodes
from metalearn.data.graphs.subgraphs import Subgraphs, subgraphs

__all__ = [
    "LAYOUTS",
    "Graph",
    "NodeEpisode",
    "NodeSplit",
    "Sparse",
    "Subgraphs",
    "adjacency",
    "graph_of",
    "load_graph",
    "node_tasks",
    "num_splits",
    "propagated",
    "scaled_rows",
    "split_nodes",
    "subgraphs",
]
