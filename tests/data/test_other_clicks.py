"""Histories of other clicks: what they hold, and that they do not tell the label."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from metalearn.data.ratings import other_clicks

NOTHING = np.zeros(0, int)


def _drawn(num=400, users=12, items=60):
    random = np.random.default_rng(0)
    pairs = random.permutation(users * items)[:num]
    user, item = pairs // items, pairs % items
    # Of some users, items and clicks there are many, of others few.
    clicked = random.random(num) < (user + 1) / (users + 1)
    new = random.random(num) < 0.2
    return np.where(user == 3, -1, user), np.where(new, -1, item), clicked


def _rows(user, item, clicked, **options):
    found = other_clicks(user, item, clicked, **options)
    assert found.dtype == np.int32
    sets = []
    for row in found:
        there = row[row >= 0].tolist()
        assert (row[len(there) :] == -1).all()  # those that there are come first
        assert len(set(there)) == len(there)
        sets.append(frozenset(there))
    return sets


@pytest.mark.parametrize("most", [3, 50])
def test_a_history_is_of_the_user_and_as_long_in_all_rows(most):
    user, item, clicked = _drawn()
    clicks = collections.defaultdict(set)
    for u, i, c in zip(user, item, clicked):
        if c and i >= 0 and u >= 0:
            clicks[u].add(i)
    for u, i, there in zip(user, item, _rows(user, item, clicked, most=most)):
        assert there <= clicks[u] and i not in there
        assert len(there) == min(len(clicks[u]) // 2, most)


@pytest.mark.parametrize("seed", range(3))
def test_a_history_alone_tells_nothing_of_the_label_of_its_row(seed):
    user, item, clicked = _drawn()
    labels = collections.defaultdict(lambda: [[], []])
    rows = zip(user, item, clicked, _rows(user, item, clicked, most=50, seed=seed))
    for u, i, c, there in rows:
        if i >= 0 and u >= 0:
            labels[u, there][int(c)].append(i)
    by_user = collections.defaultdict(list)
    for (u, _), found in labels.items():
        by_user[u].append(found)
    assert max(len(groups) for groups in by_user.values()) == 2
    for groups in by_user.values():
        # With a click and without: as many rows in both halves, but for an odd one.
        for sizes in zip(*([len(of) for of in found] for found in groups)):
            assert max(sizes) - min(sizes) <= 1
        if len(groups) == 1:  # who has clicked on one thing has no history
            assert len(groups[0][1]) <= 1


def test_halves_and_what_is_kept_of_them_are_drawn():
    user, item, clicked = [0] * 8, list(range(8)), [True] * 5 + [False] * 3
    kept, together, odd = np.zeros(5), np.zeros((8, 8)), []
    for seed in range(300):
        few = other_clicks(user, item, clicked, most=1, seed=seed)
        kept += np.isin(np.arange(5), few)
        # Rows of a half have one history, and what it holds is of the other half.
        found = other_clicks(user, item, clicked, most=8, seed=seed)
        same = (np.sort(found, 1)[:, None] == np.sort(found, 1)[None]).all(-1)
        together += same
        most_clicks, most_others = same[0, :5].sum() > 2, same[0, 5:].sum() > 1
        odd.append(most_clicks == most_others)
    # Two of five clicks are kept in each draw, one for each half.
    np.testing.assert_allclose(kept / 300, 0.4, atol=0.1)
    # Of five clicks two and three are in a half, of three others one and two.
    pairs = np.triu(np.ones((8, 8), bool), 1)
    clicks, others = pairs.copy(), pairs.copy()
    clicks[:, 5:] = others[:5] = False
    np.testing.assert_allclose(together[clicks] / 300, 0.4, atol=0.1)
    np.testing.assert_allclose(together[others] / 300, 1 / 3, atol=0.1)
    np.testing.assert_allclose(together[pairs & ~clicks & ~others] / 300, 0.5, atol=0.1)
    assert 0.4 < np.mean(odd) < 0.6


def test_rows_of_new_items_are_of_both_halves():
    user, item = np.zeros(60, int), np.r_[np.arange(10), np.full(50, -1)]
    found = _rows(user, item, np.ones(60, bool), most=9)
    assert set(found[10:]) == set(found[:10]) and len(set(found)) == 2
    assert all(len(there) == 5 for there in found)


def test_draws_follow_the_seed_and_rows_may_be_chosen():
    user, item, clicked = _drawn()
    one = other_clicks(user, item, clicked, most=4, seed=1)
    np.testing.assert_array_equal(one, other_clicks(user, item, clicked, most=4, seed=1))
    assert (one != other_clicks(user, item, clicked, most=4, seed=2)).any()
    chosen = other_clicks(user, item, clicked, most=4, seed=1, rows=[7, 3])
    np.testing.assert_array_equal(chosen, one[[7, 3]])


def test_an_item_that_was_rated_twice_is_in_one_half():
    for seed in range(8):
        found = _rows([0] * 4, [4, 4, 5, 6], [True, False, True, False], most=3, seed=seed)
        assert found[0] == found[1] == {5} and found[2] == {4}
        assert found[3] in ({4}, {5})


def test_without_rows_or_clicks_and_numbers_of_any_kind():
    assert other_clicks(NOTHING, NOTHING, np.zeros(0, bool)).shape == (0, 20)
    assert (other_clicks([3, 1], [0, 1], [False, False], most=2) == -1).all()
    large = np.asarray([2**31 - 1, 2**31 - 2], np.uint64)
    found = other_clicks(large[:1].repeat(2), large, [True, True], most=1)
    np.testing.assert_array_equal(found[:, 0], large[::-1])


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"user": [0.5] * 3}, TypeError, "user is .*whole numbers"),
        ({"item": [-2, 0, 1]}, ValueError, "item holds -2 in row 0"),
        ({"item": [0, 1, 2**32]}, ValueError, "item holds 4294967296 in row 2"),
        ({"item": [0, 1]}, ValueError, "item has 2 rows and user has 3"),
        ({"clicked": [1, 1, 1]}, TypeError, "clicked is .*bools"),
        (
            {"clicked": np.ma.array([True] * 3, mask=[0, 1, 0])},
            ValueError,
            "clicked is a masked array",
        ),
        ({"rows": [3]}, ValueError, "rows holds 3"),
        (
            {"user": NOTHING, "item": NOTHING, "clicked": NOTHING > 0, "rows": [0]},
            ValueError,
            "rows holds 0",
        ),
        ({"most": 0}, ValueError, "most is 0"),
    ],
)
def test_what_is_given_is_checked(changed, error, said):
    given = {"user": [0, 0, 1], "item": [0, 1, 2], "clicked": [True] * 3} | changed
    with pytest.raises(error, match=said):
        other_clicks(given.pop("user"), given.pop("item"), given.pop("clicked"), **given)


def test_rows_of_new_items_are_of_a_half_by_chance():
    """By turns they would have one history in every draw, or all the other one."""
    user, item = [0] * 12, [1, 2, 3, 4] + [-1] * 8
    clicked = np.asarray(item) > 0
    shares = []
    for seed in range(30):
        found = other_clicks(user, item, clicked, seed=seed)[4:]
        same = (found == found[0]).all(1)
        shares.append(same[1:].mean())
        assert len(np.unique(found, axis=0)) <= 2
    # Pairs of rows are alike in half of the draws, and not by their place.
    assert 0.35 < np.mean(shares) < 0.65 and np.std(shares) > 0.1


def test_histories_beyond_the_memory_are_refused_before_they_are_made():
    with pytest.raises(ValueError, match=r"histories of 1,000,000,000 .*Lower most"):
        other_clicks([0, 0], [1, 2], [True, False], most=10**9)
