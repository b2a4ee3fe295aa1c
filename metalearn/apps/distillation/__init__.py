"""Small students of large teachers, on images, intents or arrays of one's own."""

from metalearn.apps.distillation.recipes import RECIPES
from metalearn.apps.distillation.teaching import Distillation

APPLICATIONS = (Distillation,)

__all__ = ["APPLICATIONS", "RECIPES", "Distillation"]
