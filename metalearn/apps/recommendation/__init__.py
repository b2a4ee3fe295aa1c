"""Recommendation to users and of items without a history."""

from metalearn.apps.recommendation.candidates import Candidate, candidates, movements
from metalearn.apps.recommendation.few_ratings import FewRatings
from metalearn.apps.recommendation.recipes import RECIPES

APPLICATIONS = (FewRatings,)

__all__ = ["APPLICATIONS", "RECIPES", "Candidate", "FewRatings", "candidates", "movements"]
