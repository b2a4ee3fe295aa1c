"""Recipes: every choice of a training run as one typed record."""

from metalearn.recipes.base import Entry, Recipe
from metalearn.recipes.images import ImageRecipe
from metalearn.recipes.registry import DEFAULT, KINDS, RECIPES, find
from metalearn.recipes.sinusoid import SinusoidRecipe

__all__ = [
    "DEFAULT",
    "KINDS",
    "RECIPES",
    "Entry",
    "ImageRecipe",
    "Recipe",
    "SinusoidRecipe",
    "find",
]
