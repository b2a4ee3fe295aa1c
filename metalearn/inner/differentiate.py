"""How a derivative is taken through an inner loop: what is stored, what is recomputed.

| choice | stores a step | second-order products |
|---|---|---|
| `"reverse"` | everything its backward pass reads | reverse over reverse |
| `"remat"` | what the loop carries | reverse over reverse |
| `"nested"` | what the loop carries, for about `2 sqrt(S)` steps | reverse over reverse |
| `"mixed"` | what the loop carries and the inner gradient | forward over reverse |
| `"first_order"` | nothing | none |
| `Implicit()` | nothing; one linear solve at the end | forward over reverse |

All but the last two give the same derivative. `"mixed"` uses that the Hessian of the inner
loss is symmetric: its transposed product, which reverse mode would get by running back
through a backward pass and all it stored, is the forward derivative of the gradient
(D. Kemaev et al. Scalable Meta-Learning via Mixed-Mode Differentiation. ICML 2025).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from metalearn.core.types import Array, PyTree
from metalearn.inner.conjugate import conjugate_gradients
from metalearn.inner.hoist import explicit

Differentiation = Literal["reverse", "remat", "nested", "mixed", "first_order"]
DIFFERENTIATION: tuple[str, ...] = get_args(Differentiation)
INNER_GRADS = "metalearn.inner_grads"


@dataclasses.dataclass(frozen=True)
class Implicit:
    """Differentiates the minimum that the inner loop approaches instead of its path.

    By the implicit function theorem at the last parameters `phi`, with the Hessian `H` of
    the loss there: the derivative of `phi` along a hyper-parameter `c` of the loss is
    `-(H + damping I)^-1 d2L/dphi dc`. The optimiser and the start do not matter, other
    than through the loss: the initialisation is learned only if the loss has a proximal
    term such as `lam |phi - theta|^2 / 2`, as in A. Rajeswaran, C. Finn, S. Kakade,
    S. Levine, Meta-Learning with Implicit Gradients, NeurIPS 2019. That term also makes
    the Hessian positive, which conjugate gradients need.

    Attributes:
      cg_steps: Conjugate-gradient steps of the solve.
      damping: Added to the diagonal of the Hessian.
    """

    cg_steps: int = 5
    damping: float = 0.0


def check(choice: Differentiation | Implicit) -> None:
    """Raises a `ValueError` unless one of the choices."""
    if isinstance(choice, Implicit):
        if choice.cg_steps < 1 or choice.damping < 0:
            raise ValueError(f"{choice}; expected cg_steps >= 1 and damping >= 0.")
    elif choice not in DIFFERENTIATION:
        raise ValueError(
            f"differentiation is {choice!r}; expected one of "
            f"{', '.join(DIFFERENTIATION)}, or inner.Implicit(cg_steps=5)."
        )


def is_second_order(choice: Differentiation | Implicit) -> bool:
    """Whether derivatives of the inner optimiser's update are taken."""
    return choice in ("reverse", "remat", "nested", "mixed")


LossAndAux = Callable[[PyTree, Array], tuple[Array, PyTree]]


def value_and_grad(loss_fn: LossAndAux, choice: Differentiation | Implicit) -> Callable:
    """`(params, step) -> ((loss, aux), grads)` with the derivative that is asked for."""
    if choice == "mixed":
        return _forward_over_reverse(loss_fn)
    if isinstance(choice, Implicit):

        def still(params: PyTree, step: Array):
            closed, real, others = explicit(loss_fn, params, step)
            loss = functools.partial(closed, jax.lax.stop_gradient(real), others)
            return jax.value_and_grad(loss, has_aux=True)(params, step)

        return still
    plain = jax.value_and_grad(loss_fn, has_aux=True)
    if choice != "first_order":
        return plain

    def first_order(params: PyTree, step: Array):
        value, grads = plain(jax.lax.stop_gradient(params), step)
        # Only the gradients: stopping the params themselves would cut the path from the
        # result back to the initialisation and zero the meta-gradient.
        return value, jax.lax.stop_gradient(grads)

    return first_order


