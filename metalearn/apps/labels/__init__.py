"""Learning from wrong labels and from rare classes, with a few clean examples."""

from metalearn.apps.labels.noisy import NoisyLabels
from metalearn.apps.labels.recipes import RECIPES

APPLICATIONS = (NoisyLabels,)

__all__ = ["APPLICATIONS", "RECIPES", "NoisyLabels"]
