"""Tasks of nodes: by their own features, or by the subgraphs around them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Key, PyTree
from metalearn.data import arguments
from metalearn.data.few_shot import few_shot
from metalearn.data.graphs.subgraphs import Subgraphs

_MOST_NODES = 2**24  # that a float32 counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
    """What `few_shot` reads."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def node_tasks(
    features: Any,
    nodes: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    *,
    around: Subgraphs | None = None,
    **options: Any,
) -> TaskSampler:
    """Tasks whose inputs are nodes of a graph.

    Without subgraphs an input is the features of a node, `[N, D]`. With them, inputs are
    `features` `[N, M, D]` and `links` `[N, M, M]`. The features have then been multiplied
    by the links once, which is the first layer of a network without its parameters;
    `ml.models.GCN` does the rest.

    Shapes depend on the graph and not on the nodes, so that all splits of a graph share one
    program.

    Args:
      features: Features of all nodes, float32 `[V, D]`, such as those of `propagated`.
      nodes: Nodes of one part, `[I]`.
      labels: Class of each node of the graph, `[V]`.
      class_names: Name of each class.
      around: Subgraphs of all nodes.
      **options: Ways, shots, queries and name, as `ml.data.few_shot` takes them.

    Raises:
      TypeError: nodes or labels are no whole numbers, or names no text.
      ValueError: see `ml.data.few_shot`; a node or a class is out of range; or there are
        more nodes than can be told apart.
    """
    class_names = arguments.names("class_names", class_names)
    labels = arguments.integers("labels", labels, least=-1, below=len(class_names))
    nodes = arguments.integers("nodes", nodes, least=0, below=len(labels))
    if isinstance(features, (list, tuple)):
        features = np.asarray(features, np.float32)
    if (labels[nodes] < 0).any():
        node = int(nodes[labels[nodes] < 0][0])
        raise ValueError(
            f"nodes holds {node}, whose label is -1: its class is not known; expected "
            "nodes with a class."
        )
    if getattr(features, "ndim", 0) != 2 or len(features) != len(labels):
        raise ValueError(
            f"features are {arguments.told(features)}; expected [{len(labels)}, D], a row "
            "for each label."
        )
    if len(features) > _MOST_NODES:
        raise ValueError(
            f"the graph has {len(features):,} nodes; expected at most {_MOST_NODES:,}."
        )
    kept, place = np.unique(labels[nodes], return_inverse=True)
    rows = _Rows(
        # The sampler draws rows of numbers, so the numbers of the nodes are its images.
        images=nodes.astype(np.float32)[:, None],
        labels=place.astype(np.int32),
        class_names=tuple(class_names[int(c)] for c in kept),
    )
    drawn = few_shot(rows, check_images=False, **options)
    counts = np.bincount(labels[labels >= 0])
    draw = dataclasses.replace(drawn.sample, largest=int(counts.max()))
    ids = (
        jnp.zeros((len(features), 1), jnp.float32)
        .at[: len(nodes)]
        .set(drawn.data["images"])
    )
    data = {"drawn": {**drawn.data, "images": ids}, "features": jnp.asarray(features)}
    if around is not None:
        data |= {"nodes": jnp.asarray(around.nodes), "links": jnp.asarray(around.links)}
    return TaskSampler(NodeEpisode(draw), data, drawn.name)


@dataclasses.dataclass(frozen=True)
class NodeEpisode:
    """Function `(data, key) -> Task` that puts nodes in place of their numbers.

    Attributes:
      draw: Function that draws a task whose inputs are numbers of nodes, float `[N, 1]`.
    """

    draw: Callable[[PyTree, Key], Task]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return getattr(self.draw, "class_names", ())

    def __call__(self, data: PyTree, key: Key) -> Task:
        task = self.draw(data["drawn"], key)

        def of(examples: Examples) -> Examples:
            centres = examples.x[:, 0].astype(jnp.int32)
            if "links" not in data:
                x = data["features"][centres]
            else:
                links = data["links"][centres]
                features = links @ data["features"][data["nodes"][centres]]
                x = {"features": features, "links": links}
            return Examples(x=x, y=examples.y, mask=examples.mask)

        return Task(support=of(task.support), query=of(task.query), info=task.info)
