"""Ratings of items by users, with what is known of both; and splits for a cold start."""

from metalearn.data.ratings.movielens import LAYOUTS, load_ratings
from metalearn.data.ratings.split import STATES, ColdStart, cold_start
from metalearn.data.ratings.tables import Attribute, Entities, Ratings, rating_tables

__all__ = [
    "LAYOUTS",
    "STATES",
    "Attribute",
    "ColdStart",
    "Entities",
    "Ratings",
    "cold_start",
    "load_ratings",
    "rating_tables",
]
