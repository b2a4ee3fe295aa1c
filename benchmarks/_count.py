"""Arithmetic of a program, counted from its jaxpr with loops as often as they run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from metalearn.core.cost import subjaxprs


def product_flops(fn: Callable[..., Any], *args: Any) -> int:
    """Multiplications and additions of all matrix products and convolutions."""
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "matrix_product"):
            shape = eqn.invars[0].aval.shape
            inner = math.prod(shape[d] for d in _contracted(eqn))
            total += 2 * inner * math.prod(eqn.outvars[0].aval.shape)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            per_output = math.prod(kernel) // outputs
            total += 2 * per_output * math.prod(eqn.outvars[0].aval.shape)
        else:
            times = eqn.params.get("length", 1)
            total += times * sum(map(_of_jaxpr, subjaxprs(eqn)))
    return total


def _contracted(eqn: Any) -> tuple[int, ...]:
    """The summed axes of the left operand."""
    if eqn.primitive.name == "dot_general":
        return eqn.params["dimension_numbers"][0][0]
    return (-2 if eqn.params["form"] == "tn" else -1,)
