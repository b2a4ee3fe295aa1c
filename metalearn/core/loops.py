"""Loops whose programs go when they have run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from metalearn.core.types import PyTree


def repeat(body: Callable, carry: PyTree, num: Any) -> PyTree:
    """`num` times `carry -> body(carry)`, without derivatives; see `scan`.

    Args:
      body: Function `carry -> carry`.
      carry: Start.
      num: Number of times, which may be traced.
    """

    def run(carry: PyTree, num: Any) -> PyTree:
        return jax.lax.fori_loop(0, num, lambda _, now: body(now), carry)

    return _run(run, carry, num)


def scan(body: Callable, carry: PyTree, steps: PyTree, **options: Any) -> tuple:
    """`jax.lax.scan`, which leaves nothing behind where nothing is traced.

    By itself jax keeps the program of a loop that runs outside of `jit`, with all that the
    loop closes over, until 4,096 further loops have run. An inner loop is a new one for
    each task, so a notebook that calls `adapt` would grow by megabytes with every call. A
    compiled function, in contrast, is released with its body.

    Args:
      body: Function `(carry, step) -> (carry, out)`.
      carry: Start.
      steps: Leaves `[S, ...]`.
      **options: Further arguments of `jax.lax.scan`.
    """

    def run(carry: PyTree, steps: PyTree) -> tuple:
        return jax.lax.scan(body, carry, steps, **options)

    return _run(run, carry, steps)


def _run(run: Callable, *given: PyTree) -> Any:
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given))
    return run(*given) if traced else jax.jit(run)(*given)
