"""Recipes of nodes: a minute on one core, with the file of a graph in `--data-dir`.

Another graph by `--app.dataset`, other test classes by `--app.split-number`.
"""

from __future__ import annotations

from typing import Any

from metalearn.apps import learners
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.graphs.few_nodes import FewShotNodes
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Outer, sgd


def _graph(learner: Learner, app: dict[str, Any] | None = None, **rest: Any) -> Recipe:
    shared: dict[str, Any] = {
        "outer": Outer(rate=3e-3),
        "tasks_per_step": 5,
        "steps": 60,
        "log_every": 10,
        "validate_every": 10,
        "validation_tasks": 250,
        "test_tasks": 250,
        "checkpoint_every": 60,
    }
    return Recipe(app=FewShotNodes(**app or {}), learner=learner, **shared | rest)


_GCN = {"encoder": "gcn", "widths": (16, 16)}

RECIPES: dict[str, Entry] = {
    "graphs-meta-gnn": Entry(
        "Meta-GNN: MAML of SGC on papers by citations (Cora), 2-way 3-shot",
        # With an outer rate of 3e-3, validation is below that of the initialisation.
        _graph(learners.MAML(inner_opt=sgd(2.0), num_steps=10), outer=Outer(rate=3e-4)),
    ),
    "graphs-meta-gcn": Entry(
        "Meta-GNN with graph convolutions in place of SGC",
        _graph(
            learners.MAML(inner_opt=sgd(0.5), num_steps=10), {**_GCN, "degrees": "graph"}
        ),
    ),
    "graphs-g-meta": Entry(
        "G-Meta: prototypes that adapt, of the subgraphs around nodes",
        _graph(learners.GMeta(inner_opt=sgd(0.01), num_steps=10), _GCN),
    ),
    "graphs-protonet": Entry(
        "prototypical networks on the features of SGC",
        _graph(learners.ProtoNet()),
    ),
    "graphs-fine-tune": Entry(
        "baseline: SGC of the training classes, with a new head for each task",
        _graph(learners.FineTuning(opt=sgd(0.5), num_steps=100)),
    ),
    "graphs-centroid": Entry(
        "baseline: the nearest centroid of features of norm 1, nothing is trained",
        _graph(learners.ProtoNet(), {"widths": ()}, steps=1, validate_every=1),
    ),
    "graphs-joint": Entry(
        "baseline: one SGC for all tasks, which does not adapt",
        _graph(learners.NoAdaptation()),
    ),
}
