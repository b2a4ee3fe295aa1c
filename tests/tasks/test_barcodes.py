"""Bandits that come back."""

import jax
import numpy as np
import pytest

from metalearn.tasks.barcodes import barcodes
from metalearn.tasks.sinusoid import sinusoid

CONTEXTS, EPISODES, BITS, ARMS, NEW = 4, 9, 4, 3, 2


@pytest.fixture(scope="module")
def epochs():
    sampler = barcodes(CONTEXTS, EPISODES, bits=BITS, arms=ARMS, num_new=NEW)
    keys = jax.random.split(jax.random.key(0), 300)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(sampler))(keys))


def numbers(codes):
    """The number of each code."""
    assert set(np.unique(codes)) == {-1, 1}
    return ((codes + 1) / 2 @ 2 ** np.arange(BITS)).astype(int)


def test_bandits_come_back_equally_often_with_the_same_code_and_arm(epochs):
    codes, asked = numbers(epochs.support.x), numbers(epochs.query.x)
    context, recurring = epochs.info["context"], epochs.info["recurring"]
    assert (recurring == (np.arange(CONTEXTS + NEW) < CONTEXTS)).all()
    rows = np.arange(len(codes))[:, None]
    np.testing.assert_array_equal(codes, asked[rows, context])
    np.testing.assert_array_equal(epochs.support.y, epochs.query.y[rows, context])
    for row in codes:
        counts = np.unique(row, return_counts=True)[1]
        assert sorted(counts) == [2, 2, 2, 3]
    assert all(len(set(row)) == CONTEXTS + NEW for row in asked)
    for row in epochs.query.y[:, :CONTEXTS]:
        assert sorted(np.bincount(row, minlength=ARMS)) == [1, 1, 2]
    assert epochs.support.mask.all() and epochs.query.mask.all()


def test_codes_arms_and_order_are_new_in_each_epoch(epochs):
    """Each code is as frequent as any other, and says nothing of the arm."""
    asked, arms = numbers(epochs.query.x), epochs.query.y
    shares = np.bincount(asked.ravel(), minlength=2**BITS) / asked.size
    assert abs(shares - 1 / 2**BITS).max() < 0.03
    for column in arms.T:
        assert abs(np.bincount(column) / len(column) - 1 / ARMS).max() < 0.08
    pairs = np.bincount(arms[:, -2] * ARMS + arms[:, -1]) / len(arms)
    assert abs(pairs - 1 / ARMS**2).max() < 0.06
    for bit in range(BITS):
        on = asked >> bit & 1
        means = [np.eye(ARMS)[arms[on == side]].mean(0) for side in (0, 1)]
        assert abs(means[0] - means[1]).max() < 0.1
    assert len({tuple(row) for row in epochs.info["context"]}) > 200
    first = epochs.info["context"][:, 0]
    assert abs(np.bincount(first) / len(first) - [3 / 9, 2 / 9, 2 / 9, 2 / 9]).max() < 0.1


def test_numbers_out_of_range_are_named():
    for given, words in (
        ({"num_contexts": 0}, "num_contexts is 0"),
        ({"num_contexts": 5, "episodes": 4}, "episodes is 4; expected an integer of 5"),
        ({"bits": 0}, "bits is 0"),
        ({"bits": 17}, "bits is 17, for 20 bandits; expected at most 16"),
        ({"bits": 4}, "bits is 4, for 20 bandits"),
        ({"arms": 1}, "arms is 1"),
        ({"num_new": -1}, "num_new is -1"),
    ):
        with pytest.raises(ValueError, match=words):
            barcodes(**given)
    assert barcodes(arms=2) is barcodes(arms=2)


@pytest.mark.parametrize("make", [barcodes, sinusoid])
def test_equal_numbers_of_other_kinds_are_refused_after_the_sampler_was_made(make):
    """To a cache 1.0 and True are 1."""
    assert make(1, 2) is make(1, 2)
    for wrong in (1.0, True):
        with pytest.raises(ValueError, match=f"is {wrong}; expected an integer of 1"):
            make(wrong, 2)
