"""Vectors of places from earlier visits, by a singular value decomposition."""

from __future__ import annotations

import numpy as np

from metalearn.data import arguments


def place_vectors(
    user: np.ndarray, place: np.ndarray, num_users: int, num_places: int, *, dim: int
) -> np.ndarray:
    """Vectors of places, of which none changes in training.

    The table of users and places has `log(1 + visits)`. Its first `dim - 1` right singular
    vectors, times the roots of their singular values, tell places apart; the last number is
    `log(1 + visits)` of the place, standardised. So areas have vectors of the same kind, in
    the order of what they explain, though not of the same meaning.

    Args:
      user: Number of the user of each visit, int `[R]`.
      place: Number of the place of each visit, int `[R]`.
      num_users: Number of users.
      num_places: Number of places P.
      dim: Length of a vector, 2 or more.

    Returns:
      Float32 `[P, dim]`: zeros but for the last number where a place was never visited. The
      mean square of the first `dim - 1` numbers is 1.

    Raises:
      TypeError: users or places are no whole numbers.
      ValueError: a number is out of range, or a visit lacks its user or place.
    """
    arguments.count("num_users", num_users, least=1)
    arguments.count("num_places", num_places, least=1)
    arguments.count("dim", dim, least=2)
    user = arguments.integers("user", user, least=0, below=num_users)
    place = arguments.integers("place", place, least=0, below=num_places)
    if len(user) != len(place):
        raise ValueError(
            f"user has {len(user)} rows and place {len(place)}; expected one of each for "
            "every visit."
        )
    table = np.zeros((num_users, num_places))
    np.add.at(table, (user, place), 1)
    counts = table.sum(0)
    _, sizes, right = np.linalg.svd(np.log1p(table), full_matrices=False)
    kept = min(dim - 1, len(sizes))
    found = np.zeros((num_places, dim))
    parts = right[:kept].T * np.sqrt(sizes[:kept])[None]
    # The sign of a singular vector is not determined.
    parts *= np.where(parts.sum(0) < 0, -1, 1)[None]
    found[:, :kept] = parts / max(np.sqrt(np.mean(parts**2)), 1e-12)
    popular = np.log1p(counts)
    found[:, -1] = (popular - popular.mean()) / max(popular.std(), 1e-12)
    return found.astype(np.float32)
