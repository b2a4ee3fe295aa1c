"""Ratings of items by users, with what is known of both; and splits for a cold start."""

from metalearn.data.ratings.behaviour import other_clicks
from metalearn.data.ratings.movielens import LAYOUTS, load_ratings
from metalearn.data.ratings.split import (
    STATES,
    ColdStart,
    check_shares,
    cold_start,
    item_parts,
    without_unseen,
)
from metalearn.data.ratings.tables import Attribute, Entities, Ratings, rating_tables

__all__ = [
    "LAYOUTS",
    "STATES",
    "Attribute",
    "ColdStart",
    "Entities",
    "Ratings",
    "check_shares",
    "cold_start",
    "item_parts",
    "load_ratings",
    "other_clicks",
    "rating_tables",
    "without_unseen",
]
