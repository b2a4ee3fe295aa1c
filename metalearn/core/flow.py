"""What the results of a program depend on, read from its jaxpr without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from metalearn.core import cost

# Operations of one real argument that leave the numbers as they are.
_SAME = {"convert_element_type", "copy", "copy_p", "reshape", "squeeze", "broadcast_in_dim"}
_SAME |= {"stop_gradient"}
_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}
_CALLS |= {"custom_vjp_call_jaxpr", "remat", "checkpoint", "custom_lin"}


class Flow(NamedTuple):
    """Where a value comes from.

    Attributes:
      sources: Numbers of the inputs that it depends on.
      slopes: `{number: c}` if the value is, for each element, `c * input + rest`, where the
        rest does not depend on that input. The factor is a constant of the program.
      constant: The number that the value is everywhere, if it is one.
      same: Number of the input that the value is; `None` if it is computed.
    """

    sources: frozenset[int] = frozenset()
    slopes: Mapping[int, float] = MappingProxyType({})
    constant: float | None = None
    same: int | None = None


def of_outputs(jaxpr: Any, consts: Sequence[Any] = ()) -> list[Flow]:
    """The flow of every output of a jaxpr.

    Args:
      jaxpr: A jaxpr, without its constants.
      consts: Values of its constants.
    """
    inputs = [Flow(frozenset([i]), {i: 1.0}, None, i) for i in range(len(jaxpr.invars))]
    return _run(jaxpr, [_constant(value) for value in consts], inputs)


def _run(jaxpr: Any, consts: Sequence[Flow], inputs: Sequence[Flow]) -> list[Flow]:
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    # Constants of an inner program are not at hand.
    known |= dict.fromkeys(jaxpr.constvars, Flow())
    known |= dict(zip(jaxpr.constvars, consts))

    def read(atom: Any) -> Flow:
        return _constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        found = _results(eqn, [read(atom) for atom in eqn.invars])
        known |= dict(zip(eqn.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(eqn: Any, inputs: list[Flow]) -> list[Flow]:
    if eqn.primitive.name in _CALLS:
        inside = cost.subjaxprs(eqn)
        if len(inside) == 1 and len(inside[0].invars) == len(inputs):
            return _run(inside[0], (), inputs)
    sources = frozenset().union(*(flow.sources for flow in inputs))
    if len(eqn.outvars) != 1:
        return [Flow(sources) for _ in eqn.outvars]
    slopes, constant = _of_one(eqn, inputs)
    if constant is not None:
        return [Flow(constant=constant)]
    return [Flow(sources, slopes)]


def _of_one(eqn: Any, inputs: list[Flow]) -> tuple[Mapping[int, float], float | None]:
    """Slopes and constant of the result of an operation."""
    name = eqn.primitive.name
    numbers = [flow.constant for flow in inputs]
    if name in _SAME:
        if inputs[0].constant is not None:
            return {}, inputs[0].constant
        whole = eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape
        real = jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)
        return (inputs[0].slopes if whole and real else {}), None
    if name == "neg":
        return _scaled(inputs[0], -1.0)
    if name in ("add", "add_any", "sub"):
        sign = -1.0 if name == "sub" else 1.0
        if None not in numbers:
            return {}, numbers[0] + sign * numbers[1]
        return _sum(eqn, inputs, sign), None
    if name == "mul" and numbers[0] is not None:
        return _scaled(inputs[1], numbers[0])
    if name == "mul" and numbers[1] is not None:
        return _scaled(inputs[0], numbers[1])
    if name == "div" and numbers[1]:
        return _scaled(inputs[0], 1 / numbers[1])
    return {}, None


def _scaled(flow: Flow, factor: float) -> tuple[Mapping[int, float], float | None]:
    if flow.constant is not None:
        return {}, factor * flow.constant
    return {i: factor * slope for i, slope in flow.slopes.items()}, None


def _sum(eqn: Any, inputs: list[Flow], sign: float) -> Mapping[int, float]:
    first, second = inputs
    found = {}
    for i in first.sources | second.sources:
        parts = []
        for flow, factor, atom in ((first, 1.0, 0), (second, sign, 1)):
            if i not in flow.sources:
                continue
            # A part of another shape stands in several elements of the result.
            whole = eqn.invars[atom].aval.shape == eqn.outvars[0].aval.shape
            parts.append(factor * flow.slopes[i] if whole and i in flow.slopes else None)
        slopes = [part for part in parts if part is not None]
        if len(slopes) == len(parts):
            found[i] = sum(slopes)
    return found


def _constant(value: Any) -> Flow:
    """The flow of a constant; its number is known if all elements are the same."""
    try:
        value = np.asarray(value)
        if value.size and jnp.issubdtype(value.dtype, jnp.number):
            first = value.flat[0]
            if value.size == 1 or (value.size < 1024 and (value == first).all()):
                return Flow(constant=float(first))
    except Exception:  # a key, a traced array
        return Flow()
    return Flow()
