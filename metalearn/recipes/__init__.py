"""Recipes: every choice of a training run as one typed record."""

from metalearn.recipes.base import Entry, Recipe
from metalearn.recipes.images import ImageRecipe
from metalearn.recipes.registry import DEFAULT, KINDS, RECIPES, find
from metalearn.recipes.sinusoid import SinusoidRecipe
from metalearn.recipes.systems import SYSTEMS

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
