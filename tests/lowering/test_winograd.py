"""3x3 convolutions by minimal filtering, against lax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
)

from metalearn.lowering import lower, winograd

pytestmark = pytest.mark.usefixtures("x64")

PADDINGS = {"same": "SAME", "valid": "VALID", "uneven": [(0, 3), (2, 1)]}


@pytest.mark.parametrize(
    ("padding", "side"), [("same", 10), ("same", 11), ("valid", 11), ("uneven", 10)]
)
def test_values_and_derivatives(padding, side):
    images, kernels = normal(0, 2, side, 12, 32), normal(1, 3, 3, 32, 33) / 17
    fun = convolution(NHWC, {"padding": PADDINGS[padding]})
    assert count("matrix_product", lower(fun), images, kernels) == 16
    found = derivatives(lower(fun), images, kernels)
    assert_close(found, derivatives(fun, images, kernels), rtol=1e-8, atol=1e-8)


def test_channels_first():
    images, kernels = normal(0, 2, 32, 8, 9), normal(1, 32, 32, 3, 3) / 17
    fun = convolution(NCHW, {})
    assert count("matrix_product", lower(fun), images, kernels) == 16
    assert_close(jit(lower(fun))(images, kernels), jit(fun)(images, kernels))


def test_a_kernel_for_each_task():
    images, kernels = normal(0, 3, 2, 8, 8, 32), normal(1, 3, 3, 3, 32, 32) / 17
    fun = convolution(NHWC, {})
    expected = jnp.stack([fun(x, k) for x, k in zip(images, kernels, strict=True)])
    assert_close(jit(jax.vmap(lower(fun)))(images, kernels), expected)


def test_single_precision_is_as_exact_as_direct_products():
    exact = normal(0, 4, 14, 14, 64), normal(1, 3, 3, 64, 64) / 24
    fun = convolution(NHWC, {})
    right = np.asarray(jit(fun)(*exact))
    single = [x.astype(jnp.float32) for x in exact]
    assert count("matrix_product", lower(fun), *single) == 16
    gaps = [
        np.abs(np.asarray(jit(f)(*single), np.float64) - right).max()
        for f in (lower(fun), fun)
    ]
    assert gaps[0] < 4 * max(gaps[1], 1e-6)


@pytest.mark.parametrize(
    ("images", "kernels", "options"),
    [
        ((1, 7, 7, 32), (3, 3, 32, 32), {}),  # small sides
        ((1, 8, 8, 31), (3, 3, 31, 32), {}),  # few channels
        ((1, 8, 8, 32), (3, 3, 32, 31), {}),
        ((1, 8, 8, 32), (5, 5, 32, 32), {}),
        ((1, 8, 8, 32), (3, 3, 32, 32), {"window_strides": (2, 2)}),
        ((1, 12, 12, 32), (3, 3, 32, 32), {"rhs_dilation": (2, 2)}),
        ((1, 8, 8, 64), (3, 3, 32, 64), {"feature_group_count": 2}),
    ],
)
def test_elsewhere_one_product(images, kernels, options):
    fun, args = convolution(NHWC, options), (normal(0, *images), normal(1, *kernels))
    assert count("matrix_product", lower(fun), *args) == 1
    assert num_convolutions(lower(fun), *args) == 0


def test_sums_in_another_precision_stay_so():
    fun = convolution(NHWC, {"preferred_element_type": jnp.float64})
    single = [
        normal(i, *shape, dtype=jnp.float32)
        for i, shape in enumerate([(1, 8, 8, 32), (3, 3, 32, 32)])
    ]
    assert count("matrix_product", lower(fun), *single) == 1
    assert_close(jit(lower(fun))(*single), jit(fun)(*single))


def test_not_in_half_precision_nor_on_accelerators(monkeypatch):
    fun = convolution(NHWC, {})
    single = [
        normal(i, *shape, dtype=jnp.float32)
        for i, shape in enumerate([(1, 8, 8, 32), (3, 3, 32, 32)])
    ]
    half = [x.astype(jnp.bfloat16) for x in single]
    assert count("matrix_product", lower(fun), *half) == 1
    monkeypatch.setattr(winograd.jax, "default_backend", lambda: "gpu")
    assert count("matrix_product", lower(fun), *single) == 1
