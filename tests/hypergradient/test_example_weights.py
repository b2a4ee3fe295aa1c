"""Weights of examples and of groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml

hg = ml.hypergradient


def test_the_positive_part_adds_up_to_one_and_masked_rows_get_nothing():
    scores, mask = (
        jnp.array([3.0, -2.0, 1.0, jnp.nan]),
        jnp.array([True, True, True, False]),
    )
    weights, slope = jax.jit(jax.value_and_grad(lambda s: hg.normalised(s, mask)[0]))(
        scores
    )
    assert weights == 0.75
    np.testing.assert_allclose(slope, [1 / 16, 0, -3 / 16, 0])


def test_no_positive_score_gives_zeros_and_a_finite_derivative():
    run = jax.jit(lambda s: (hg.normalised(s), jax.jacrev(hg.normalised)(s)))
    weights, slope = run(-jnp.ones(3))
    np.testing.assert_array_equal(weights, np.zeros(3))
    assert np.isfinite(slope).all()


def test_groups_out_of_range_are_refused_or_seen():
    values = jnp.array([0.5, 2.0])
    found = jax.jit(hg.by_group)(values, jnp.array([1, 0, 2, -1]))
    np.testing.assert_array_equal(found, [2.0, 0.5, np.nan, np.nan])
    with pytest.raises(ValueError, match=r"groups are -1\.\.2; expected 0\.\.1"):
        hg.by_group(values, np.array([2, -1]))


MISTAKES = {
    "scores are of the dtype int": lambda: hg.normalised(np.arange(3)),
    "scores are an array \\[3, 1\\]": lambda: hg.normalised(np.ones((3, 1), np.float32)),
    "mask is of the dtype float": lambda: hg.normalised(np.ones(3), np.ones(3)),
    "mask is an array \\[2\\]": lambda: hg.normalised(np.ones(3), np.ones(2, bool)),
    "groups are of the dtype float": lambda: hg.by_group(np.ones(3), np.ones(2)),
    "expected \\[G\\] and \\[N\\]": lambda: hg.by_group(np.ones((3, 1)), np.ones(2, int)),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_told(message):
    with pytest.raises((TypeError, ValueError), match=message):
        MISTAKES[message]()
