"""Moves the constant work of an inner loop in front of the loop.

If only some of the parameters adapt (ANIL), the network up to the first adapted parameter
gives the same values in every step. A `scan` would compute and differentiate this part of
the network again in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from metalearn.core.types import PyTree


def hoist(fn: Callable[..., PyTree], *varying: PyTree) -> Callable[..., PyTree]:
    """Evaluates at once the part of `fn` that does not depend on the arguments.

    Args:
      fn: Any traceable function; the arrays that `fn` closes over are the constants.
      *varying: Arguments of the shapes that later calls will have.

    Returns:
      A function with the values of `fn` that computes only the part that depends on the
      arguments. Derivatives with respect to the constants pass through the hoisted work.

    Example:
      >>> loss = hoist(loss, head, step)  # the features are now computed
    """
    closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(*varying)
    jaxpr = closed.jaxpr
    depends = set(jaxpr.invars)
    now, later = [], []
    for eqn in jaxpr.eqns:
        # An effect, such as a print, belongs to every step and stays in the loop.
        if eqn.effects or any(_is_var(v) and v in depends for v in eqn.invars):
            depends.update(eqn.outvars)
            later.append(eqn)
        else:
            now.append(eqn)
    if not now:
        return fn

    read = [v for eqn in later for v in eqn.invars] + list(jaxpr.outvars)
    # In a fixed order and each once; a set would differ from process to process.
    kept = list(dict.fromkeys(v for v in read if _is_var(v) and v not in depends))
    info = jaxpr.debug_info.with_unknown_names()
    first = jaxpr.replace(invars=[], eqns=now, outvars=kept, debug_info=info)
    second = jaxpr.replace(
        constvars=[], invars=[*kept, *jaxpr.invars], eqns=later, debug_info=info
    )
    # Evaluated in the trace of the caller, so derivatives reach what `fn` closes over.
    values = core.jaxpr_as_fun(core.ClosedJaxpr(first, closed.consts))()
    finish = core.jaxpr_as_fun(core.ClosedJaxpr(second, ()))

    def rest(*varying: PyTree) -> PyTree:
        outputs = finish(*values, *jax.tree.leaves(varying))
        return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

    return rest


def explicit(fn: Callable[..., PyTree], *like: PyTree) -> tuple[Callable, list, list]:
    """Turns the arrays that a function closes over into arguments.

    Args:
      fn: Any traceable function.
      *like: Arguments of the shapes that later calls will have.

    Returns:
      A function `call(real, others, *args)` with the values of `fn(*args)`, then the list
      `real` of captured arrays that have derivatives, then the list `others` of captured
      integers and keys. Rules of `jax.custom_vjp` may not close over traced arrays of
      either kind.
    """
    closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(*like)
    jaxpr = closed.jaxpr
    is_real = [jnp.issubdtype(c.dtype, jnp.inexact) for c in closed.consts]
    constvars = _where(jaxpr.constvars, is_real, True)
    constvars += _where(jaxpr.constvars, is_real, False)
    info = jaxpr.debug_info.with_unknown_names()
    opened = jaxpr.replace(
        constvars=[], invars=[*constvars, *jaxpr.invars], debug_info=info
    )
    run = core.jaxpr_as_fun(core.ClosedJaxpr(opened, ()))

    def call(real: list, others: list, *args: PyTree) -> PyTree:
        outputs = run(*real, *others, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

    consts = closed.consts
    return call, _where(consts, is_real, True), _where(consts, is_real, False)


def _where(items: list, flags: list[bool], wanted: bool) -> list:
    return [x for x, flag in zip(items, flags, strict=True) if flag == wanted]


def _is_var(atom: Any) -> bool:
    return not isinstance(atom, core.Literal)
