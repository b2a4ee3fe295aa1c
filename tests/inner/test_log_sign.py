"""Gradients as inputs of a network."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn.inner.log_sign import log_sign

P = 7.0
BOUND = math.exp(-P)


@pytest.mark.usefixtures("x64", "strict_dtypes")
def test_values_are_those_of_the_two_branches():
    grads = np.array([[3.0, -0.5, BOUND / 4], [-BOUND / 2, 0.0, -1.0]])
    found = log_sign(jnp.asarray(grads), P)
    expected = [
        [[math.log(3.0) / P, 1], [math.log(0.5) / P, -1], [-1, 0.25]],
        [[-1, -0.5], [-1, 0], [0, -1]],
    ]
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_it_is_continuous_at_the_bound(sign):
    around = sign * BOUND * np.array([1 - 1e-12, 1.0, 1 + 1e-12])
    found = log_sign(jnp.asarray(around), P)
    np.testing.assert_allclose(found, [[-1, sign]] * 3, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_derivatives_are_finite_at_zero_and_right_elsewhere():
    slopes = jax.vmap(jax.jacrev(lambda g: log_sign(g, P)))
    found = slopes(jnp.array([0.0, BOUND / 3, 0.25, -2.0]))
    high = math.exp(P)
    expected = [[0, high], [0, high], [4 / P, 0], [-0.5 / P, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_dtypes_stay(strict_dtypes):
    for dtype in (jnp.bfloat16, jnp.float32):
        assert log_sign(jnp.ones((2,), dtype), P).dtype == dtype


@pytest.mark.parametrize(("p", "dtype"), [(100.0, "float32"), (12.0, "float16")])
def test_a_range_beyond_the_dtype_is_refused(p, dtype):
    with pytest.raises(ValueError, match=f"p is {p}; expected less than .* for {dtype}"):
        log_sign(jnp.ones(2, dtype), p)


@pytest.mark.parametrize("bad", [0, -1.0, math.inf, "7", None])
def test_the_range_is_a_positive_number(bad):
    with pytest.raises(ValueError, match=r"p is .*expected a finite number above 0"):
        log_sign(jnp.ones(2), bad)
