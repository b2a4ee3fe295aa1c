"""Recipes: every choice of a training run as one typed record, made of records."""

from metalearn.apps.base import Application, Entry, Recipe
from metalearn.apps.control import Episodes
from metalearn.apps.curves import Curves
from metalearn.apps.distillation import Distillation
from metalearn.apps.domains import UnseenDomain
from metalearn.apps.graphs import FewShotNodes
from metalearn.apps.images import FewShotFeatures, FewShotImages, MixedImages
from metalearn.apps.labels import NoisyLabels
from metalearn.apps.optimisers import Optimiser, Outer, adam, sgd
from metalearn.apps.places import NextPlace
from metalearn.apps.recommendation import FewRatings, ItemClicks
from metalearn.apps.registry import DEFAULT, KINDS, RECIPES, find, recipe_of
from metalearn.apps.text import FewShotText

__all__ = [
    "DEFAULT",
    "KINDS",
    "RECIPES",
    "Application",
    "Curves",
    "Distillation",
    "Entry",
    "Episodes",
    "FewRatings",
    "ItemClicks",
    "FewShotFeatures",
    "FewShotImages",
    "FewShotNodes",
    "FewShotText",
    "MixedImages",
    "NextPlace",
    "NoisyLabels",
    "Optimiser",
    "Outer",
    "Recipe",
    "UnseenDomain",
    "adam",
    "find",
    "recipe_of",
    "sgd",
]
