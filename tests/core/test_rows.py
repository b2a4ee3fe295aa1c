"""Directions of rows, and orders that a key draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn.core.rows import drawn_order, unit


def test_directions_and_their_slopes_at_any_length():
    """In float32 against float64: at zero, and where squares vanish or overflow.

    A row without a length to speak of stays, as a row of zeros does.
    """
    way = np.array([3.0, -4.0, 12.0])
    rows = np.stack([way * scale for scale in (0.0, 1e-20, 1e-14, 1.0, 1e30)])
    rows = rows.astype(np.float32)

    def directions(x):
        return unit(x), jax.vmap(jax.jacobian(unit))(x)

    found, slopes = jax.jit(directions)(rows)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found[:2], rows[:2])
    np.testing.assert_array_equal(slopes[:2], [np.eye(3)] * 2)
    np.testing.assert_allclose(found[2:], np.tile(way / 13, (3, 1)), rtol=1e-6)
    for row, slope in zip(np.float64(rows[2:]), slopes[2:]):
        length = np.linalg.norm(row)
        flat = np.eye(3) - np.outer(row, row) / length**2
        # Of lengths of 1e-14 and 1e30: by the scale of the slope.
        np.testing.assert_allclose(slope * length, flat, atol=1e-5)


def test_slopes_of_half_precision_are_finite():
    rows = jnp.array([[1e-7, 1e-7], [3e-6, 0], [1, 1], [6e4, 6e4]], jnp.float16)
    slopes = jax.jit(jax.grad(lambda x: unit(x)[:, 0].sum()))(rows)
    assert np.isfinite(slopes).all()


def test_a_second_derivative_at_zero_is_finite():
    value = lambda x: jnp.sum(unit(x)[:, 0] ** 2)
    assert np.isfinite(jax.jit(jax.hessian(value))(jnp.zeros((1, 2)))).all()


order_of = jax.jit(drawn_order, static_argnames="masked")


@pytest.mark.parametrize("masked", ["first", "last"])
def test_masked_rows_change_no_order_wherever_they_stand(masked):
    """The valid ones come in one order, the others before or behind them."""
    key = jax.random.key(5)
    order = np.asarray(order_of(key, jnp.ones(4, bool), masked=masked))
    assert sorted(order) == [0, 1, 2, 3] and (order != np.arange(4)).any()
    for valid in ((0, 1, 2, 3), (2, 3, 4, 5), (0, 2, 3, 5)):
        mask = np.isin(np.arange(6), valid)
        found = np.asarray(order_of(key, jnp.asarray(mask), masked=masked))
        ours, others = (
            (found[2:], found[:2]) if masked == "first" else (found[:4], found[4:])
        )
        assert ours.tolist() == [valid[i] for i in order]
        assert sorted(others) == np.flatnonzero(~mask).tolist()


def test_without_a_key_the_order_is_the_given_one():
    mask = jnp.array([True, False, True, False])
    assert drawn_order(None, mask).tolist() == [0, 2, 1, 3]
    assert drawn_order(None, mask, masked="first").tolist() == [1, 3, 0, 2]


def test_all_orders_are_as_likely():
    keys = jax.random.split(jax.random.key(0), 600)
    mask = jnp.array([True, False, True, True])
    found = jax.jit(jax.vmap(functools.partial(drawn_order, mask=mask)))(keys)
    _, counts = np.unique(found[:, :3], axis=0, return_counts=True)
    assert len(counts) == 6 and abs(counts - 100).max() < 45  # five standard deviations
