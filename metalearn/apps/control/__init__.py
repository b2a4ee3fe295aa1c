"""Policies that adapt to a new task by a few episodes of it."""

from metalearn.apps.control.episodes import Episodes
from metalearn.apps.control.recipes import RECIPES

APPLICATIONS = (Episodes,)

__all__ = ["APPLICATIONS", "RECIPES", "Episodes"]
