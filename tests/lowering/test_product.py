"""The matrix product under the lowering: values, derivatives of any order, batching."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from lowered import assert_close, count, derivatives, jit, normal

from metalearn.lowering import lower, product

pytestmark = pytest.mark.usefixtures("x64")

SHAPES = {"nn": ((4, 3), (3, 5)), "nt": ((4, 3), (5, 3)), "tn": ((3, 4), (3, 5))}
PLAIN = {
    "nn": lambda a, b: a @ b,
    "nt": lambda a, b: a @ b.mT,
    "tn": lambda a, b: a.mT @ b,
}


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("form", SHAPES)
def test_every_form_and_its_derivatives(form, leading):
    a, b = (normal(i, *leading, *shape) for i, shape in enumerate(SHAPES[form]))
    found = derivatives(lambda a, b: product(a, b, form), a, b)
    assert_close(found, derivatives(PLAIN[form], a, b))


@pytest.mark.parametrize("axes", [(0, 0), (1, 2), (0, None), (2, None), (None, 0)])
@pytest.mark.parametrize("form", SHAPES)
def test_batching_along_any_axis(form, axes):
    a, b = (normal(i, *shape) for i, shape in enumerate(SHAPES[form]))
    a, b = (
        x if axis is None else jnp.stack([x, 2 * x, x + 1], axis)
        for x, axis in zip((a, b), axes, strict=True)
    )
    ours = jax.vmap(lambda a, b: product(a, b, form), axes)
    assert_close(derivatives(ours, a, b), derivatives(jax.vmap(PLAIN[form], axes), a, b))


def test_batching_twice():
    a, b = normal(0, 2, 6, 4, 3), normal(1, 6, 3, 5)
    each_b = jax.vmap(jax.vmap(product), (0, None))
    assert_close(jit(each_b)(a, b), a @ b)
    each_a = jax.vmap(jax.vmap(product), (None, 0))
    assert_close(jit(each_a)(a[0], jnp.stack([b, 2 * b])), a[0] @ jnp.stack([b, 2 * b]))


def test_shared_weights_are_one_product():
    a, b = normal(0, 6, 4, 3), normal(1, 3, 5)
    (eqn,) = [
        eqn
        for eqn in jax.make_jaxpr(jax.vmap(product, (0, None)))(a, b).eqns
        if eqn.primitive.name == "matrix_product"
    ]
    assert eqn.invars[0].aval.shape == (24, 3)


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("axes", [(0, None), (None, 0)])
def test_a_shared_operand_is_not_copied(form, axes):
    a, b = (normal(i, *shape) for i, shape in enumerate(SHAPES[form]))
    a, b = (
        x if axis is None else jnp.stack([x] * 7)
        for x, axis in zip((a, b), axes, strict=True)
    )
    batched = jax.vmap(lambda a, b: product(a, b, form), axes)
    assert count("broadcast_in_dim", batched, a, b) == 0
    none = [x if axis is None else x[:0] for x, axis in zip((a, b), axes, strict=True)]
    assert batched(*none).shape == jax.eval_shape(jax.vmap(PLAIN[form], axes), *none).shape


def test_under_shardings_in_types():
    mesh = jax.make_mesh((2,), ("e",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        a, b = jax.device_put(normal(0, 4, 3), P("e")), normal(1, 3, 5)
        loss = lambda product: lambda b: jnp.sum(jnp.sin(product(a, b)))
        found = jax.jit(jax.grad(loss(product)))(b)
        expected = jax.jit(jax.grad(loss(jnp.matmul)))(b)
    assert_close(found, expected)


@pytest.mark.parametrize("depth", [3, 32])
@pytest.mark.parametrize("current", [True, False])
def test_lowered_convolutions_under_shardings_in_types(depth, current):
    mesh = jax.make_mesh((2,), ("e",), axis_types=(AxisType.Explicit,))
    dims = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, k: lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=dims
    )
    x, k = normal(0, 2, 8, 8, depth), normal(1, 3, 3, depth, 32)
    second = lambda conv: jax.jit(
        jax.grad(lambda k, x: jnp.sum(jax.grad(lambda k: jnp.sum(conv(x, k) ** 2))(k) ** 2))
    )
    expected = second(conv)(k, x)
    placed = [jax.device_put(v, NamedSharding(mesh, s)) for v, s in ((k, P()), (x, P("e")))]
    with jax.set_mesh(mesh) if current else contextlib.nullcontext():
        found = second(lower(conv))(*placed)
    assert jnp.linalg.norm(found - expected) <= 1e-4 * jnp.linalg.norm(expected)


@pytest.mark.parametrize(
    ("a", "b", "form"),
    [((2, 3), (3, 4), "xx"), ((3,), (3, 4), "nn"), ((4, 3), (2, 3, 4), "nn")],
)
def test_refuses_what_is_no_product(a, b, form):
    with pytest.raises(ValueError, match="expected"):
        product(jnp.ones(a), jnp.ones(b), form)


def test_inside_a_checked_shard_map():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    a, b = normal(0, 4, 3), normal(1, 3, 5)

    def total(b, product):
        local = lambda a, b: jax.lax.psum(jnp.sum(jnp.sin(product(a, b))), "d")
        return jax.shard_map(local, mesh=mesh, in_specs=(P("d"), P()), out_specs=P())(a, b)

    assert_close(jax.grad(total)(b, product), jax.grad(total)(b, jnp.matmul))


def test_no_derivative_transposes():
    def loss(a, b):
        return jnp.sum(jnp.sin(product(a, b)))

    def norm(a, b):
        return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(a, b))

    a, b = normal(0, 4, 3), normal(1, 3, 5)
    second = jax.grad(norm, (0, 1))
    assert count("transpose", second, a, b) == 0
    assert count("matrix_product", second, a, b) == 12 - 3  # forward, backward, and theirs


def test_half_precision_with_long_sums():
    a, b = normal(0, 4, 600, dtype=jnp.bfloat16), normal(1, 600, 5, dtype=jnp.bfloat16)
    out = product(a, b, dtype=jnp.float32)
    assert out.dtype == jnp.float32
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    np.testing.assert_allclose(out, exact, rtol=1e-4, atol=1e-3)
    grads = jax.grad(lambda a, b: product(a, b, dtype=jnp.float32).sum(), (0, 1))(a, b)
    assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
