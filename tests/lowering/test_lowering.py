"""The exchanged operations against the originals: values, derivatives, structure."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from lowered import (
    NCHW,
    NHWC,
    assert_close,
    convolution,
    count,
    derivatives,
    jit,
    normal,
    num_convolutions,
    num_poolings,
)

from metalearn.lowering import lower

# -- Convolutions -------------------------------------------------------------------

NWC, NDHWC = ("NWC", "WIO", "NWC"), ("NDHWC", "DHWIO", "NDHWC")

# name: (lhs shape, rhs shape, layout, options); stride 1 and SAME unless given.
CONVOLUTIONS = {
    "plain": ((2, 5, 6, 3), (3, 3, 3, 4), NHWC, {}),
    "valid": ((2, 5, 6, 3), (3, 2, 3, 4), NHWC, {"padding": "VALID"}),
    "strided": ((2, 7, 6, 2), (3, 3, 2, 3), NHWC, {"window_strides": (2, 3)}),
    "even_same": ((2, 6, 5, 2), (2, 4, 2, 3), NHWC, {"window_strides": (2, 1)}),
    "asymmetric": ((1, 5, 5, 2), (3, 3, 2, 2), NHWC, {"padding": ((0, 2), (3, 1))}),
    "crop": ((1, 7, 7, 2), (3, 3, 2, 2), NHWC, {"padding": ((-1, 0), (2, -2))}),
    "atrous": ((2, 8, 7, 2), (3, 2, 2, 3), NHWC, {"rhs_dilation": (2, 3)}),
    "transposed": (
        (2, 4, 3, 2),
        (3, 3, 2, 3),
        NHWC,
        {"lhs_dilation": (2, 3), "padding": ((2, 1), (1, 2))},
    ),
    "dilated_crop": (
        (1, 5, 5, 2),
        (2, 2, 2, 2),
        NHWC,
        {"lhs_dilation": (2, 2), "padding": ((-1, 1), (0, -2))},
    ),
    "everything": (
        (2, 5, 6, 4),
        (3, 2, 2, 6),
        NHWC,
        {
            "window_strides": (2, 3),
            "padding": ((2, 1), (3, -1)),
            "lhs_dilation": (2, 2),
            "rhs_dilation": (2, 3),
            "feature_group_count": 2,
        },
    ),
    "pointwise": ((2, 4, 5, 3), (1, 1, 3, 4), NHWC, {}),
    "pointwise_strided": ((2, 5, 5, 3), (1, 1, 3, 4), NHWC, {"window_strides": (2, 3)}),
    "tiles": (
        (2, 7, 9, 3),
        (2, 3, 3, 4),
        NHWC,
        {"window_strides": (2, 3), "padding": "VALID"},
    ),
    "tiles_padded": ((2, 5, 7, 2), (2, 3, 2, 3), NHWC, {"window_strides": (2, 3)}),
    "tiles_grouped": (
        (2, 4, 6, 4),
        (2, 3, 2, 6),
        NHWC,
        {"window_strides": (2, 3), "padding": "VALID", "feature_group_count": 2},
    ),
    "tiles_dilated": (
        (2, 8, 8, 2),
        (2, 2, 2, 3),
        NHWC,
        {"window_strides": (2, 2), "rhs_dilation": (2, 1)},
    ),
    "whole_image": ((2, 4, 5, 3), (4, 5, 3, 2), NHWC, {"padding": "VALID"}),
    "whole_large": ((1, 12, 13, 1), (12, 13, 1, 2), NHWC, {"padding": "VALID"}),
    "one_row": (
        (2, 3, 9, 2),
        (3, 3, 2, 2),
        NHWC,
        {"window_strides": (5, 3), "padding": "VALID"},
    ),
    "grouped": ((2, 5, 4, 6), (3, 3, 2, 9), NHWC, {"feature_group_count": 3}),
    "depthwise": ((2, 5, 4, 3), (3, 3, 1, 3), NHWC, {"feature_group_count": 3}),
    "multiplier": ((2, 5, 4, 3), (3, 3, 1, 6), NHWC, {"feature_group_count": 3}),
    "nchw": ((2, 3, 5, 6), (4, 3, 3, 2), NCHW, {"window_strides": (1, 2)}),
    "nchw_grouped": ((2, 4, 5, 6), (6, 2, 3, 2), NCHW, {"feature_group_count": 2}),
    "mixed": ((3, 5, 2, 6), (3, 4, 2, 3), ("CHNW", "IOWH", "WNHC"), {}),
    "1d": ((2, 9, 3), (4, 3, 2), NWC, {"window_strides": (2,)}),
    "1d_ncw": ((2, 4, 9), (6, 2, 3), ("NCH", "OIH", "NCH"), {"feature_group_count": 2}),
    "3d": ((1, 3, 4, 5, 2), (2, 3, 2, 2, 3), NDHWC, {"window_strides": (1, 2, 1)}),
    "0d": ((3, 4), (4, 2), ("NC", "IO", "NC"), {"padding": ()}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_lax(x64, name):
    lhs_shape, rhs_shape, layout, options = CONVOLUTIONS[name]
    conv = convolution(layout, options)
    lhs, rhs = normal(0, *lhs_shape), normal(1, *rhs_shape)
    lowered = lower(conv)
    assert num_convolutions(conv, lhs, rhs) == 1
    assert num_convolutions(lowered, lhs, rhs) == 0
    assert count("matrix_product", lowered, lhs, rhs) == 1
    assert_close(derivatives(lowered, lhs, rhs), derivatives(conv, lhs, rhs))


def test_without_jit():
    lhs_shape, rhs_shape, layout, options = CONVOLUTIONS["valid"]
    conv = convolution(layout, options)
    lhs, rhs = normal(0, *lhs_shape), normal(1, *rhs_shape)
    with jax.disable_jit():
        found = lower(conv)(lhs, rhs)
    np.testing.assert_allclose(found, conv(lhs, rhs), rtol=1e-4, atol=1e-5)


FALL_BACKS = {
    "batch_groups": ((4, 5, 5, 2), (3, 3, 2, 4), NHWC, {"batch_group_count": 2}),
    "many_taps": ((1, 16, 16, 1), (12, 11, 1, 1), NHWC, {}),
    "many_dilated_taps": (
        (1, 40, 40, 1),
        (12, 12, 1, 1),
        NHWC,
        {"window_strides": (12, 12), "rhs_dilation": (2, 2)},
    ),
    "no_positions": ((1, 2, 2, 1), (3, 3, 1, 1), NHWC, {"padding": "VALID"}),
    "no_images": ((0, 4, 4, 1), (3, 3, 1, 2), NHWC, {}),
    "no_outputs": ((2, 4, 4, 1), (3, 3, 1, 0), NHWC, {}),
}


@pytest.mark.parametrize("name", FALL_BACKS)
def test_fall_back_keeps_the_primitive(name):
    lhs_shape, rhs_shape, layout, options = FALL_BACKS[name]
    conv = convolution(layout, options)
    lhs, rhs = normal(0, *lhs_shape), normal(1, *rhs_shape)
    lowered = lower(conv)
    assert num_convolutions(lowered, lhs, rhs) == 1
    assert_close(lowered(lhs, rhs), conv(lhs, rhs), rtol=0, atol=0)


@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_bfloat16_and_preferred_type(preferred):
    conv = convolution(NHWC, {"preferred_element_type": preferred, "precision": "highest"})
    lhs = normal(0, 2, 5, 5, 3, dtype=jnp.bfloat16)
    rhs = normal(1, 3, 3, 3, 4, dtype=jnp.bfloat16)
    lowered = lower(conv)
    assert num_convolutions(lowered, lhs, rhs) == 0
    assert "HIGHEST" in str(jax.make_jaxpr(lowered)(lhs, rhs))
    expected = conv(lhs.astype(jnp.float32), rhs.astype(jnp.float32))
    expected = expected.astype(preferred or jnp.bfloat16)
    tolerance = 1e-6 if preferred else 2e-2
    assert_close(lowered(lhs, rhs), expected, rtol=tolerance, atol=tolerance)


def test_integers():
    conv = convolution(NHWC, {"preferred_element_type": jnp.int32})
    lhs = jnp.arange(60, dtype=jnp.int8).reshape(1, 5, 6, 2)
    rhs = jnp.arange(54, dtype=jnp.int8).reshape(3, 3, 2, 3) - 27
    assert num_convolutions(lower(conv), lhs, rhs) == 0
    assert_close(lower(conv)(lhs, rhs), conv(lhs, rhs), rtol=0, atol=0)


@pytest.mark.parametrize("groups", [1, 2])
def test_kernel_per_task(x64, groups):
    conv = convolution(NHWC, {"feature_group_count": groups})
    lowered = lower(conv)
    lhs = normal(0, 3, 2, 5, 5, 4)
    rhs = normal(1, 3, 3, 3, 4 // groups, 2)

    def gradient_norm(fun, lhs, rhs):
        return jnp.sum(jax.grad(lambda r: jnp.sum(fun(lhs, r) ** 3))(rhs) ** 2)

    def total(lhs, rhs):
        return jnp.sum(jax.vmap(functools.partial(gradient_norm, lowered))(lhs, rhs))

    second = jax.grad(total, argnums=(0, 1))
    one_task = jit(jax.grad(functools.partial(gradient_norm, conv), argnums=(0, 1)))
    assert num_convolutions(second, lhs, rhs) == 0
    expected = [one_task(x, r) for x, r in zip(lhs, rhs, strict=True)]
    expected = jax.tree.map(lambda *tasks: jnp.stack(tasks), *expected)
    assert_close(jit(second)(lhs, rhs), expected)


# -- Max-pooling --------------------------------------------------------------------

# name: (shape, window, strides, padding, whether it is exchanged)
POOLINGS = {
    "even": ((2, 4, 6, 3), (2, 2), (2, 2), "VALID", True),
    "odd": ((2, 7, 5, 3), (2, 2), (2, 2), "VALID", True),
    "wide": ((2, 7, 9, 2), (3, 4), (3, 4), "VALID", True),
    "same_without_padding": ((2, 4, 4, 2), (2, 2), (2, 2), "SAME", True),
    "same_with_padding": ((2, 5, 5, 2), (2, 2), (2, 2), "SAME", False),
    "overlapping": ((2, 5, 5, 2), (3, 3), (2, 2), "VALID", False),
    "empty": ((2, 1, 5, 2), (2, 2), (2, 2), "VALID", False),
    "1d": ((2, 7, 3), (3,), (3,), "VALID", True),
    "3d": ((1, 4, 3, 4, 2), (2, 3, 2), (2, 3, 2), "VALID", True),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_max_pool_equals_lax(x64, name):
    shape, window, strides, padding, exchanged = POOLINGS[name]
    pool = functools.partial(
        nn.max_pool, window_shape=window, strides=strides, padding=padding
    )
    images = normal(0, *shape)
    assert num_poolings(lower(pool), images) == (not exchanged)
    assert_close(derivatives(lower(pool), images), derivatives(pool, images))


def test_max_pool_ties_go_to_the_first_maximum():
    pool = functools.partial(nn.max_pool, window_shape=(2, 3), strides=(2, 3))
    # Few distinct values: most windows hold their maximum several times.
    images = np.random.default_rng(0).integers(0, 3, size=(4, 8, 9, 5))
    images = jnp.asarray(images, jnp.float32)
    weights = normal(1, 4, 4, 3, 5, dtype=jnp.float32)

    def gradient(fun):
        return jax.grad(lambda x: jnp.sum(fun(x) * weights))(images)

    assert num_poolings(lower(pool), images) == 0
    assert_close(gradient(lower(pool)), gradient(pool), rtol=0, atol=0)


@pytest.mark.parametrize("position", range(4))
def test_max_pool_keeps_nan_and_infinity(position):
    pool = functools.partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    for value in (jnp.nan, jnp.inf, -jnp.inf):
        images = jnp.arange(4.0).at[position].set(value).reshape(1, 2, 2, 1)
        assert_close(lower(pool)(images), pool(images), rtol=0, atol=0)


def test_integer_max_pool():
    images = jnp.arange(32).reshape(1, 4, 4, 2) % 7

    def pool(images):
        low, window = jnp.iinfo(images.dtype).min, (1, 2, 2, 1)
        return lax.reduce_window(images, low, lax.max, window, window, "VALID")

    assert num_poolings(pool, images) == 1
    assert num_poolings(lower(pool), images) == 0
    assert_close(lower(pool)(images), pool(images), rtol=0, atol=0)
