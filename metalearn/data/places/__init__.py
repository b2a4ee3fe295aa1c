"""Visits of users to places, areas of them, and tasks: which place is next."""

from metalearn.data.places.areas import area_of_places
from metalearn.data.places.episodes import AllUsers, SomeUsers, place_tasks
from metalearn.data.places.sources import LAYOUTS, load_visits
from metalearn.data.places.tables import Area, areas_of, known_categories, padded
from metalearn.data.places.vectors import place_vectors
from metalearn.data.places.visits import Visits, visit_table

__all__ = [
    "LAYOUTS",
    "AllUsers",
    "Area",
    "SomeUsers",
    "Visits",
    "area_of_places",
    "areas_of",
    "known_categories",
    "load_visits",
    "padded",
    "place_tasks",
    "place_vectors",
    "visit_table",
]
