"""Recipes: every choice of a training run as one typed record."""

from metalearn.algorithms.registry import SYSTEMS
from metalearn.apps.base import Entry, Recipe
from metalearn.apps.curves.recipe import SinusoidRecipe
from metalearn.apps.images.recipe import ImageRecipe
from metalearn.apps.registry import DEFAULT, KINDS, RECIPES, find

__all__ = [
    "DEFAULT",
    "KINDS",
    "RECIPES",
    "SYSTEMS",
    "Entry",
    "ImageRecipe",
    "Recipe",
    "SinusoidRecipe",
    "find",
]
