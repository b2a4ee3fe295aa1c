"""Tables of ratings, users and items as arrays of codes; and the states of a cold start."""

from __future__ import annotations

import gzip
import tracemalloc

import numpy as np
import pytest

from metalearn.data.ratings import (
    STATES,
    cold_start,
    load_ratings,
    rating_tables,
    without_unseen,
)

USERS = {"user": ["ann", "bob", "cid"], "age": ["20s", "30s", "20s"], "town": [7, 7, 9]}
ITEMS = {"item": [30, 10, 20], "genres": ["Drama|Crime", "", "Drama | Drama"]}
RATINGS = {
    "user": ["bob", "ann", "bob", "cid"],
    "item": [10, 30, 30, 20],
    "rating": [1.0, 5.0, 3.5, 4.0],
}


def _made(ratings=None, users=None, items=None, **options):
    options = {"separators": {"genres": "|"}, **options}
    tables = [
        {**base, **(new or {})}
        for base, new in ((RATINGS, ratings), (USERS, users), (ITEMS, items))
    ]
    return rating_tables(*tables, **options)


def test_codes_stand_for_sorted_values_and_fill_places_from_the_left():
    found = _made()
    assert found.users.attributes[0].values == ("20s", "30s")
    assert found.items.attributes[0].values == ("Crime", "Drama")
    assert found.fields == ((2, 1), (2, 1), (2, 2))
    np.testing.assert_array_equal(found.users.codes, [[0, 0], [1, 0], [0, 1]])
    # In the order of the cell, each value once; an empty cell has none.
    np.testing.assert_array_equal(found.items.codes, [[1, 0], [-1, -1], [1, -1]])
    np.testing.assert_array_equal(found.user, [1, 0, 1, 2])
    np.testing.assert_array_equal(found.item, [1, 0, 0, 2])
    np.testing.assert_array_equal(
        found.content_of(), [[1, 0, -1, -1], [0, 0, 1, 0], [1, 0, 1, 0], [0, 1, 1, -1]]
    )
    np.testing.assert_array_equal(found.content_of([2]), [[1, 0, 1, 0]])
    np.testing.assert_array_equal(found.items.code("genres"), found.items.codes)
    assert found.rating.dtype == np.float32 and len(found) == 4


def test_data_frames_give_the_same():
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame(table) for table in (RATINGS, USERS, ITEMS)]
    found = rating_tables(*frames, separators={"genres": "|"})
    assert found.digest == _made().digest
    missing = pandas.DataFrame(ITEMS).replace({"genres": {"": None}})
    assert rating_tables(*frames[:2], missing, separators={"genres": "|"}).digest == (
        _made().digest
    )


def test_users_and_items_without_a_rating_are_kept():
    found = _made(users={"user": ["ann", "bob", "cid"]}, ratings=None)
    more = {name: [*column, new] for (name, column), new in zip(USERS.items(), "d4z")}
    more["town"] = [7, 7, 9, 9]
    assert len(_made(users=more).users) == 4 == len(found.users) + 1


