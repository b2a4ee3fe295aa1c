"""Visits, areas and tasks of places: no query is known before, and bad tables are named."""

import dataclasses

import jax
import numpy as np
import pytest
from own_visits import AREAS, USERS, own_visits

from metalearn.core.columns import Table
from metalearn.data import places
from metalearn.data.places.areas import halved
from metalearn.data.places.sources import unrolled
from metalearn.data.places.tables import RECORDS
from metalearn.data.places.visits import kilometres
from metalearn.tasks import in_order

SIZES = {"least_visits": 1, "least_users": 4, "negatives": 2, "dim": 4}


@pytest.fixture(scope="module")
def visits():
    return places.visit_table(own_visits())


@pytest.fixture(scope="module")
def areas(visits):
    return places.areas_of(visits, **SIZES)


def _with(**columns):
    return {**own_visits(), **columns}


def _changed(name, row, value):
    column = list(own_visits()[name])
    column[row] = value
    return _with(**{name: column})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (_changed("time", 40, -3.0), r"'time' goes back from .* to -3 h in row 40"),
        (_changed("time", 7, np.nan), r"'time' holds nan in row 7"),
        (_changed("user", 3, None), r"'user' holds None in row 3"),
        (_changed("lat", 5, 95.0), r"'lat' holds 95 in row 5"),
        (_changed("area", 467, "area 1"), r"'area' has 'area 1' in row 467.*'area 5'"),
        (_with(time=["noon"] * len(own_visits()["time"])), "'noon' in row 0.*no time"),
        (_changed("time", 3, 1.7e9), r"1.7e\+09 in row 3.*Divide seconds by 3600"),
        (_changed("user", 4, " "), "'user' is empty in row 4"),
        (_changed("place", 8, ""), "'place' is empty in row 8"),
        (_changed("area", 9, " "), "'area' is empty in row 9"),
        (_changed("time", 5, " "), "'time' is empty in row 5, .* expected a time"),
        (_changed("lat", 6, ""), "'lat' is empty in row 6, .* expected degrees"),
        (_changed("lat", 6, "8.1 E"), "'lat' has '8.1 E' in row 6.* before have numbers"),
        (_changed("time", 6, "noon"), "'time' has 'noon' in row 6.* before have numbers"),
        (
            _with(time=["2024-05-01", *own_visits()["time"][1:]]),
            "row 1,.* before have text",
        ),
        (_changed("lon", 6, -170.0), r"up to .* km apart; expected 1,112 km"),
        (_with(time=np.ones(len(own_visits()["time"]), "m8[h]")), "no times"),
        ({k: v for k, v in own_visits().items() if k != "lon"}, "'lat' alone"),
        ({k: v for k, v in own_visits().items() if k != "place"}, "the column 'place'"),
    ],
)
def test_bad_tables_are_refused_by_column_and_row(table, said):
    with pytest.raises(ValueError, match=said):
        places.visit_table(table)


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({"user": "place"}, "user and place both name the column 'place'"),
        ({"lon": "lat"}, "lat and lon both name the column 'lat'"),
        ({"category": "area"}, "category and area both .* 'area'.* None for a role"),
    ],
)
def test_a_column_has_one_role(roles, said):
    with pytest.raises(ValueError, match=said):
        places.visit_table(own_visits(), **roles)


def test_columns_of_one_name_are_refused():
    class Frame:
        """As a data frame, which gives all columns of a name."""

        columns = ("user", "place", "time", "place")

        def __getitem__(self, name):
            return own_visits()[name]

    with pytest.raises(ValueError, match=r"'place' more than once, in places \[1, 3\]"):
        places.visit_table(Frame())


def test_wide_tables_are_checked_at_once():
    wide = Table({str(number): [number] for number in range(20_000)})  # 10 s by pairs
    assert len(wide.names) == 20_000


def test_blanks_around_cells_of_a_file_are_no_part_of_them(tmp_path):
    lines = ["user, place ,time", "ann,zoo,1", " ann ,inn,2", "bob, zoo,3"]
    (tmp_path / "visits.csv").write_text("\n".join(lines), encoding="utf-8")
    found = places.load_visits("own", tmp_path)
    assert found.users.tolist() == ["ann", "bob"]
    assert found.places.tolist() == ["inn", "zoo"]


@pytest.mark.parametrize("time", ["2024-05-01T18:30+02:00", "now"])
def test_dates_are_of_the_clock_of_the_place(time):
    dates = ["2024-05-01T18:30", time]
    table = {"user": ["a", "b"], "place": ["x", "y"], "time": np.asarray(dates, object)}
    with pytest.raises(ValueError, match="in row 1, counted from 0, which is no time"):
        places.visit_table(table)


