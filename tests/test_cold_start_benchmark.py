"""The benchmark of a cold start: means by hand, who is asked what, what is compared."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest
from few_ratings import write_own_ratings

import metalearn as ml
from benchmarks import _runs, cold_start
from metalearn.apps import FewRatings

APP = FewRatings(dataset="own", queries=2, least_support=2, most_support=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return APP.load(str(write_own_ratings(tmp_path_factory.mktemp("ratings"))))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"recipes": ()}, "expected some"),
        ({"recipes": ("ratings-melu", "ratings-melu")}, "each once"),
        ({"recipes": ("small-protonet",)}, "no recipe of ratings"),
        ({"recipes": ("ratings-foo",)}, "unknown recipe"),
        ({"seeds": 0}, "--seeds is"),
        ({"asked": (0,)}, "--asked is"),
        ({"json": "/"}, "a folder"),
        ({"set": ("steps=-1",)}, "steps is -1"),
    ],
)
def test_what_is_not_there_is_refused_before_training(monkeypatch, asked, said):
    monkeypatch.setattr(_runs, "trained", lambda *args: pytest.fail("it trains"))
    with pytest.raises((SystemExit, ValueError), match=said):
        cold_start.ColdStarts(**asked).run_benchmark()


def test_means_predict_the_tasks_that_learners_are_judged_on(data):
    ratings, tasks = data.ratings, APP.tasks_in(data, "test", "user")
    train = data.split.mask(ratings, "train")
    found = cold_start.means(ratings, train, tasks)
    overall = ratings.rating[train].mean()
    num = tasks.sample.num_tasks
    # The same stream, task by task.
    every = iter(ml.tasks.in_order(tasks).batches(1, 0))
    for place in range(num):
        task = jax.tree.map(lambda leaf: np.asarray(leaf[0]), next(every))
        y = task.query.y[:, 0]
        given = task.support.y[task.support.mask, 0]
        expected = [np.abs(y - given.mean()).mean()]
        of_items = []
        for item in task.query.x["item"]:
            known = ratings.rating[train & (ratings.item == item)]
            of_items.append(known.mean() if len(known) else overall)
        expected.append(np.abs(y - of_items).mean())
        expected.append(np.abs(y - overall).mean())
        got = [found[name]["query/mae"][place] for name in cold_start.MEANS]
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_users_are_asked_about_the_items_and_judged_on_the_same_others(data, monkeypatch):
    run = types.SimpleNamespace(recipe=types.SimpleNamespace(app=APP))
    monkeypatch.setattr(cold_start.run_folder, "load", lambda folder: run)
    lists = {"evidence": [0, 1, 2], "popular": [2, 3], "random": [4]}
    queries = []
    for items in lists.values():
        tasks = cold_start.asking(None, data, items, lists)
        num = tasks.sample.num_tasks
        batch = next(iter(ml.tasks.in_order(tasks).batches(num, 0)))
        batch = jax.tree.map(np.asarray, batch)
        given = batch.support.x["item"][batch.support.mask]
        assert set(given.tolist()) <= set(items)
        assert not np.isin(batch.query.x["item"], [0, 1, 2, 3, 4]).any()
        assert cold_start.mean_answers(tasks) == batch.support.mask.sum(1).mean()
        # All that these users have said about the items is there.
        users = set(batch.query.x["user"][:, 0].tolist())
        old = data.split.mask(data.ratings, "test", "user")
        said = old & np.isin(data.ratings.item, items)
        said &= np.isin(data.ratings.user, list(users))
        assert said.sum() == batch.support.mask.sum()
        queries.append((batch.query.x["user"], batch.query.x["item"]))
    for other in queries[1:]:
        np.testing.assert_array_equal(queries[0], other)


def test_rows_are_compared_with_the_first_one_and_read_in_a_table():
    def values(mae):
        return {"query/mae": np.asarray(mae), "query/ndcg@3": np.asarray([0.5, 0.7])}

    first = [values([0.8, 0.6]), values([0.6, 0.4])]
    other = [values([1.0, 1.0])]
    told = cold_start.compared({"a": first, "b": other}, "a")
    assert told["a"]["query/mae"]["by_seed"] == pytest.approx([0.7, 0.5])
    assert told["a"]["query/mae"]["spread"] == pytest.approx(0.1 * 2**0.5)
    apart = told["b"]["query/mae"]["difference"]
    assert apart["mean"] == pytest.approx(-0.4) and told["b"]["users"] == 2
    assert apart["seeds"] == pytest.approx([-0.3, -0.5])
    assert told["b"]["query/mae"]["share"] == pytest.approx(-0.4)
    row = {
        "dataset": "own",
        "record": {"about": "few ratings"},
        "seeds": 2,
        "rows": {name: {"states": {"user": one}} for name, one in told.items()},
        "asked": {
            "5": {
                **{kind: {**told["b"], "answers": [2.0, 3.0]} for kind in cold_start.KINDS},
                "nothing": told["b"],
            }
        },
    }
    lines = cold_start.table_rows(row)
    assert "| a | 0.6000, σ 0.1414 |" in lines
    assert any(line.startswith("| b | 1.0000 (-40.0 %: -0.4000 ± ") for line in lines)
    assert any(line.startswith("| 5 | ") and "2.5 answers" in line for line in lines)


def test_seeds_that_ask_about_other_items_judge_the_same_users(data, monkeypatch):
    run = types.SimpleNamespace(recipe=types.SimpleNamespace(app=APP))
    monkeypatch.setattr(cold_start.run_folder, "load", lambda folder: run)
    lists = [[0, 1, 2, 3], [9, 10, 11, 12]]
    monkeypatch.setattr(
        cold_start,
        "items_asked",
        lambda folder, data, num, seed: dict.fromkeys(cold_start.KINDS, lists[seed]),
    )
    judged = []

    def values(folder, tasks, steps=None):
        batch = next(iter(ml.tasks.in_order(tasks).batches(tasks.sample.num_tasks, 0)))
        judged.append(np.asarray(batch.info["task"]).tolist())
        zeros = np.zeros(len(judged[-1]))
        return {cold_start.MAE: zeros + 1, cold_start.NDCG: zeros + 1}

    monkeypatch.setattr(cold_start, "_judged", values)
    cold_start.ColdStarts()._asked(["a", "b"], data, 4)
    assert len(judged) == 8 and all(users == judged[0] for users in judged)
