"""Few-shot regression of functions of one variable."""

from metalearn.apps.curves.functions import Curves
from metalearn.apps.curves.recipes import RECIPES

APPLICATIONS = (Curves,)

__all__ = ["APPLICATIONS", "RECIPES", "Curves"]
