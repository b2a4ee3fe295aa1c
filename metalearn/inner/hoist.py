"""Work of the inner loop that no inner step changes is done once, before the loop.

When only a part of the parameters adapts (ANIL), everything up to the first adapted
parameter is the same in every step. Inside a `scan` it would be computed, and
differentiated, again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from metalearn.core.types import PyTree


def hoist(fn: Callable[..., PyTree], *varying: PyTree) -> Callable[..., PyTree]:
    """Evaluates now what in `fn` does not depend on its arguments.

    Args:
      fn: Any traceable function; arrays it closes over are what is constant.
      *varying: Arguments of the shapes it will be called with.

    Returns:
      A function with the values of `fn` that computes only the rest. Derivatives with
      respect to what `fn` closes over pass through the work done here.

    Example:
      >>> loss = hoist(loss, head, step)  # the features are now computed
    """
    closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(*varying)
    jaxpr = closed.jaxpr
    depends = set(jaxpr.invars)
    now, later = [], []
    for eqn in jaxpr.eqns:
        if eqn.effects or any(_is_var(v) and v in depends for v in eqn.invars):
            depends.update(eqn.outvars)
            later.append(eqn)
        else:
            now.append(eqn)
    if not now:
        return fn

    read = [v for eqn in later for v in eqn.invars] + list(jaxpr.outvars)
    kept = list(dict.fromkeys(v for v in read if _is_var(v) and v not in depends))
    info = jaxpr.debug_info.with_unknown_names()
    first = jaxpr.replace(invars=[], eqns=now, outvars=kept, debug_info=info)
    second = jaxpr.replace(
        constvars=[], invars=[*kept, *jaxpr.invars], eqns=later, debug_info=info
    )
    values = core.jaxpr_as_fun(core.ClosedJaxpr(first, closed.consts))()
    finish = core.jaxpr_as_fun(core.ClosedJaxpr(second, ()))

    def rest(*varying: PyTree) -> PyTree:
        outputs = finish(*values, *jax.tree.leaves(varying))
        return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

    return rest


def explicit(fn: Callable[..., PyTree], *like: PyTree) -> tuple[Callable, list, list]:
    """Makes arguments of what a function closes over.

    Args:
      fn: Any traceable function.
      *like: Arguments of the shapes it will be called with.

    Returns:
      `call(real, others, *args)` with the values of `fn(*args)`, and the captured arrays:
      those that have derivatives, and integers and keys. Rules of `jax.custom_vjp` may
      close over neither when they are traced.
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
