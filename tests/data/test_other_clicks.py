"""Histories of other clicks, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from metalearn.data.ratings import other_clicks

USER = [0, 0, 0, 0, 1, 1, 2, -1, 0]
ITEM = [5, 6, 7, 8, 5, 9, 5, 6, -1]
CLICKED = [True, True, False, True, True, False, False, True, True]


def _sets(**options):
    rows = other_clicks(USER, ITEM, CLICKED, **options)
    assert rows.dtype == np.int32
    found = []
    for row in rows:
        there = row[row >= 0]
        assert (row[len(there) :] == -1).all()  # those that there are come first
        found.append(set(there.tolist()))
    return rows.shape, found


def test_the_item_of_a_row_or_another_is_left_out():
    shape, found = _sets(most=3)
    assert shape == (9, 3)
    # User 0 clicked on 5, 6 and 8: two of them stay, for items with a click and without.
    assert found[0] == {6, 8} and found[1] == {5, 8} and found[3] == {5, 6}
    assert len(found[2]) == 2 and found[2] < {5, 6, 8}
    assert found[8] == found[2]  # a new item
    # User 1 clicked on one item, of which none is left; the others have no history.
    assert found[4] == found[5] == found[6] == found[7] == set()


def test_no_more_than_asked_and_drawn_by_the_seed():
    drawn = {tuple(sorted(_sets(most=1, seed=seed)[1][2])) for seed in range(20)}
    assert drawn == {(5,), (6,), (8,)}
    assert _sets(most=1, seed=3) == _sets(most=1, seed=3)


def test_an_item_that_was_rated_twice_is_left_out_both_times():
    found = other_clicks([0, 0, 0], [4, 4, 5], [True, True, True], most=3)
    np.testing.assert_array_equal(found, [[5, -1, -1], [5, -1, -1], [4, -1, -1]])


def test_without_rows_or_clicks():
    assert other_clicks(np.zeros(0, int), np.zeros(0, int), np.zeros(0, bool)).shape == (
        0,
        20,
    )
    assert (other_clicks([3, 1], [0, 1], [False, False], most=2) == -1).all()


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"user": [0.5] * 9}, TypeError, "user is .*whole numbers"),
        ({"item": [-2, *ITEM[1:]]}, ValueError, "item holds -2 in row 0"),
        ({"item": ITEM[1:]}, ValueError, "item has 8 rows and user has 9"),
        ({"clicked": [1] * 9}, TypeError, "clicked is .*bools"),
        ({"most": 0}, ValueError, "most is 0"),
    ],
)
def test_what_is_given_is_checked(changed, error, said):
    given = {"user": USER, "item": ITEM, "clicked": CLICKED, "most": 2} | changed
    with pytest.raises(error, match=said):
        other_clicks(given.pop("user"), given.pop("item"), given.pop("clicked"), **given)
