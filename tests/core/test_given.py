"""Arrays of users keep their values on the way to the device, or are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalearn as ml

X, Y = np.zeros((3, 2)), np.arange(3)
CHANGED = {
    "masked inputs": (
        np.ma.masked_equal(np.tile([0.0, 1.0], (3, 1)), 1),
        Y,
        "x is a .* 3 values are mask",
    ),
    "masked labels": (X, np.ma.masked_equal(Y, 2), "y is a masked array of which 1 values"),
    "masked in a tree": ({"a": X, "b": np.ma.masked_equal(Y, 0)}, Y, "x is a masked array"),
    "labels of 64 bits": (X, Y + 2**40, r"y holds values from 0 to 10\d+.*Number the val"),
    "negative ones": (X, Y - 2**40, r"y holds values from -10.*\(numpy.unique"),
    "unsigned ones": (X, Y.astype(np.uint64) + 2**63, "beyond the uint32 .* of uint64"),
    "codes of 64 bits": (np.full((3, 2), 2**33), Y, "x holds values"),
    "floats beyond float32": (X + 1e300, Y, r"x holds .*1e\+300, .*float32.*Scale them"),
    "floats below float32": (X - 1e300, Y, r"from -1e\+300"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_jax_would_change_is_refused(kind):
    x, y, words = CHANGED[kind]
    with pytest.raises(ValueError, match=words):
        ml.Examples.of(x, y)


KEPT = {
    "int64": (X, Y),
    "least and most": (X, np.array([-(2**31), 0, 2**31 - 1])),
    "of jax": (jnp.asarray(X), jnp.asarray(Y)),
    "uint32": (X, np.array([0, 1, 2**32 - 1], np.uint32)),
    "no row": (X[:0], Y[:0]),
    "infinite": (X + np.inf, Y),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_jax_keeps_is_taken(kind):
    x, y = KEPT[kind]
    found = ml.Examples.of(x, y)
    np.testing.assert_array_equal(found.x, np.asarray(x))
    np.testing.assert_array_equal(found.y, np.asarray(y))


def test_64_bits_are_kept_where_jax_keeps_them():
    with jax.enable_x64(True):
        found = ml.Examples.of(X + 1e300, Y + 2**40)
        assert found.y.tolist() == (Y + 2**40).tolist() and (found.x == 1e300).all()