def test_positions_lie_about_the_middle_of_each_city():
    lat, lon = np.array([60.0, 60.0, 0.0, 0.0]), np.array([10.0, 10.02, 179.99, -179.99])
    where = kilometres(lat, lon, np.array([0, 0, 1, 1]))
    apart = np.linalg.norm(where[1::2] - where[::2], axis=1)
    np.testing.assert_allclose(apart, [0.01 * 111.2, 0.02 * 111.2], rtol=1e-3)


def test_dates_are_hours(visits):
    start = np.datetime64("2024-05-01T00:00:00")
    hours = np.asarray(own_visits()["time"])
    dates = start + (3600 * hours).round().astype("timedelta64[s]")
    found = places.visit_table(_with(time=dates.astype(str).tolist()))
    apart = found.hours - visits.hours
    np.testing.assert_allclose(apart, apart[0], atol=1e-3)


def test_areas_with_few_users_or_places_are_named(visits):
    with pytest.raises(ValueError, match=r"area 'area 0' has 6 users .* expected 9"):
        places.areas_of(visits, **SIZES | {"least_users": 9})
    with pytest.raises(ValueError, match=r"all but \d+; expected 50 others"):
        places.areas_of(visits, **SIZES | {"negatives": 50})


def test_users_with_fewer_records_are_left_out(areas):
    table = own_visits()
    row = table["user"].index("0-0")
    late = [i for i, u in enumerate(table["user"]) if u == "0-0"][:6]
    kept = [i for i in range(len(table["user"])) if i not in late]
    shorter = {k: [v[i] for i in kept] for k, v in table.items()}
    found = places.areas_of(places.visit_table(shorter), **SIZES)
    assert row == 0 and areas[0].num_users == USERS and found[0].num_users == USERS - 1


def test_records_are_the_last_visits_and_vectors_never_saw_them(visits, areas):
    area = areas[2]
    rows = [i for i, u in enumerate(visits.users[visits.user]) if u == "2-1"]
    names = visits.places[visits.place[rows]]
    assert area.ids[area.place[1]].tolist() == names[-RECORDS:].tolist()
    own = area.earlier_user == 1
    assert area.ids[area.earlier_place[own]].tolist() == names[:-RECORDS].tolist()
    # Other queries, the same vectors and statistics of distance and time.
    moved = np.where(area.place[:, 7:] == 0, 1, 0)
    place = visits.place.copy()
    for user in range(USERS):
        mine = np.flatnonzero(visits.users[visits.user] == f"2-{user}")[-3:]
        place[mine] = [list(visits.places).index(area.ids[p]) for p in moved[user]]
    other = places.areas_of(dataclasses.replace(visits, place=place), **SIZES)[2]
    assert (other.place[:, 7:] != area.place[:, 7:]).all()
    assert other.ids.tolist() == area.ids.tolist()
    np.testing.assert_array_equal(other.vector, area.vector)
    np.testing.assert_array_equal(other.gap, area.gap)


