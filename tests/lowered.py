"""What the tests of the lowering share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")

# Compiling is what these tests spend their time on: no optimisation of the programs.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


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


def convolution(layout, options):
    num_spatial = len(layout[0]) - 2
    options = {"window_strides": (1,) * num_spatial, "padding": "SAME"} | options
    return functools.partial(lax.conv_general_dilated, dimension_numbers=layout, **options)
