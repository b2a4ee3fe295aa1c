"""Recommendation to users and of items without a history."""

from metalearn.apps.recommendation.candidates import Candidate, candidates, movements
from metalearn.apps.recommendation.clicks import ItemClicks
from metalearn.apps.recommendation.few_ratings import FewRatings
from metalearn.apps.recommendation.recipes import RECIPES

APPLICATIONS = (FewRatings, ItemClicks)

__all__ = [
    "APPLICATIONS",
    "RECIPES",
    "Candidate",
    "FewRatings",
    "ItemClicks",
    "candidates",
    "movements",
]