FAULTS = {
    "unknown user": ({"ratings": {"user": ["bob", "ann", "bob", "eve"]}}, "'eve' in row 3"),
    "unknown item": ({"ratings": {"item": [10, 30, 31, 20]}}, "31 in row 2"),
    "too high": ({"ratings": {"rating": [1, 5, 6, 4]}}, "6 in row 2.*outside 1 to 5"),
    "too low": ({"ratings": {"rating": [0, 5, 3, 4]}}, "0 in row 0"),
    "no number": ({"ratings": {"rating": [1, 5, np.nan, 4]}}, "nan in row 2"),
    "text": ({"ratings": {"rating": ["1", "5", "3", "4"]}}, "expected numbers"),
    "twice": (
        {"ratings": {"user": ["bob", "ann", "ann", "cid"]}},
        "rows 1 and 2.*'ann'.*30",
    ),
    "user twice": (
        {"users": {"user": ["ann", "bob", "ann"]}},
        "table of users: .*'ann' again in row 2",
    ),
    "user without a name": (
        {"users": {"user": ["ann", " ", "bob"]}},
        "of users: .* empty in row 1",
    ),
    "item twice": ({"items": {"item": [30, 10, 10]}}, "10 again in row 2"),
    "user without name": ({"users": {"user": ["ann", None, "cid"]}}, "row 1"),
    "numbers": ({"users": {"town": [0.5, 1.5, 2.0]}}, "Make bands of numbers"),
    "nothing known": ({"items": {"genres": ["", "", ""]}}, "no value in any row"),
    "one column twice": ({"item": "user"}, "user and item both name the column 'user'"),
    "mixed list": ({"users": {"user": ["ann", 7, "cid"]}}, "users: .* mixes int and str"),
    "limits": ({"limits": (5, 1)}, "limits are"),
    "no limits": ({"limits": None}, "limits are None"),
    "limits of text": ({"limits": ("1", "x")}, "limits are"),
    "separator": ({"separators": {"genres": ""}}, "separator of 'genres'"),
    "separator of none": ({"separators": {"genre": "|"}}, "separators names genre"),
    "no column": ({"user_columns": ["agee"]}, "Did you mean 'age'"),
    "key among columns": ({"item_columns": ["item"]}, "each once"),
    "no columns": ({"item_columns": []}, "one or more"),
    "misspelt rating": ({"rating": "stars"}, "'stars'"),
    "lengths": ({"ratings": {"rating": [1.0]}}, "one length"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named_with_column_and_row(fault):
    given, said = FAULTS[fault]
    with pytest.raises(ValueError, match=said):
        _made(**given)


def test_a_text_in_place_of_a_list_of_columns_is_refused():
    for given in ("age", 5):
        with pytest.raises(TypeError, match="a list of names"):
            _made(user_columns=given)
    with pytest.raises(TypeError, match="separators is"):
        _made(separators="|")


def test_a_rating_on_the_limit_is_within_it():
    found = _made({"rating": [0.7, 0.7, 0.9, 0.8]}, limits=(0.7, 0.9))
    assert len(found) == 4


def test_one_long_cell_does_not_make_all_cells_long():
    tracemalloc.start()
    genres = ["x" * 200_000, *["Drama"] * 999]
    items = {"item": list(range(1000)), "genres": genres}
    _made({"item": [0, 1, 2, 3]}, items=items)
    assert tracemalloc.get_traced_memory()[1] < 50e6  # 800 MB in an array of text
    tracemalloc.stop()


# -- States of a cold start ------------------------------------------------------------


def _many(num_users=40, num_items=30, seed=0):
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(num_users * num_items)[:900]
    users = {"user": np.arange(num_users), "age": rng.integers(0, 3, num_users)}
    items = {"item": np.arange(num_items), "kind": rng.integers(0, 4, num_items)}
    table = {"user": pairs // num_items, "item": pairs % num_items}
    return rating_tables({**table, "rating": rng.integers(1, 6, 900)}, users, items)


def test_states_part_the_ratings_and_training_sees_none_of_a_test():
    ratings = _many()
    split = cold_start(ratings, held=3, seed=1)
    assert np.bincount(split.user_part, minlength=3).all() and split.new_item.any()
    train = split.mask(ratings, "train")
    rows = {("test", state): split.mask(ratings, "test", state) for state in STATES}
    for state in ("user", "both"):
        rows["validation", state] = split.mask(ratings, "validation", state)
    for (_, state), found in rows.items():
        seen = train & found
        assert seen.any() == (state == "warm")
    # Every rating is of one part of users and one state.
    assert (sum(found.astype(int) for found in rows.values()) == 1).all()
    users, items = ratings.user, ratings.item
    for part, state in rows:
        found = rows[part, state]
        assert (split.new_item[items[found]] == (state in ("item", "both"))).all()
        shared = set(users[found]) & set(users[train])
        assert bool(shared) == (state in ("warm", "item"))
    # What is held back are ratings of training users for old items, three of each.
    held = split.held
    np.testing.assert_array_equal(held, rows["test", "warm"] & ~train)
    assert set(np.bincount(users[held]).tolist()) == {0, 3}


def test_shares_are_those_that_were_asked_for():
    ratings = _many(num_users=4000, num_items=2000)
    split = cold_start(ratings, validation_users=0.1, test_users=0.3, new_items=0.25)
    found = np.bincount(split.user_part) / 4000
    np.testing.assert_allclose(found, [0.6, 0.1, 0.3], atol=0.03)
    assert abs(split.new_item.mean() - 0.25) < 0.04


def test_a_split_is_its_seed_and_further_users_move_nobody():
    ratings = _many()
    first, again, other = (cold_start(ratings, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.user_part, again.user_part)
    np.testing.assert_array_equal(first.held, again.held)
    assert (first.user_part != other.user_part).any()
    assert (first.new_item != other.new_item).any()
    more = cold_start(_many(num_users=60, num_items=35), seed=1)
    np.testing.assert_array_equal(more.user_part[:40], first.user_part)
    np.testing.assert_array_equal(more.new_item[:30], first.new_item)


def test_users_with_few_ratings_keep_them_all():
    ratings = _many()
    split = cold_start(ratings, held=8, seed=1)
    warm = (split.user_part[ratings.user] == 0) & ~split.new_item[ratings.item]
    counts = np.bincount(ratings.user[warm], minlength=40)
    held = np.bincount(ratings.user[split.held], minlength=40)
    assert ((held == 8) == (counts >= 16)).all() and set(held.tolist()) == {0, 8}


def test_values_that_training_does_not_see_count_as_missing():
    ratings = _made()
    mask = np.asarray([False, False, True, False])  # bob (30s, 7) for 30 (Drama, Crime)
    seen = without_unseen(ratings, mask)
    np.testing.assert_array_equal(seen.users.codes, [[-1, 0], [1, 0], [-1, -1]])
    np.testing.assert_array_equal(seen.items.codes, [[1, 0], [-1, -1], [1, -1]])
    assert seen.fields == ratings.fields and seen.vocabulary == ratings.vocabulary
    other = without_unseen(ratings, np.asarray([True, False, False, True]))
    np.testing.assert_array_equal(other.items.codes, [[1, -1], [-1, -1], [1, -1]])


def test_what_codes_mean_is_in_the_digests():
    renamed = _made(items={"genres": ["Drama|Comedy", "", "Drama | Drama"]})
    np.testing.assert_array_equal(renamed.items.codes, [[1, 0], [-1, -1], [1, -1]])
    assert renamed.vocabulary != _made().vocabulary and renamed.digest != _made().digest
    users = _made(
        users={"user": ["ann", "bob", "dan"]}, ratings={"user": ["bob"] * 2 + ["ann"] * 2}
    )
    assert users.vocabulary == _made().vocabulary and users.digest != _made().digest


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validation_users": 0}, "validation_users is 0"),
        ({"test_users": 1.0}, "test_users is 1.0"),
        ({"new_items": -0.1}, "new_items is -0.1"),
        ({"validation_users": 0.5, "test_users": 0.5}, "leave none of the users"),
        ({"validation_users": 1e-9}, "validation 0"),
    ],
)
def test_shares_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        cold_start(_many(), **options)


@pytest.mark.parametrize(
    "asked", [("test", "cold"), ("train", "user"), ("validation", "warm"), ("all", "warm")]
)
def test_parts_without_such_a_state_are_refused(asked):
    with pytest.raises(ValueError, match="part and state"):
        cold_start(_many()).mask(_many(), *asked)


# -- Layouts of files ------------------------------------------------------------------


def _write(folder, files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        content = text.encode("latin-1")
        content = gzip.compress(content) if name.endswith(".gz") else content
        (folder / name).write_bytes(content)
    return folder


ML_100K = {
    "u.data": "1\t2\t3\t881250949\n2\t1\t5\t881250950\n",
    "u.user": "1|24|M|technician|85711\n2|9|F|other|T8H1N\n",
    "u.item": "1|Café (1995)|01-Jan-1995||http://x|0|1|1\n2|unknown||||1|0|0\n",
    "u.genre": "unknown|0\nAction|1\nCrime|2\n\n",
}
ML_1M = {
    "ratings.dat": "1::2::3::978300760\n2::1::5::978300761\n",
    "users.dat": "1::M::18::12::85711\n2::F::1::0::T8H1N\n",
    "movies.dat": "1::Heat (1995)::Action|Crime\n2::Odd::Crime\n",
}
COLD = {
    "ratings.csv.gz": "user_id,movie_id,rating,part\n1,2,3,a\n2,1,5,b\n",
    "users.dat": ML_1M["users.dat"],
    "movies_extra.csv": (
        "movie_id,title,year,rated,genres,directors,actors\n"
        '1,Heat,1995,R,"Action, Crime",Michael Mann,"Al Pacino, Robert De Niro"\n'
        "2,Odd,2000,PG,Crime,,Al Pacino\n"
    ),
}
OWN = {
    "ratings.csv": "user,item,rating,when\nann,7,3,x\nbob,8,4.5,y\n",
    "users.csv": "user,age\nann,20s\nbob,30s\n",
    "items.csv": "item,genres\n7,Crime|Drama\n8,Drama\n",
}
LAYOUTS = {"ml-100k": ML_100K, "ml-1m": ML_1M, "ml-1m-coldstart": COLD, "own": OWN}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_from_its_folder_or_the_one_above(name, tmp_path):
    folder = _write(tmp_path / name, LAYOUTS[name])
    found = load_ratings(name, tmp_path)
    assert found.digest == load_ratings(name, folder).digest
    assert len(found) == len(found.users) == len(found.items) == 2
    assert found.rating.tolist() == ([3.0, 4.5] if name == "own" else [3.0, 5.0])


def test_films_and_their_users(tmp_path):
    _write(tmp_path / "ml-100k", ML_100K)
    _write(tmp_path / "ml-1m", ML_1M)
    _write(tmp_path / "ml-1m-coldstart", COLD)
    for name in ("ml-100k", "ml-1m", "ml-1m-coldstart"):
        found = load_ratings(name, tmp_path)
        known = {a.name: a.values for a in found.users.attributes}
        assert known["age"] == ("1", "18") and known["area"] == ("85", "T8")
        assert found.users.code("age").tolist() == [[1], [0]]
        genres = next(a for a in found.items.attributes if a.name == "genres")
        assert {"Action", "Crime"} <= set(genres.values)
        of_first = [genres.values[c] for c in found.items.code("genres")[0] if c >= 0]
        assert of_first == ["Action", "Crime"]
        decade = next(a for a in found.items.attributes if a.name == "decade")
        first = decade.values[found.items.code("decade")[0, 0]]
        assert first == "1990s"
    assert found.items.code("directors").tolist() == [[0], [-1]]
    assert found.items.code("actors").tolist() == [[0, 1], [0, -1]]
    assert load_ratings("ml-1m", tmp_path).items.code("decade").tolist() == [[0], [-1]]


def test_another_scale_is_said(tmp_path):
    folder = _write(tmp_path / "own", {**OWN, "ratings.csv": "user,item,rating\nann,7,9\n"})
    assert load_ratings("own", folder, limits=(0, 10)).limits == (0, 10)
    with pytest.raises(ValueError, match="limits"):
        load_ratings("own", folder)


DAMAGE = {
    "columns": ("ml-100k", "u.data", "1\t2\t3\n", "line 1 of u.data has 3 columns"),
    "empty": ("ml-1m", "ratings.dat", "", "ratings.dat has no line"),
    "gzip": ("ml-1m-coldstart", "ratings.csv.gz", None, "no gzip file"),
    "header": ("own", "users.csv", "name,age\nann,1\n", "expected user too"),
    "index": ("own", "users.csv", ",user,age\n0,ann,1\n", r"to_csv\(index=False\)"),
    "item of users": ("own", "users.csv", "user,item\nann,7\n", "a column 'item'"),
    "nobody": ("own", "users.csv", "user,age\n ,1\n", "line 2 of users.csv has no 'user'"),
    "comma": ("own", "ratings.csv", 'user,item,rating\nann,7,"3,5"\n', "'3,5' in row 0"),
    "age": (
        "ml-1m",
        "users.dat",
        "1::M::old::12::8\n",
        "column 'age' holds 'old' in row 0",
    ),
    "encoding": ("own", "items.csv", "i\0t\0e\0m\0", "no text in UTF-8"),
    "row": ("own", "items.csv", "item,genres\n7\n", "line 2 of items.csv has 1 columns"),
    "text": ("own", "ratings.csv", "user,item,rating\nann,7,good\n", "'good' in row 0"),
    "none": ("own", "ratings.csv", "user,item,rating\n", "no row"),
    "shared name": ("own", "items.csv", "item,age\n7,a\n8,b\n", "both have age"),
    "unknown": ("own", "ratings.csv", "user,item,rating\neve,7,3\n", "'eve' in row 0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(damage, tmp_path):
    name, file, text, said = DAMAGE[damage]
    folder = _write(tmp_path / name, LAYOUTS[name])
    (folder / file).write_bytes(b"no gzip" if text is None else text.encode())
    with pytest.raises(ValueError, match=said):
        load_ratings(name, tmp_path)


def test_missing_files_and_unknown_sets(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data_dir was given"):
        load_ratings("ml-100k", None)
    with pytest.raises(FileNotFoundError, match=r"u\.data"):
        load_ratings("ml-100k", tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'ml-100k'"):
        load_ratings("ml-100", tmp_path)


def test_the_real_movielens_100k(shared_dir):
    found = load_ratings("ml-100k", shared_dir / "data")
    assert (len(found), len(found.users), len(found.items)) == (100_000, 943, 1682)
    assert found.fields == ((2, 1), (7, 1), (21, 1), (111, 1), (8, 1), (19, 6))
    assert np.bincount(found.rating.astype(int)).tolist() == [
        *(0, 6110, 11370, 27145, 34174, 21201)
    ]


def test_a_split_is_of_its_ratings_alone():
    split = cold_start(_many(num_users=60, num_items=35), seed=1)
    other = _many(num_users=50, num_items=35)
    with pytest.raises(
        ValueError, match=r"have 50 users, 35 items.* that were split, of 60"
    ):
        split.mask(other, "test", "user")
