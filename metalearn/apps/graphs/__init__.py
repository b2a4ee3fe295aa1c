"""Few-shot classification of the nodes of a graph."""

from metalearn.apps.graphs.few_nodes import FewShotNodes
from metalearn.apps.graphs.recipes import RECIPES

APPLICATIONS = (FewShotNodes,)

__all__ = ["APPLICATIONS", "RECIPES", "FewShotNodes"]
