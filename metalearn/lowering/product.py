"""A matrix product whose derivatives of every order lie as the next product needs them.

The derivative of ``lax.dot_general`` for its right operand is a product of exchanged
operands and a transpose; differentiated once more it copies whole activations. The three
forms here are closed under differentiation, and none of them transposes anything.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

# The axes that are summed, of the left and of the right operand.
_SUMMED = {"nn": (-1, -2), "nt": (-1, -1), "tn": (-2, -2)}


def product(
    a: jax.Array,
    b: jax.Array,
    form: str = "nn",
    *,
    precision: Any = None,
    dtype: Any = None,
) -> jax.Array:
    """``A B``, ``A Bᵀ`` or ``Aᵀ B``, differentiable in either mode and to any order.

    Args:
      a: `[..., M, K]`; `[..., K, M]` for "tn".
      b: `[..., K, N]` with the same leading axes; `[..., N, K]` for "nt".
      form: "nn", "nt" or "tn": which operand is read transposed.
      precision: Precision, as in `lax.dot_general`.
      dtype: Dtype of the sums and of the result; `None` for that of the operands.

    Returns:
      `[..., M, N]`.

    Raises:
      ValueError: another form, or operands whose axes do not match.

    Example:
      >>> product(jnp.ones((4, 2)), jnp.ones((4, 3)), "tn").shape
      (2, 3)
    """
    if form not in _SUMMED:
        raise ValueError(f"form is {form!r}; expected 'nn', 'nt' or 'tn'.")
    left, right = _SUMMED[form]
    if (
        min(a.ndim, b.ndim) < 2
        or a.shape[:-2] != b.shape[:-2]
        or a.shape[left] != b.shape[right]
    ):
        raise ValueError(
            f"operands have shapes {a.shape} and {b.shape}; expected two matrices for "
            f"{form!r} with the same leading axes."
        )
    options = {"form": form, "precision": precision, "dtype": dtype}
    if placed_by_type(jax.typeof(a), jax.typeof(b)):
        return _dot(a, b, **options)
    return _product_p.bind(a, b, **options)


def placed_by_type(left: Any, right: Any) -> bool:
    """Whether the types of two arrays say where those lie: then JAX's own rules decide."""
    meshes = [jax.sharding.get_abstract_mesh(), left.sharding.mesh, right.sharding.mesh]
    # The attribute has another name before and after jax 0.10.
    varying = [
        getattr(t, "manual_axis_type", getattr(t, "vma", None)) for t in (left, right)
    ]
    return (
        any(AxisType.Explicit in mesh.axis_types for mesh in meshes)
        or varying[0] != varying[1]
    )


def _dot(a: jax.Array, b: jax.Array, *, form: str, precision: Any, dtype: Any) -> jax.Array:
    leading = tuple(range(a.ndim - 2))
    left, right = _SUMMED[form]
    return lax.dot_general(
        a,
        b,
        (((a.ndim + left,), (b.ndim + right,)), (leading, leading)),
        precision=precision,
        preferred_element_type=dtype,
    )


@functools.lru_cache(maxsize=4096)
def _out_aval(a: Any, b: Any, **options: Any) -> Any:
    traced = jax.make_jaxpr(lambda a, b: _dot(a, b, **options))(a, b)
    return traced.out_avals[0]


def _left_cotangent(ct: Any, a: Any, b: Any, *, form: str, precision: Any, dtype: Any):
    options = {"precision": precision, "dtype": a.aval.dtype}
    if form == "tn":
        return product(b, ct, "nt", **options)
    return product(ct, b, "nt" if form == "nn" else "nn", **options)


def _right_cotangent(ct: Any, a: Any, b: Any, *, form: str, precision: Any, dtype: Any):
    options = {"precision": precision, "dtype": b.aval.dtype}
    if form == "nt":
        return product(ct, a, "tn", **options)
    return product(a, ct, "tn" if form == "nn" else "nn", **options)


def _batched(operands: Any, axes: Any, *, form: str, **options: Any) -> tuple[Any, int]:
    a, b = (
        x if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(operands, axes, strict=True)
    )
    if None not in axes:
        return product(a, b, form, **options), 0
    # With one operand shared, the tasks are rows or columns of one product.
    if axes[1] is None:
        out = product(_joined(a, columns=form == "tn"), b, form, **options)
        shape = (a.shape[0], a.shape[-1 if form == "tn" else -2], out.shape[-1])
        return out.reshape(*out.shape[:-2], *shape), out.ndim - 2
    out = product(a, _joined(b, columns=form != "nt"), form, **options)
    shape = (b.shape[0], b.shape[-2 if form == "nt" else -1])
    return out.reshape(*out.shape[:-1], *shape), out.ndim - 1


def _joined(x: jax.Array, *, columns: bool) -> jax.Array:
    """`[T, ..., M, N]` as `[..., M, T * N]`, or as `[..., T * M, N]`."""
    num, *leading, m, n = x.shape
    if columns:
        return jnp.moveaxis(x, 0, -2).reshape(*leading, m, num * n)
    return jnp.moveaxis(x, 0, -3).reshape(*leading, num * m, n)


_product_p = core.Primitive("matrix_product")
_product_p.def_impl(_dot)
_product_p.def_abstract_eval(_out_aval)
ad.defbilinear(_product_p, _left_cotangent, _right_cotangent)
batching.primitive_batchers[_product_p] = _batched
mlir.register_lowering(_product_p, mlir.lower_fun(_dot, multiple_results=False))
