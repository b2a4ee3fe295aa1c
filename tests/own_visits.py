"""A small table of visits: areas in which users go round their own places."""

import csv

import numpy as np

AREAS, USERS, VISITS, PLACES = 6, 6, 13, 16


def own_visits(*, areas: int = AREAS, users: int = USERS, places: int = PLACES):
    """Columns of a table; rows of a user are in the order of time, users take turns."""
    random = np.random.default_rng(0)
    rows = []
    for visit in range(VISITS):
        for area in range(areas):
            for user in range(users):
                place = (3 * user + visit * (1 + user % 2) + random.integers(3)) % places
                rows.append((area, user, place, 10.0 * visit + user / 10))
    area, user, place, hours = (np.asarray(column) for column in zip(*rows, strict=True))
    return {
        "user": [f"{a}-{u}" for a, u in zip(area, user, strict=True)],
        "place": [f"{a}-{p}" for a, p in zip(area, place, strict=True)],
        "time": hours,
        "category": [f"kind {p % 3}" for p in place],
        "lat": 50 + 0.01 * (place % 4),
        "lon": 8 + area + 0.01 * (place // 4),
        "area": [f"area {a}" for a in area],
    }


def write_own_visits(folder, **changes):
    """Writes visits.csv and returns the folder."""
    table = own_visits(**changes)
    with open(folder / "visits.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))
    return folder
