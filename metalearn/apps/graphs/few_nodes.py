"""Few-shot classification of nodes: classes of a graph that training does not see."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from metalearn.algorithms.record import parameters
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.graphs import pictures
from metalearn.apps.learners import Learner
from metalearn.apps.ways import check_ways, head_offers
from metalearn.core import losses
from metalearn.core.linen import from_linen
from metalearn.core.model import Model
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.graphs import (
    Graph,
    NodeSplit,
    Subgraphs,
    adjacency,
    load_graph,
    node_tasks,
    num_splits,
    propagated,
    scaled_rows,
    split_nodes,
    subgraphs,
)
from metalearn.models.graphs import GCN, SGC
from metalearn.training.judgement import Metric

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeData:
    """A graph, what tasks show of its nodes, and which are for what.

    Attributes:
      graph: The graph.
      features: Features that tasks read, float32 `[V, D]` on the device.
      split: Nodes and classes of the parts.
      around: Subgraphs of the nodes; None where tasks show features alone.
      digest: Digest of the graph.
    """

    graph: Graph
    features: Any
    split: NodeSplit
    around: Subgraphs | None
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotNodes:
    """Few-shot classification of the nodes of one graph.

    Transductive as to the graph: its links and the features of all nodes, those of
    the test too, make the features of a node, as in Meta-GNN (F. Zhou et al., CIKM 2019).
    Inductive as to the queries of a task: a query is classified by the support set alone.
    No label of a test class is read before the test.

    Attributes:
      dataset: Name of the graph, whose file is in `--data-dir` or in a folder of that name
        there; "own" is graph.npz of yours, with features, edges and labels.
      split_number: Number of the choice of test classes, from 1: 21 for Cora, 15 for
        Citeseer.
      test_classes: Number of classes of the test.
      validation: What validation holds back: "classes", new ones as in the test, or "nodes"
        of the training classes, with more classes left for training.
      validation_classes: Number of classes of validation.
      validation_share: Share of the nodes of each training class for validation.
      rows: Scale of the features of a node before they spread: a sum of 1, as in SGC and
        Meta-GNN, a norm of 1 ("unit"), or as they are.
      unit: Whether features of sgc get a norm of 1 once they have spread, without which the
        nearest centroid of Cora is eight points worse.
      hops: Distance from which a node gets features, 1 or more.
      encoder: Network: linear layers of features that were spread over the graph (sgc), or
        convolutions over the subgraph around each node (gcn), one layer a hop.
      widths: Sizes of the layers before the head; of gcn as many as hops. None of sgc for
        the features as they are.
      most_nodes: Nodes of a subgraph, itself counted; of more, the nearest stay.
      degrees: Links of a subgraph by which it is normalised: its own, or those of the
        graph, with which gcn is a network of the whole graph unless a subgraph is cut.
      ways: Classes of a training task.
      shots: Support nodes of a class in training.
      queries: Query nodes of a class in training.
      eval_ways: Classes of a validation or test task; as in training if None.
      eval_shots: Support nodes of a class at validation and test; as in training if None.
      eval_queries: Query nodes of a class at validation and test.
    """

    kind: ClassVar[str] = "graphs"
    metric: ClassVar[str] = "query/accuracy"
    measures: ClassVar[Mapping[str, Metric]] = {}
    light: ClassVar[bool] = False
    dataset: Literal["cora", "citeseer", "amazon_clothing20", "own"] = "cora"
    split_number: int = 1
    test_classes: int = 2
    validation: Literal["classes", "nodes"] = "classes"
    validation_classes: int = 2
    validation_share: float = 0.2
    rows: Literal["sum", "unit", "none"] = "none"
    unit: bool = True
    hops: int = 2
    encoder: Literal["sgc", "gcn"] = "sgc"
    widths: tuple[int, ...] = (16,)
    most_nodes: int = 24
    degrees: Literal["subgraph", "graph"] = "subgraph"
    ways: int = 2
    shots: int = 3
    queries: int = 12
    eval_ways: int | None = None
    eval_shots: int | None = None
    eval_queries: int = 12

    @property
    def test_ways(self) -> int:
        """Classes of a validation or test task."""
        return self.ways if self.eval_ways is None else self.eval_ways

    @property
    def test_shots(self) -> int:
        """Support nodes of a class in a validation or test task."""
        return self.shots if self.eval_shots is None else self.eval_shots

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""
        del learner
        found = {}
        if self.validation == "classes":
            found["validation_share"] = "app.validation nodes"
        else:
            found["validation_classes"] = "app.validation classes"
        if self.encoder == "sgc":
            found |= dict.fromkeys(("most_nodes", "degrees"), "app.encoder gcn")
        else:
            found["unit"] = "app.encoder sgc"
        return found

    def check(self, learner: Learner) -> None:
        """Refuses settings that do not go together.

        Raises:
          ValueError: settings exclude one another; the message names the remedy.
        """
        check_ways(self, learner)
        taken = parameters(learner.record.build)
        if {"model", "encoder"}.isdisjoint(taken) or learner.record.networks:
            raise ValueError(
                f"{learner.name} needs a network that nodes of a graph do not have here; "
                "expected a learner of any network, such as maml, protonet or g_meta."
            )
        learner.refuse_policy("networks with batch norm")
        if self.widths and min(self.widths) < 1:
            raise ValueError(
                f"app.widths is {self.widths}; expected sizes of layers, each 1 or more."
            )
        if self.encoder == "gcn" and not len(self.widths) == self.hops >= 1:
            raise ValueError(
                f"app.widths has {len(self.widths)} layers and app.hops is {self.hops}; "
                "expected a layer for each hop of app.encoder gcn, and one or more. Write "
                "--app.widths 16 16 with --app.hops 2."
            )
        if self.test_classes < self.test_ways:
            raise ValueError(
                f"app.test_classes is {self.test_classes}, too few for tasks of "
                f"{self.test_ways} classes; expected as many or more."
            )
        if self.validation == "classes" and self.validation_classes < self.test_ways:
            raise ValueError(
                f"app.validation_classes is {self.validation_classes}, too few for tasks "
                f"of {self.test_ways} classes; expected as many or more."
            )
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"app.validation_share is {self.validation_share}; expected a share "
                "between 0 and 1."
            )

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> NodeData:
        """The graph with its split, and the features that tasks read.

        Raises:
          FileNotFoundError: the file is missing.
          ValueError: see `metalearn.data.graphs.load_graph` and `split_nodes`.
        """
        del parts
        graph = load_graph(self.dataset, data_dir)
        split = self.split_of(graph)
        features, around = scaled_rows(graph.features, self.rows), None
        if self.encoder == "sgc":
            matrix = adjacency(graph.edges, len(graph))
            features = propagated(matrix, features, self.hops)
            if self.unit:
                features = scaled_rows(features, "unit")
        else:
            found = subgraphs(
                graph, hops=self.hops, size=self.most_nodes, degrees=self.degrees
            )
            # On the device once for the three parts, as the features are.
            around = Subgraphs(
                jnp.asarray(found.nodes), jnp.asarray(found.links), found.cut
            )
        return NodeData(
            graph=graph,
            features=jnp.asarray(features),  # once for the three parts
            split=split,
            around=around,
            digest=graph.digest[:16],
        )

    def split_of(self, graph: Graph) -> NodeSplit:
        """Nodes and classes of the parts.

        Raises:
          ValueError: see `metalearn.data.graphs.split_nodes`.
        """
        return split_nodes(
            graph.labels,
            number=self.split_number,
            test_classes=self.test_classes,
            validation=self.validation,
            validation_classes=self.validation_classes,
            validation_share=self.validation_share,
        )

    def describe(self, data: NodeData) -> DataRecord:
        """Description of the graph and of its split."""
        graph, split = data.graph, data.split
        names = {
            part: [graph.class_names[c] for c in split.classes[part]] for part in PARTS
        }
        told = "; ".join(f"{part}: {', '.join(names[part])}" for part in PARTS)
        total = num_splits(len(graph.class_names), self.test_classes)
        record = {
            "name": graph.name,
            "about": (
                f"{len(graph):,} nodes, {len(graph.edges):,} links, "
                f"{graph.info['isolated']:,} nodes without one; split {self.split_number} "
                f"of {total:,}; {told}"
            ),
            "graph": dict(graph.info),
            "num_features": int(data.features.shape[1]),
            "num_classes": len(split.classes["train"]),
            "parts": {
                part: {
                    "classes": names[part],
                    "nodes": len(split.nodes[part]),
                    "sha256": data.digest,
                }
                for part in PARTS
            },
        }
        if data.around is not None:
            record["cut"] = data.around.cut
            record["nodes"] = int(data.around.nodes.shape[1])
        return record

    def tasks(self, data: NodeData, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        training = part == "train"
        ways = self.ways if training else self.test_ways
        shots = self.shots if training else self.test_shots
        options = {
            "num_ways": ways,
            "num_support": shots,
            "num_query": self.queries if training else self.eval_queries,
            "name": (
                f"{data.graph.name} {self.split_number} {part} {ways}-way {shots}-shot"
            ),
        }
        nodes, graph = data.split.nodes[part], data.graph
        return node_tasks(
            data.features,
            nodes,
            graph.labels,
            graph.class_names,
            around=data.around,
            **options,
        )

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""

        def examples(per_class: int) -> Examples:
            num, width = self.ways * per_class, record["num_features"]
            x: Any = jnp.zeros((num, width))
            if self.encoder == "gcn":
                size = record["nodes"]
                x = {
                    "features": jnp.zeros((num, size, width)),
                    "links": jnp.zeros((num, size, size)),
                }
            return Examples.of(x, jnp.zeros((num,), jnp.int32))

        info = {
            "class_ids": jnp.zeros((self.ways,), jnp.int32),
            "num_ways": jnp.zeros((), jnp.int32),
        }
        return Task(support=examples(self.shots), query=examples(self.queries), info=info)

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        return {
            "model": self._network(self.ways if learner.record.fixed_head else None),
            "encoder": self._network(None),
            "loss_fn": losses.cross_entropy,
            "num_classes": record.get("num_classes"),
            **head_offers(self, learner, evaluating=evaluating),
        }

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of two test tasks, before and after adaptation."""
        panels = []
        for number in range(2):
            task = predictor.task(number)
            x = task.query.x
            shown = x["features"][:, 0] if isinstance(x, dict) else x
            before = predictor.before(task, x)
            ids = np.asarray(task.info["class_ids"])
            names = [record["parts"]["test"]["classes"][int(i)] for i in ids]
            panels.append(
                pictures.NodePanel(
                    places=pictures.plane(np.asarray(shown)),
                    truth=np.asarray(task.query.y),
                    before=None if before is None else before.argmax(-1),
                    after=predictor.after(task, x).argmax(-1),
                    class_names=tuple(names),
                )
            )
        title = f"Queries of two test tasks of {record['name']} ({predictor.learner})"
        pictures.nodes(path, panels, title=title)

    def _network(self, num_outputs: int | None) -> Model:
        network = SGC if self.encoder == "sgc" else GCN
        return from_linen(network(num_outputs, self.widths))