def _forward_over_reverse(loss_fn: LossAndAux) -> Callable:
    """`value_and_grad` whose own reverse derivative is a forward derivative.

    With `g(params, c)` the gradient of the loss in both its arguments, `c` being what it
    closes over: the cotangent `v` of the first part of `g` comes back as the derivative of
    all of `g` along `v`, one forward pass over one backward pass.
    """

    def run(params: PyTree, step: Array):
        closed, real, others = explicit(loss_fn, params, step)

        def loss(params: PyTree, real: list, others: list, step: Array):
            return closed(real, others, params, step)

        @jax.custom_vjp
        def call(*args: PyTree):
            return jax.value_and_grad(loss, has_aux=True)(*args)

        def forward(*args: Any):
            values = jax.tree.map(lambda a: a.value, args)
            return call(*values), values

        def backward(kept: tuple, cotangents: tuple):
            params, real, *rest = kept
            (ct_loss, ct_aux), ct_grads = cotangents

            def both(params: PyTree):
                return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, real, *rest)[0]

            grads, along = jax.jvp(both, (params,), (_filled(ct_grads, params),))
            if not isinstance(ct_loss, SymbolicZero):
                along = jax.tree.map(lambda a, g: a + ct_loss * g, along, grads)
            if not all(isinstance(c, SymbolicZero) for c in _cotangents(ct_aux)):
                aux, pull = jax.vjp(lambda p, c: loss(p, c, *rest)[1], params, real)
                along = jax.tree.map(jnp.add, along, pull(_filled(ct_aux, aux)))
            return (*along, *jax.tree.map(lambda _: None, rest))

        call.defvjp(forward, backward, symbolic_zeros=True)
        value, grads = call(params, real, others, step)
        return value, checkpoint_name(grads, INNER_GRADS)

    return run


def _cotangents(tree: PyTree) -> list:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))


def _filled(cotangents: PyTree, like: PyTree) -> PyTree:
    """Cotangents with zeros in place of symbolic ones, and none for integers."""

    def one(cotangent: Any, leaf: Any) -> Any:
        if not isinstance(cotangent, SymbolicZero):
            return cotangent
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros(leaf.shape, jax.dtypes.float0)
        return jnp.zeros(leaf.shape, leaf.dtype)

    treedef = jax.tree.structure(like)
    leaves = zip(_cotangents(cotangents), jax.tree.leaves(like), strict=True)
    return jax.tree.unflatten(treedef, [one(c, leaf) for c, leaf in leaves])


def scan(
    update: Callable, carry: PyTree, num_steps: int, choice: Differentiation | Implicit
) -> tuple:
    """`lax.scan` of `update(carry, step)` over `0..S-1`, storing what the choice says."""
    steps = jnp.arange(num_steps, dtype=jnp.int32)
    policy = None
    if choice == "mixed":
        policy = jax.checkpoint_policies.save_only_these_names(INNER_GRADS)
    if choice in ("remat", "nested", "mixed"):
        # Inside a scan the compiler cannot merge the two computations anyway.
        update = jax.checkpoint(update, prevent_cse=num_steps == 1, policy=policy)
    if num_steps == 1:  # a loop of one step would only hide it from the compiler
        carry, outs = update(carry, steps[0])
        return carry, jax.tree.map(lambda leaf: leaf[None], outs)
    if choice != "nested":
        return jax.lax.scan(update, carry, steps)

    length = max(1, round(num_steps**0.5))
    whole = num_steps // length * length

    def segment(carry: PyTree, steps: Array):
        return jax.lax.scan(update, carry, steps)

    segment = jax.checkpoint(segment, prevent_cse=False)
    carry, outs = jax.lax.scan(segment, carry, steps[:whole].reshape(-1, length))
    outs = jax.tree.map(lambda leaf: leaf.reshape((whole, *leaf.shape[2:])), outs)
    if whole < num_steps:
        carry, rest = jax.lax.scan(update, carry, steps[whole:])
        outs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outs, rest)
    return carry, outs


def at_minimum(loss_fn: LossAndAux, params: PyTree, how: Implicit) -> PyTree:
    """The same parameters, with the derivative of a minimum of the loss.

    Args:
      loss_fn: Of the last step.
      params: Where the inner loop ended; their own derivative is not used.
      how: The solve.
    """
    params = jax.lax.stop_gradient(params)
    grad, real, others = explicit(jax.grad(lambda p: loss_fn(p)[0]), params)

    @jax.custom_vjp
    def minimum(params: PyTree, real: list, others: list) -> PyTree:
        return params

    def backward(kept: tuple, cotangent: PyTree):
        params, real, others = kept

        def slope(params: PyTree, real: list) -> PyTree:
            return grad(real, others, params)

        def product(v: PyTree) -> PyTree:
            curved = jax.jvp(lambda p: slope(p, real), (params,), (v,))[1]
            return jax.tree.map(lambda h, x: h + how.damping * x, curved, v)

        solved = conjugate_gradients(product, cotangent, max_steps=how.cg_steps).x
        _, pull = jax.vjp(lambda c: slope(params, c), real)
        return (
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(jnp.negative, pull(solved)[0]),
            [None] * len(others),
        )

    minimum.defvjp(lambda *args: (args[0], args), backward)
    return minimum(params, real, others)


def refuse_implicit(name: str, differentiation: Differentiation | Implicit) -> None:
    """Raises a `ValueError` for `Implicit`, which needs a proximal term to learn."""
    if isinstance(differentiation, Implicit):
        raise ValueError(
            f"{name} cannot learn through the minimum of its support loss, which does not "
            "depend on the initialisation: the meta-gradient would be zero. Give unroll a "
            "loss with a proximal term and differentiation=Implicit() there."
        )
