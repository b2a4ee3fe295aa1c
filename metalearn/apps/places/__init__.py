"""The next place of users in new areas."""

from metalearn.apps.places.curriculum import easy_to_hard
from metalearn.apps.places.next_place import NextPlace, PlaceData
from metalearn.apps.places.recipes import RECIPES

APPLICATIONS = (NextPlace,)

__all__ = ["APPLICATIONS", "RECIPES", "NextPlace", "PlaceData", "easy_to_hard"]
