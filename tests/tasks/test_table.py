"""Tasks from tables: groups, mappings, draws, and everything a table may lack."""

import re

import jax
import numpy as np
import pytest

import metalearn as ml
from metalearn.core.columns import Table


class Column:
    """A column of a data frame, as far as `from_table` looks."""

    def __init__(self, values, categories=None):
        self.values = values
        if categories is not None:
            self.cat = type("Accessor", (), {"categories": categories})()

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class Frame:
    """A data frame, as far as `from_table` looks."""

    def __init__(self, **columns):
        self.inside, self.columns = columns, list(columns)

    def __getitem__(self, name):
        return self.inside[name]


def ratings(rows=40, users=4, seed=0):
    rng = np.random.default_rng(seed)
    user = rng.permutation(np.repeat(np.arange(users) * 7 + 3, rows // users))
    return {
        "user": user,
        "age": rng.normal(size=rows),
        "genre": np.array(["war", "art", "fun"])[rng.integers(0, 3, rows)],
        "row": np.arange(rows),
        "stars": rng.integers(1, 6, rows),
    }


def of(table, x=("age", "genre", "row"), y="stars", group="user", **options):
    options = {"num_support": 3, "num_query": 4, **options}
    return ml.tasks.from_table(table, group=group, x=list(x), y=y, **options)


def drawn(sampler, num=50, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    tasks = jax.jit(lambda data, k: ml.sample_batch(sampler, data, k))(sampler.data, keys)
    return jax.tree.map(np.asarray, tasks)


def as_frame(table):
    return Frame(**{name: Column(values) for name, values in table.items()})


def as_array(table):
    kinds = [(name, np.asarray(values).dtype) for name, values in table.items()]
    found = np.zeros(len(table["user"]), kinds)
    for name, values in table.items():
        found[name] = values
    return found


def as_lists(table):
    return {name: np.asarray(values).tolist() for name, values in table.items()}


@pytest.mark.parametrize("form", [dict, as_frame, as_array, as_lists])
def test_every_row_of_a_task_is_a_row_of_its_group(form):
    table = ratings()
    sampler = of(form(table))
    batch = drawn(sampler)
    assert sampler.sample.groups == (3, 10, 17, 24)
    assert sampler.sample.columns.categories == {"genre": ("art", "fun", "war")}
    assert batch.support.x.shape == (50, 3, 5) and batch.query.y.shape == (50, 4, 1)
    for i, number in enumerate(batch.info["task"]):
        x = np.concatenate([batch.support.x[i], batch.query.x[i]])
        y = np.concatenate([batch.support.y[i], batch.query.y[i]])
        rows = x[:, 1].astype(int)  # numbers come first: age, row, then the genre
        assert len(set(rows)) == 7
        assert (table["user"][rows] == sampler.sample.groups[number]).all()
        np.testing.assert_allclose(x[:, 0], table["age"][rows], rtol=1e-6)
        hot = [["art", "fun", "war"].index(genre) for genre in table["genre"][rows]]
        np.testing.assert_array_equal(x[:, 2:], np.eye(3)[hot])
        np.testing.assert_array_equal(y[:, 0], table["stars"][rows])


def test_groups_and_rows_are_drawn_uniformly():
    batch = drawn(of(ratings(), x=["row"]), 2000)
    groups = np.bincount(batch.info["task"], minlength=4)
    assert groups.min() > 420 and groups.max() < 580
    support = np.bincount(batch.support.x.astype(int).ravel(), minlength=40)
    assert support.min() > 100 and support.max() < 200  # 6,000 draws of 40 rows


def test_equal_tables_give_equal_tasks_and_share_programs():
    first, second = of(ratings()), of(ratings())
    assert first.sample == second.sample and hash(first.sample) == hash(second.sample)
    pair = [sampler(jax.random.key(3)) for sampler in (first, second)]
    jax.tree.map(np.testing.assert_array_equal, *pair)
    other = of(ratings(), num_support=2, num_query=5)
    assert first.sample != other.sample


def test_codes_are_for_embeddings():
    table = ratings()
    task = of(table, x=["row", "genre", "user"], categorical=["user"], encode="codes")
    found = drawn(task, 5).query
    rows = found.x["numbers"][..., 0].astype(int)
    assert found.x["codes"].dtype == np.int32
    np.testing.assert_array_equal(
        found.x["codes"][..., 1], np.searchsorted([3, 10, 17, 24], table["user"][rows])
    )


TARGETS = {
    "text": (["no", "yes"], None, ("no", "yes")),
    "truth": ([False, True], None, (False, True)),
    "whole numbers said to be classes": ([5, 9], True, (5, 9)),
}


@pytest.mark.parametrize("values, classes, names", TARGETS.values(), ids=TARGETS)
def test_targets_may_be_classes(values, classes, names):
    table = ratings()
    which = np.random.default_rng(1).integers(0, 2, 40)
    table["kind"] = np.array(values)[which]
    sampler = of(table, x=["row"], y="kind", classes=classes)
    query = drawn(sampler, 8).query
    assert sampler.sample.columns.classes == names and query.y.dtype == np.int32
    np.testing.assert_array_equal(query.y, which[query.x[..., 0].astype(int)])


def test_categories_of_a_frame_keep_their_order():
    table = ratings()
    frame = as_frame(table)
    frame.inside["genre"] = Column(table["genre"], ["war", "fun", "art", "unused"])
    assert of(frame).sample.columns.categories == {"genre": ("war", "fun", "art")}


def test_test_tables_take_the_mapping_of_the_training_table():
    train, held_back = ratings(), ratings(seed=1)
    held_back["genre"] = np.where(held_back["genre"] == "art", "war", held_back["genre"])
    tasks = of(train)
    mapped = of(held_back, like=tasks)
    assert mapped.sample.columns == tasks.sample.columns
    assert mapped(jax.random.key(0)).query.x.shape == (4, 5)
    held_back["genre"][7] = "new"
    with pytest.raises(ValueError, match=r"'genre' holds 'new' in row 7"):
        of(held_back, like=tasks)
    with pytest.raises(ValueError, match="Give the same columns"):
        of(train, x=["age"], like=tasks)
    for options, words in (
        ({"encode": "codes"}, "encode='codes' was given"),
        ({"classes": True}, "classes=True was given"),
    ):
        with pytest.raises(ValueError, match=f"{words}, but `like`.*decides"):
            of(held_back, like=tasks, **options)
    of(train, like=tasks, classes=False)
    coded = of(train, encode="codes")
    assert set(of(train, like=coded)(jax.random.key(0)).query.x) == {"numbers", "codes"}
    with pytest.raises(TypeError, match="like is a TaskSampler"):
        of(train, like=ml.tasks.sinusoid())


def test_groups_with_too_few_rows_are_left_out_and_counted():
    table = ratings()
    table["user"] = np.array([1] * 20 + [2] * 6 + [3] * 14)
    with pytest.warns(UserWarning, match="1 of 3 groups of 'user' have fewer than 7 rows"):
        sampler = of(table)
    assert sampler.sample.groups == (1, 3) and sampler.sample.left_out == 1
    assert set(drawn(sampler).info["task"]) == {0, 1}


def test_order_visits_every_group_once():
    sampler = of(ratings())
    batch = next(ml.tasks.in_order(sampler).batches(4, 0))
    assert batch.info["task"].tolist() == [0, 1, 2, 3]


def without(name, row, value, table=None):
    table = ratings() if table is None else table
    table[name] = np.array(table[name], object)
    table[name][row] = value
    return table


class NAType:
    """Stands where a data frame misses a value."""

    def __bool__(self):
        raise TypeError("is neither true nor false")

    def __ne__(self, other):
        return self

    __hash__ = object.__hash__


MISSING = {
    "nan among numbers": ("age", 5, np.nan),
    "infinity": ("age", 5, np.inf),
    "nan in the target": ("stars", 5, np.nan),
    "None among text": ("genre", 5, None),
    "nan among text": ("genre", 5, np.nan),
    "NA of a frame": ("stars", 5, NAType()),
    "group": ("user", 5, None),
    "beyond float32": ("age", 5, 1e300),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name, row, value", MISSING.values(), ids=MISSING)
def test_missing_values_are_named_with_column_and_row(name, row, value):
    with pytest.raises(ValueError, match=f"column '{name}' holds .* in row {row}"):
        of(without(name, row, value))


BAD = {
    "no table": (lambda: [1, 2], {}, TypeError, "table is a list"),
    "misspelt": (ratings, {"x": ["agee"]}, ValueError, "Did you mean 'age'"),
    "misspelt target": (ratings, {"y": "star"}, ValueError, "Did you mean 'stars'"),
    "no group": (ratings, {"group": "who"}, ValueError, "group names the column 'who'"),
    "target among inputs": (ratings, {"x": ["age", "stars"]}, ValueError, "given away"),
    "target is group": (ratings, {"y": "user"}, ValueError, "the group"),
    "no input": (ratings, {"x": []}, ValueError, "one column or more"),
    "twice": (ratings, {"x": ["age", "age"]}, ValueError, "each once"),
    "too few": (ratings, {"num_query": 50}, ValueError, "the largest has 10"),
    "shots": (ratings, {"num_support": 0}, ValueError, "num_support is 0"),
    "encode": (ratings, {"encode": "hot"}, ValueError, "one-hot, codes"),
    "categorical": (ratings, {"categorical": ["stars"]}, ValueError, "not among x"),
    "lengths": (lambda: {**ratings(), "age": [1.0]}, {}, ValueError, "one length"),
    "mixed": (
        lambda: without("genre", 5, 3),
        {},
        ValueError,
        "mixes int and str; expected values of one kind. Make text of it: [str(value) for",
    ),
    "times": (
        lambda: {**ratings(), "age": np.arange(40).astype("datetime64[s]")},
        {},
        ValueError,
        "astype('int64')",
    ),
    "masked": (
        lambda: {**ratings(), "age": np.ma.masked_equal(np.arange(40.0), 3)},
        {},
        ValueError,
        "column 'age' is a masked array of which 1 values",
    ),
    "many values": (
        lambda: {**ratings(), "genre": [f"film {i}" for i in range(40)]},
        {},
        ValueError,
        "encode='codes'",
    ),
}


@pytest.mark.parametrize("make, options, kind, words", BAD.values(), ids=BAD)
def test_bad_tables_are_refused(make, options, kind, words, monkeypatch):
    monkeypatch.setattr("metalearn.core.columns.MOST_VALUES", 20)
    with pytest.raises(kind, match=re.escape(words)):
        of(make(), **options)


def test_names_of_one_column_are_no_list():
    with pytest.raises(TypeError, match=re.escape("such as ['age']")):
        ml.tasks.from_table(ratings(), group="user", x="age", y="stars")


def test_pandas_frames_are_read():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ratings()).astype({"genre": "category", "stars": "Int64"})
    first, second = of(frame)(jax.random.key(0)), of(ratings())(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    frame.loc[3, "stars"] = pandas.NA
    with pytest.raises(ValueError, match=r"column 'stars' holds .* in row 3"):
        of(frame)


def test_arrow_tables_are_read_by_their_names():
    """Their `columns` are the arrays, without names."""

    class Arrow:
        column_names, columns = ["a", "b"], [[1, 2], ["x", "y"]]

        def __getitem__(self, name):
            return self.columns[self.column_names.index(name)]

    table = Table(Arrow())
    assert table.names == ["a", "b"]
    assert table["a"].tolist() == [1, 2] and table["b"].tolist() == ["x", "y"]
