"""Tasks of groups whose rows differ in number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml

COUNTS = (6, 3, 9, 0, 5)  # rows of each group
GROUP = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))
ROWS = np.arange(len(GROUP))
X = {"row": ROWS, "twice": np.stack([ROWS, 2 * ROWS], 1).astype(np.float32)}
Y = (100.0 + ROWS)[:, None].astype(np.float32)


def _tasks(**options):
    options = {"num_query": 2, "least_support": 2, "most_support": 7, **options}
    return ml.tasks.histories(X, Y, GROUP, **options)


def _drawn(sampler, num=300):
    keys = jax.random.split(jax.random.key(1), num)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sampler))(keys))


def _parts(batch, i):
    """Rows of the support set and of the queries of a task, and its group."""
    support = batch.support.x["row"][i][batch.support.mask[i]]
    return support, batch.query.x["row"][i], int(batch.info["task"][i])


def test_a_task_is_all_of_a_group_once_and_keeps_inputs_and_targets_together():
    batch = _drawn(_tasks())
    assert set(batch.info["task"].tolist()) == {0, 2, 4}  # group 1 has three rows alone
    for i in range(len(batch.info["task"])):
        support, query, group = _parts(batch, i)
        expected = np.flatnonzero(group == GROUP)
        assert sorted([*support, *query]) == expected.tolist()
    for part in (batch.support, batch.query):
        np.testing.assert_array_equal(part.x["twice"][..., 1], 2 * part.x["row"])
        np.testing.assert_array_equal(part.y[..., 0], 100.0 + part.x["row"])
    assert batch.query.mask.all() and batch.query.x["row"].shape == (300, 2)
    assert batch.support.mask.shape == (300, 7)
    # What is masked is still of the group, so that nothing odd is computed.
    assert (GROUP[batch.support.x["row"]] == batch.info["task"][:, None]).all()


def test_groups_and_queries_are_drawn_evenly():
    batch = _drawn(_tasks(), 3000)
    groups = np.bincount(batch.info["task"])[[0, 2, 4]]
    assert np.abs(groups - 1000).max() < 110  # four standard deviations
    largest = batch.info["task"] == 2
    rows = np.flatnonzero(GROUP == 2)
    for place in range(2):
        counts = np.bincount(batch.query.x["row"][largest, place])[rows]
        expected = largest.sum() / 9
        assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)


def test_a_long_history_is_cut_at_random():
    batch = _drawn(_tasks(most_support=3), 2000)
    largest = batch.info["task"] == 2
    assert batch.support.mask[largest].all()
    support = batch.support.x["row"][largest]
    assert (np.diff(np.sort(support, 1), axis=1) > 0).all()
    counts = np.bincount(support.reshape(-1))[np.flatnonzero(GROUP == 2)]
    expected = largest.sum() * 3 / 9
    assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected)
    for i in range(50):
        support, query, _ = _parts(batch, i)
        assert not set(support) & set(query)


def test_queries_of_rows_of_their_own():
    may = ROWS % 2 == 0
    sampler = _tasks(is_query=may)
    batch = _drawn(sampler)
    groups = {
        g for g in range(5) if may[g == GROUP].sum() >= 2 and (~may[g == GROUP]).sum() >= 2
    }
    assert groups and set(batch.info["task"].tolist()) == groups
    assert sampler.sample.num_tasks == len(groups)
    assert sampler.sample.left_out == 4 - len(groups)
    for i in range(100):
        support, query, group = _parts(batch, i)
        assert may[query].all() and len(set(query)) == 2
        assert sorted(support) == np.flatnonzero((group == GROUP) & ~may).tolist()


def test_every_group_in_order_once():
    every = ml.tasks.in_order(_tasks())
    batch = next(iter(every.batches(3, 0)))
    assert every.num_tasks == 3 and sorted(batch.info["task"].tolist()) == [0, 2, 4]


def test_numbers_of_groups_may_be_far_apart_and_are_told():
    sampler = ml.tasks.histories(
        X, Y, GROUP * 500_000_000, num_query=2, least_support=2, most_support=7
    )
    batch = _drawn(sampler, 50)
    assert set(batch.info["task"].tolist()) == {0, 1_000_000_000, 2_000_000_000}
    plain = _drawn(_tasks(), 50)
    np.testing.assert_array_equal(batch.query.x["row"], plain.query.x["row"])


def test_equal_settings_share_programs():
    assert _tasks().sample == _tasks().sample != _tasks(num_query=1).sample


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"num_query": 0}, ValueError, "num_query is 0"),
        ({"least_support": -1}, ValueError, "least_support is -1"),
        ({"most_support": 1}, ValueError, "most_support is 1"),
        ({"num_query": 8}, ValueError, "none of 4 groups has 8 query rows"),
        ({"is_query": np.ones(3, bool)}, ValueError, "is_query has shape"),
        ({"is_query": np.ones(len(GROUP))}, TypeError, "expected bool"),
        ({"group": GROUP - 1}, ValueError, "group has -1 in row"),
        ({"group": GROUP * 1.0}, TypeError, "expected whole numbers"),
        ({"group": GROUP + 10**12}, ValueError, "expected numbers from 0"),
        ({"group": GROUP[:5]}, ValueError, "x has shape"),
        ({"group": GROUP[:0]}, ValueError, "group is empty"),
        ({"group": np.ma.masked_equal(GROUP, 2)}, ValueError, "group is a masked array"),
        ({"is_query": np.ma.masked_array(GROUP > 1, GROUP == 2)}, ValueError, "masked"),
        ({"x": np.asarray([f"{row}" for row in ROWS])}, TypeError, "x has dtype <U"),
        ({"x": {"when": ROWS.astype("datetime64[s]")}}, TypeError, "x has dtype datetime"),
        ({"y": list(Y)}, TypeError, "y is a list; expected an array"),
        ({"y": None}, TypeError, "y is a NoneType"),
        ({"y": jnp.asarray(Y, jnp.bfloat16) * jnp.nan}, ValueError, "not finite in row 0"),
        ({"y": Y[:5]}, ValueError, "y has shape"),
        ({"y": np.where(ROWS == 4, np.nan, Y[:, 0])}, ValueError, "not finite in row 4"),
        ({"x": {"a": np.full((len(GROUP), 2), np.inf)}}, ValueError, "x is not finite"),
    ],
)
def test_what_is_given_is_checked(given, error, said):
    options = {"x": X, "y": Y, "group": GROUP, "num_query": 2, "least_support": 2} | given
    with pytest.raises(error, match=said):
        ml.tasks.histories(**options)


def test_dtypes_of_the_rows_are_kept():
    task = _tasks()(jax.random.key(0))
    assert task.support.x["twice"].dtype == task.support.y.dtype == jnp.float32
    assert task.support.x["row"].dtype == jnp.int32
