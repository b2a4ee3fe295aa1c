"""The applications and their recipes."""

from __future__ import annotations

import difflib

from metalearn.apps import (
    control,
    curves,
    distillation,
    domains,
    graphs,
    images,
    labels,
    places,
    recommendation,
    text,
)
from metalearn.apps.base import Application, DataRecord, Entry, Recipe

DEFAULT = "glyphs-maml"

APPLICATIONS = (
    *images.APPLICATIONS,
    *curves.APPLICATIONS,
    *text.APPLICATIONS,
    *recommendation.APPLICATIONS,
    *domains.APPLICATIONS,
    *graphs.APPLICATIONS,
    *labels.APPLICATIONS,
    *places.APPLICATIONS,
    *distillation.APPLICATIONS,
    *control.APPLICATIONS,
)
KINDS: dict[str, type[Application]] = {app.kind: app for app in APPLICATIONS}
RECIPES: dict[str, Entry] = {
    **images.RECIPES,
    **curves.RECIPES,
    **text.RECIPES,
    **recommendation.RECIPES,
    **domains.RECIPES,
    **graphs.RECIPES,
    **labels.RECIPES,
    **places.RECIPES,
    **distillation.RECIPES,
    **control.RECIPES,
}


def find(name: str) -> Entry:
    """The entry of that name.

    Raises:
      ValueError: no recipe has the name; the message suggests the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(f"unknown recipe {name!r}.{hint} See them all with: metalearn list")


def recipe_of(settings: DataRecord) -> Recipe:
    """The recipe that `Recipe.settings` describes.

    Raises:
      ValueError: the settings have a field that this version does not know.
      KeyError: a part of the settings is missing.
    """
    return Recipe.from_settings(settings, KINDS)
