"""Tables of few ratings, as files of a user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

NUM_USERS, NUM_ITEMS = 30, 24


def write_own_ratings(folder: Path) -> Path:
    """Users like either kind of item; users and items have one and two attributes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    users = [f"u{i},{'old' if i % 3 else 'young'}" for i in range(NUM_USERS)]
    items = [f"{i},{'a|b' if i % 2 else 'b'},r{i % 3}" for i in range(NUM_ITEMS)]
    rows = []
    for user in range(NUM_USERS):
        for item in rng.permutation(NUM_ITEMS)[: rng.integers(10, 20)]:
            likes = (item + user) % 2
            rows.append(f"u{user},{item},{2 + 2 * likes + rng.integers(0, 2)}")
    for name, head, lines in (
        ("users.csv", "user,age", users),
        ("items.csv", "item,genres,rated", items),
        ("ratings.csv", "user,item,rating", rows),
    ):
        (folder / name).write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return folder
