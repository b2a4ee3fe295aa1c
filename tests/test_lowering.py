"""The exchanged operations against the originals: values, derivatives, structure."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.extend import core

from metalearn.lowering import lower, matmul_convolutions

# Compiling is what these tests spend their time on: no optimisation of the programs.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def count(name, fun, *args, **kwargs):
    """Number of equations of primitive `name` in `fun`, sub-jaxprs included."""

    def in_jaxpr(jaxpr):
        return sum(
            (eqn.primitive.name == name) + sum(map(in_param, eqn.params.values()))
            for eqn in jaxpr.eqns
        )

    def in_param(value):
        if isinstance(value, core.ClosedJaxpr):
            return in_jaxpr(value.jaxpr)
        if isinstance(value, core.Jaxpr):
            return in_jaxpr(value)
        if isinstance(value, tuple | list):
            return sum(map(in_param, value))
        return 0

    return in_jaxpr(jax.make_jaxpr(functools.partial(fun, **kwargs))(*args).jaxpr)


num_convolutions = functools.partial(count, "conv_general_dilated")
num_poolings = functools.partial(count, "reduce_window_max")


def normal(seed, *shape, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def derivatives(fun, *args):
    """Value, jvp, vjp and the gradient of a gradient norm of `fun` at `args`."""

    def loss(*args):
        return jnp.sum(jnp.sin(fun(*args)))

    def gradient_norm(*args):
        grads = jax.grad(loss, argnums=tuple(range(len(args))))(*args)
        return sum(jnp.sum(g**2) for g in grads)

    @jit
    def everything(*args):
        tangents = [jnp.cos(3 * a + 1) for a in args]
        value, tangent = jax.jvp(fun, args, tuple(tangents))
        cotangents = jax.vjp(fun, *args)[1](jnp.cos(value))
        second = jax.grad(gradient_norm, argnums=tuple(range(len(args))))(*args)
        return value, tangent, cotangents, second

    return everything(*args)


def assert_close(actual, expected, rtol=1e-9, atol=1e-9):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol)


# -- Convolutions -------------------------------------------------------------------

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
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


def convolution(layout, options):
    num_spatial = len(layout[0]) - 2
    options = {"window_strides": (1,) * num_spatial, "padding": "SAME"} | options
    return functools.partial(lax.conv_general_dilated, dimension_numbers=layout, **options)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_lax(x64, name):
    lhs_shape, rhs_shape, layout, options = CONVOLUTIONS[name]
    conv = convolution(layout, options)
    lhs, rhs = normal(0, *lhs_shape), normal(1, *rhs_shape)
    lowered = matmul_convolutions(conv)
    assert num_convolutions(conv, lhs, rhs) == 1
    assert num_convolutions(lowered, lhs, rhs) == 0
    assert count("dot_general", lowered, lhs, rhs) == 1
    assert_close(derivatives(lowered, lhs, rhs), derivatives(conv, lhs, rhs))


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
    assert num_poolings(matmul_convolutions(pool), images) == 1
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


# -- Whole models -------------------------------------------------------------------


class LinenNet(nn.Module):
    """Two blocks with every kind of state that a flax model may carry."""

    padding: str = "SAME"

    @nn.compact
    def __call__(self, x, train):
        for _ in range(2):
            x = nn.Conv(4, (3, 3), padding=self.padding)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_linen_model(x64, padding):
    model = LinenNet(padding)
    images = normal(0, 2, 10, 10, 1)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), images, False)
    keys = {"dropout": jax.random.key(7)}

    def train(fun, variables):
        return fun(variables, images, True, rngs=keys, mutable=["batch_stats"])

    def everything(fun, variables):
        # One positional flag, no mutable collection: another structure of outputs.
        evaluated = fun(variables, images, False)
        grads = jax.grad(lambda v: jnp.sum(train(fun, v)[0] ** 2))(variables)
        return train(fun, variables), evaluated, grads

    original = functools.partial(everything, model.apply)
    lowered = functools.partial(everything, lower(model.apply))
    assert num_convolutions(original, variables) > 0
    assert num_convolutions(lowered, variables) == 0
    assert_close(jit(lowered)(variables), jit(original)(variables))


def test_nnx_model():
    class NnxNet(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.head = nnx.Linear(36, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x)))
            x = nnx.max_pool(x, (2, 2), (2, 2))
            return self.head(x.reshape(x.shape[0], -1))

    graphdef, state = nnx.split(NnxNet(nnx.Rngs(0)))
    images = normal(0, 2, 6, 6, 1, dtype=jnp.float32)

    def apply(state, images):
        model = nnx.merge(graphdef, state)
        outputs = model(images)
        return outputs, nnx.state(model)

    assert num_convolutions(apply, state, images) == 1
    assert num_convolutions(lower(apply), state, images) == 0
    assert_close(lower(apply)(state, images), apply(state, images), rtol=1e-5, atol=1e-5)


def residual(conv):
    return lambda x, w: x + jnp.tanh(conv(x, w))


def in_scan(conv):
    def fun(x, w):
        def body(carry, scale):
            return residual(conv)(carry, scale * w), jnp.sum(carry)

        return lax.scan(body, x, jnp.linspace(0.5, 1.0, 3))

    return fun


def in_while(conv):
    def fun(x, w):
        state = (0, x)
        state = lax.while_loop(
            lambda s: jnp.logical_and(s[0] < 3, jnp.sum(conv(s[1], w)) < 1e6),
            lambda s: (s[0] + 1, residual(conv)(s[1], w)),
            state,
        )
        return state[1]

    return fun


def in_cond(conv):
    def fun(x, w):
        return lax.cond(jnp.sum(x) > 0, conv, lambda x, w: 2 * conv(x, w), x, w)

    return fun


STRUCTURES = {
    "jit": lambda conv: jax.jit(residual(conv)),
    "nested_jit": lambda conv: jax.jit(lambda x, w: jax.jit(conv)(x, w) * 2),
    "remat": lambda conv: jax.checkpoint(residual(conv)),
    "remat_policy": lambda conv: jax.checkpoint(
        residual(conv), policy=jax.checkpoint_policies.dots_saveable
    ),
    "scan": in_scan,
    "scan_of_remat": lambda conv: in_scan(jax.checkpoint(conv)),
    "while": in_while,
    "cond": in_cond,
    "grad": lambda conv: jax.grad(lambda x, w: jnp.sum(conv(x, w) ** 2), argnums=1),
    "vmap": lambda conv: lambda x, w: jax.vmap(conv)(x[None], w[None])[0],
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_around_a_convolution(x64, name):
    fun = STRUCTURES[name](convolution(NHWC, {}))
    x, w = normal(0, 2, 5, 5, 3), normal(1, 3, 3, 3, 3) / 5
    lowered = lower(fun)
    assert num_convolutions(fun, x, w) >= 1
    assert num_convolutions(lowered, x, w) == 0
    assert_close(jit(lowered)(x, w), jit(fun)(x, w))
    if name == "while":  # no reverse mode through while_loop
        return

    def gradient(fun):
        def loss(x, w):
            return sum(jnp.sum(y**2) for y in jax.tree.leaves(fun(x, w)))

        return jax.grad(loss, argnums=(0, 1))

    assert num_convolutions(gradient(lowered), x, w) == 0
    assert_close(jit(gradient(lowered))(x, w), jit(gradient(fun))(x, w))


def test_eager_calls(x64):
    fun = in_scan(jax.jit(convolution(NHWC, {})))
    x, w = normal(0, 2, 5, 5, 3), normal(1, 3, 3, 3, 3) / 5
    assert_close(lower(fun)(x, w), fun(x, w))


def test_custom_rules_stay_in_force():
    conv = convolution(NHWC, {})

    @jax.custom_vjp
    def straight(x, w):
        return conv(x, w)

    straight.defvjp(
        lambda x, w: (straight(x, w), (x, w)),
        lambda saved, g: (7.0 * saved[0], 11.0 * saved[1]),
    )

    @jax.custom_jvp
    def tripled(x, w):
        return conv(x, w)

    tripled.defjvp(lambda p, t: (tripled(*p), 3.0 * tripled(t[0], p[1])))

    x, w = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 2)

    def fun(x, w):
        return straight(conv(x, w), w) + tripled(x, w)

    lowered = lower(fun)
    assert num_convolutions(fun, x, w) == 3
    assert num_convolutions(lowered, x, w) == 2
    for f in (fun, lowered):
        grads = jax.grad(lambda x, w, f=f: jnp.sum(f(x, w)), argnums=(0, 1))(x, w)
        inner = conv(x, w)
        from_conv = jax.vjp(conv, x, w)[1](7.0 * inner)
        from_tripled = jax.vjp(lambda x: 3.0 * conv(x, w), x)[1](jnp.ones_like(inner))
        expected = (from_conv[0] + from_tripled[0], from_conv[1] + 11.0 * w)
        assert_close(grads, expected, rtol=1e-4, atol=1e-4)


# -- The transform itself -----------------------------------------------------------


def test_function_without_convolution_is_called_as_it_is():
    traced = []

    def fun(x):
        traced.append(isinstance(x, jax.core.Tracer))
        return jnp.sin(x)

    lower(fun)(jnp.ones(3))
    assert traced == [True, False]


def test_leaves_that_are_no_arrays_pass_through():
    conv = convolution(NHWC, {})
    x, w = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 2)

    def fun(x, weights, repeat, missing, *, mode, key, scale=None):
        assert type(repeat) is int and missing is None and mode == "twice"
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        for _ in range(repeat):
            x = conv(x, weights["w"])
        noise = jax.random.normal(key, x.shape)
        return {"y": x + noise, "none": None, "key": key, "n": (jnp.int32(repeat),)}

    args = (x, {"w": w, "none": None}, 2, None)
    kwargs = {"mode": "twice", "key": jax.random.key(3)}
    actual, expected = lower(fun)(*args, **kwargs), fun(*args, **kwargs)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert actual["key"] == expected["key"] and actual["n"] == expected["n"]
    np.testing.assert_allclose(actual["y"], expected["y"], rtol=1e-5, atol=1e-5)


def test_keys_cross_loops_and_vmap():
    conv = convolution(NHWC, {})

    def fun(key, x, w):
        def body(key, _):
            key, now = jax.random.split(key)
            return key, conv(x, w) * jax.random.bernoulli(now, 0.5, x.shape)

        return lax.scan(body, key, None, length=3)

    keys = jax.random.split(jax.random.key(0), 2)
    x, w = normal(0, 2, 1, 4, 4, 2), normal(1, 2, 3, 3, 2, 2)
    assert num_convolutions(jax.vmap(lower(fun)), keys, x, w) == 0
    actual, expected = jax.vmap(lower(fun))(keys, x, w), jax.vmap(fun)(keys, x, w)
    assert jnp.all(actual[0] == expected[0])
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5, atol=1e-5)


def test_closed_over_tracers_and_values_read_at_call_time(x64):
    conv = convolution(NHWC, {})
    x, w = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 2)

    def loss(transform, w):
        return jnp.sum(transform(lambda x: conv(x, w))(x) ** 2)

    expected = jax.grad(functools.partial(loss, lambda f: f))(w)
    assert_close(jax.grad(functools.partial(loss, lower))(w), expected)

    box = {"w": w}
    lowered = lower(lambda x: conv(x, box["w"]))
    before = lowered(x)
    box["w"] = 2 * w
    assert_close(lowered(x), 2 * before)


def test_collectives_and_effects_inside():
    conv = convolution(NHWC, {})
    seen = []

    def fun(x, w):
        y = conv(x, w)
        jax.debug.callback(lambda v: seen.append(float(v)), jnp.sum(w))
        return lax.pmean(y, "tasks")

    x, w = normal(0, 2, 1, 4, 4, 2), normal(1, 2, 3, 3, 2, 2)
    actual = jax.vmap(lower(fun), axis_name="tasks")(x, w)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(seen), sorted(w.sum((1, 2, 3, 4))), rtol=1e-5)
    expected = jnp.mean(jax.vmap(conv)(x, w), axis=0)
    np.testing.assert_allclose(actual[1], expected, rtol=1e-4, atol=1e-5)


def test_name_and_documentation_are_kept():
    def fun(x):
        """Says something."""
        return x

    assert lower(fun).__name__ == "fun"
    assert lower(fun).__doc__ == "Says something."