@pytest.mark.parametrize(("more_areas", "more_users"), [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_plans_of_another_pool_are_refused(areas, more_areas, more_users):
    tasks = places.place_tasks(areas, num_users=3)
    num, users = tasks.sample.num_areas, tasks.sample.most_users
    plan = {"areas": np.ones(num + more_areas), "users": np.ones(users + more_users)}
    with pytest.raises(
        ValueError, match=rf"expected ml\.Pool\(areas={num}, users={users}\)"
    ):
        tasks.sample.planned(tasks.data, plan, jax.random.key(0))


def test_tasks_show_records_before_and_places_never_visited(areas):
    key, plain = jax.random.key(5), places.place_tasks(areas, num_users=3)
    assert "returns" not in jax.eval_shape(plain.sample, plain.data, key).query.x
    tasks = places.place_tasks(areas, num_users=3, returns=True)
    task = jax.tree.map(np.asarray, jax.jit(tasks.sample)(tasks.data, key))
    area = areas[int(task.info["area"])]
    users = task.info["query_user"]
    assert len(set(users.tolist())) == 3 and (users == np.repeat(users[::3], 3)).all()
    for part, records in ((task.support, (5, 6)), (task.query, (7, 8, 9))):
        seen, x = part.x["seen"], part.x
        assert (seen.sum(1).reshape(3, -1) == records).all()
        for row, user in enumerate(np.repeat(users[::3], len(records))):
            own = area.place[user]
            np.testing.assert_array_equal(x["history"]["vector"][row], area.vector[own[:9]])
            right, other = x["candidates"]["vector"][row]
            at = records[row % len(records)]
            np.testing.assert_array_equal(right, area.vector[own[at]])
            free = area.free[user, : area.free_count[user]]
            visited = {*own, *area.earlier_place[area.earlier_user == user]}
            assert not visited & set(free.tolist())
            assert (area.vector[free] == other).all(1).any()
            assert x["candidates"]["hour"][row, 0] == area.hour[user, at]
            again = (own[:9] == own[at]) & (np.arange(9) < at)
            np.testing.assert_array_equal(x["returns"][row], [again, np.zeros(9, bool)])
        assert (part.y == [1, 0]).all() and part.mask.all()


def test_judged_tasks_have_every_user_once_and_the_same_ranking(areas):
    few = dataclasses.replace(
        areas[1], **{k: getattr(areas[1], k)[:4] for k in ("place", "hour", "gap")}
    )
    few = dataclasses.replace(
        few, free=few.free[:4], free_count=few.free_count[:4], ranked=few.ranked[:4]
    )
    tasks = in_order(places.place_tasks([areas[0], few]))
    assert tasks.num_tasks == 2
    batch = jax.tree.map(np.asarray, next(iter(tasks.batches(2, 0))))
    assert batch.query.y.shape == (2, 3 * USERS, 3)
    assert batch.query.mask.sum(1).tolist() == [3 * USERS, 12]
    assert batch.support.mask.sum(1).tolist() == [2 * USERS, 8]
    again = jax.tree.map(np.asarray, next(iter(in_order(tasks_of(areas)).batches(2, 0))))
    np.testing.assert_array_equal(
        batch.query.x["candidates"]["vector"][0], again.query.x["candidates"]["vector"][0]
    )
    ranked = areas[0].ranked
    assert all(len(set(row)) == 2 for row in ranked.reshape(-1, 2).tolist())


def tasks_of(areas):
    return places.place_tasks(areas[:2])


def test_areas_are_made_of_positions_or_of_users():
    table = {k: v for k, v in own_visits().items() if k != "area"}
    whole = places.visit_table(table)
    of_place, names = places.area_of_places(whole, area_visits=80, least_visits=1)
    assert len(names) == 2 ** round(np.log2(len(whole) / 80))
    # Cells: the places of a cell are beside one another.
    lon = np.asarray([whole.where[of_place == a, 0].mean() for a in range(len(names))])
    assert len(set(lon.round(3))) > 1
    blind = dataclasses.replace(whole, where=None)
    of_place, names = places.area_of_places(blind, area_visits=234, least_visits=1)
    # Users of two areas of the table share no place, so halving never parts one.
    groups = [{p.split("-")[0] for p in blind.places[of_place == a]} for a in range(2)]
    assert len(names) == 2 and len(groups[0]) == AREAS / 2 and not groups[0] & groups[1]


def test_halves_have_equal_weight():
    weights = np.random.default_rng(0).integers(1, 9, 200)
    part = halved(np.arange(200), weights, 3, lambda rows: rows.astype(float))
    sums = np.bincount(part, weights=weights)
    assert len(sums) == 8 and np.ptp(sums) <= 3 * weights.max()


def test_weeks_are_counted_and_time_never_goes_back():
    hours = unrolled(np.array([166, 168, 1, 3, 2, 80, 20, 30], np.int16))
    assert hours.tolist() == [165, 167, 168, 170, 170, 247, 247, 247]


def test_categories_that_training_has_not_are_unknown(areas):
    base = [dataclasses.replace(areas[0], category=np.full_like(areas[0].category, 2))]
    (other,), num = places.known_categories(base, [areas[1]], 4)
    assert num == 4 and set(other.category.tolist()) == {0, 2}


@pytest.mark.data
def test_shared_sets_are_read(shared_dir):
    found = places.load_visits("flickr_tours", shared_dir / "data")
    assert len(found) == 7853 + 7246 + 1372 + 7607 and found.are_areas
    found = places.load_visits("foursquare_nyc_geo", shared_dir / "data")
    assert len(found) == 147_938 and found.where.shape == (5135, 2)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing \(visits\.csv\)"):
        places.load_visits("own", tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'foursquare_cities'"):
        places.load_visits("foursquare_city", tmp_path)


@pytest.mark.parametrize(("name", "value"), [("negatives", 1), ("dim", 2)])
def test_areas_of_other_settings_are_not_mixed(visits, areas, name, value):
    other = places.areas_of(visits, **{**SIZES, name: value})
    with pytest.raises(ValueError, match=rf"made with {name}=.* with {value}; expected"):
        places.place_tasks([areas[0], other[1]])


def test_places_with_too_few_visits_are_told():
    few = places.visit_table({"user": [1], "place": [1], "time": [1.0]})
    with pytest.raises(ValueError, match=r"none of the 1 places has 10 visits.* has is 1"):
        places.areas_of(few)


def test_columns_that_play_no_role_may_have_one_name(visits):
    table = np.rec.fromarrays(
        [np.asarray(column) for column in own_visits().values()], names=[*own_visits()]
    )

    class Frame:
        columns = (*own_visits(), "more", "more")

        def __getitem__(self, name):
            return table[name]

    found = places.visit_table(Frame())
    assert found.places.tolist() == visits.places.tolist()


def test_a_role_of_a_column_that_is_not_there_is_not_played(visits):
    columns = {k: v for k, v in own_visits().items() if k not in ("category", "area")}
    found = places.visit_table(columns, category="kind", area="kind")
    assert found.categories == () and len(found.cities) == 1
