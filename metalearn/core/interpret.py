"""Runs small programs of JAX by NumPy, so that a question to them compiles nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core


class Unknown(Exception):
    """The program has an operation that is not in the table."""


def evaluate(closed: Any, *args: Any) -> list[np.ndarray]:
    """Outputs of a closed jaxpr for concrete arguments.

    Args:
      closed: A closed jaxpr.
      *args: Arrays, one for each of its inputs.

    Raises:
      Unknown: an operation has no rule here, or a constant of the program is traced.
    """
    with np.errstate(all="ignore"):
        return _run(closed.jaxpr, closed.consts, args)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[np.ndarray]:
    known: dict[Any, np.ndarray] = {}

    def write(variables: Sequence[Any], values: Sequence[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            known[variable] = _array(value, variable.aval.dtype)

    def read(atom: Any) -> np.ndarray:
        if isinstance(atom, core.Literal):
            return _array(atom.val, atom.aval.dtype)
        return known[atom]

    write(jaxpr.constvars, consts)
    write(jaxpr.invars, args)
    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [read(atom) for atom in eqn.invars]
        inside = [v for v in eqn.params.values() if hasattr(v, "jaxpr")]
        if name in _CALLS and len(inside) == 1:
            write(eqn.outvars, _run(inside[0].jaxpr, inside[0].consts, inputs))
        elif name in _RULES and len(eqn.outvars) == 1:
            write(eqn.outvars, [_RULES[name](eqn.params, *inputs)])
        else:
            raise Unknown(name)
    return [read(atom) for atom in jaxpr.outvars]


def _array(value: Any, dtype: Any) -> np.ndarray:
    try:
        return np.asarray(value, dtype)
    except Exception as error:  # a traced array, a key
        raise Unknown(str(error)) from None


_CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}


def _plain(fn: Callable) -> Callable:
    return lambda params, *values: fn(*values)


def _reduction(fn: Callable) -> Callable:
    return lambda params, x: fn(x, axis=tuple(params["axes"]))


def _divide(params: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        raise Unknown("division of integers")
    return a / b


def _dot(params: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    contracted, batch = params["dimension_numbers"]
    if any(batch):
        raise Unknown("a batched product")
    return np.tensordot(a, b, axes=(list(contracted[0]), list(contracted[1])))


def _broadcast(params: Any, x: np.ndarray, *dynamic: Any) -> np.ndarray:
    shape, places = params["shape"], params["broadcast_dimensions"]
    sides = [1] * len(shape)
    for place, side in zip(places, x.shape, strict=True):
        sides[place] = side
    return np.broadcast_to(x.reshape(sides), shape)


def _select(params: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.choose(which.astype(int), cases)


_RULES: dict[str, Callable] = {
    "add": _plain(np.add),
    "add_any": _plain(np.add),
    "sub": _plain(np.subtract),
    "mul": _plain(np.multiply),
    "div": _divide,
    "neg": _plain(np.negative),
    "max": _plain(np.maximum),
    "min": _plain(np.minimum),
    "clamp": lambda params, low, x, high: np.minimum(np.maximum(x, low), high),
    "abs": _plain(np.abs),
    "sign": _plain(np.sign),
    "sqrt": _plain(np.sqrt),
    "rsqrt": _plain(lambda x: 1 / np.sqrt(x)),
    "cbrt": _plain(np.cbrt),
    "square": _plain(np.square),
    "integer_pow": lambda params, x: np.power(x, np.asarray(params["y"], x.dtype)),
    "pow": _plain(np.power),
    "exp": _plain(np.exp),
    "exp2": _plain(np.exp2),
    "log": _plain(np.log),
    "log1p": _plain(np.log1p),
    "expm1": _plain(np.expm1),
    "tanh": _plain(np.tanh),
    "logistic": _plain(lambda x: 1 / (1 + np.exp(-x))),
    "cos": _plain(np.cos),
    "sin": _plain(np.sin),
    "floor": _plain(np.floor),
    "ceil": _plain(np.ceil),
    "real": _plain(np.real),
    "conj": lambda params, x: np.conj(x),
    "is_finite": _plain(np.isfinite),
    "eq": _plain(np.equal),
    "ne": _plain(np.not_equal),
    "lt": _plain(np.less),
    "le": _plain(np.less_equal),
    "gt": _plain(np.greater),
    "ge": _plain(np.greater_equal),
    "and": _plain(np.bitwise_and),
    "or": _plain(np.bitwise_or),
    "not": _plain(np.invert),
    "select_n": _select,
    "convert_element_type": lambda params, x: x.astype(params["new_dtype"]),
    "copy": _plain(lambda x: x),
    "copy_p": _plain(lambda x: x),
    "stop_gradient": _plain(lambda x: x),
    "broadcast_in_dim": _broadcast,
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
    "dot_general": _dot,
    "transpose": lambda params, x: np.transpose(x, params["permutation"]),
    "concatenate": lambda params, *parts: np.concatenate(parts, params["dimension"]),
    "reduce_sum": _reduction(np.sum),
    "reduce_max": _reduction(np.max),
    "reduce_min": _reduction(np.min),
    "reduce_prod": _reduction(np.prod),
    "reduce_and": _reduction(np.all),
    "reduce_or": _reduction(np.any),
}
