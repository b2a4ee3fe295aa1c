"""Ways to differentiate through an inner loop: what is stored and what is recomputed.

| choice | stored for each step | second-order products |
|---|---|---|
| `"reverse"` | everything its backward pass reads | reverse over reverse |
| `"remat"` | the carry of the loop | reverse over reverse |
| `"nested"` | the carry of the loop, for about `2 sqrt(S)` steps | reverse over reverse |
| `"mixed"` | the carry of the loop and the inner gradient | forward over reverse |
| `"first_order"` | nothing | none |
| `Implicit()` | nothing; one linear solve at the end | forward over reverse |

All but the last two give the same derivative. `"mixed"` relies on the symmetry of the
Hessian of the inner loss. Reverse mode multiplies by the transposed Hessian, for which it
runs back through a backward pass and all its stored values. By symmetry the same product is
the forward derivative of the gradient (D. Kemaev et al. Scalable Meta-Learning via
Mixed-Mode Differentiation. ICML 2025).
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

from metalearn.core import checks, loops
from metalearn.core.types import Array, PyTree
from metalearn.inner.conjugate import conjugate_gradients
from metalearn.inner.hoist import explicit

Differentiation = Literal["reverse", "remat", "nested", "mixed", "first_order"]
DIFFERENTIATION: tuple[str, ...] = get_args(Differentiation)
INNER_GRADS = "metalearn.inner_grads"


@dataclasses.dataclass(frozen=True)
class Implicit:
    """Differentiates the minimum that the inner loop approaches instead of its path.

    Let `phi` be the last parameters, `H` the Hessian of the loss at `phi`, and `c` a
    hyper-parameter of the loss. By the implicit function theorem the derivative of `phi`
    with respect to `c` is `-(H + damping I)^-1 d2L/dphi dc`. The optimiser and the start
    have no derivative, unless the loss itself depends on them. So the initialisation is
    learned only if the loss has a proximal term such as `lam |phi - theta|^2 / 2`, as in
    A. Rajeswaran, C. Finn, S. Kakade, S. Levine, Meta-Learning with Implicit Gradients,
    NeurIPS 2019. A proximal term also makes the Hessian positive, which conjugate
    gradients need.

    Where they meet a direction without positive curvature, `phi` is no minimum, and the
    solve ends with what it has. Let v be the derivative of what follows in `phi`. If the
    first direction, v itself, is such a one, the solve takes `v |v| / |(H + damping I) v|`.
    That is no longer than the exact solution. Through a proximal term it gives a positive
    multiple of the derivative v of first-order MAML. It is not finite, and stops `fit`,
    where the product is zero. A derivative cannot report which happened; `ml.imaml` has the
    metric `solve/negative_curvature`. More damping, a stiffer proximal term or more inner
    steps help.

    Attributes:
      cg_steps: Number of conjugate-gradient steps of the solve, 1 or more.
      damping: Number added to the diagonal of the Hessian, 0 or more.
    """

    cg_steps: int = 5
    damping: float = 0.0


def check(choice: Differentiation | Implicit) -> None:
    """Raises a `ValueError` unless `choice` is one of the choices."""
    if isinstance(choice, Implicit):
        checks.whole_number("cg_steps", choice.cg_steps, least=1)
        checks.number("damping", choice.damping)
    elif choice not in DIFFERENTIATION:
        raise ValueError(
            f"differentiation is {choice!r}; expected one of "
            f"{', '.join(DIFFERENTIATION)}, or inner.Implicit(cg_steps=5)."
        )


def is_second_order(choice: Differentiation | Implicit) -> bool:
    """Whether the choice differentiates the updates of the inner optimiser."""
    return choice in ("reverse", "remat", "nested", "mixed")


LossAndAux = Callable[[PyTree, Array], tuple[Array, PyTree]]


def value_and_grad(loss_fn: LossAndAux, choice: Differentiation | Implicit) -> Callable:
    """Function `(params, step) -> ((loss, aux), grads)` with the derivative of `choice`."""
    if choice == "mixed":
        return _forward_over_reverse(loss_fn)
    if isinstance(choice, Implicit):

        def still(params: PyTree, step: Array):
            closed, real, others = explicit(loss_fn, params, step)
            # `at_minimum` gives the result its derivative, so the steps need none. With
            # constants in place of the captured arrays nothing of a step is stored for a
            # backward pass.
            loss = functools.partial(closed, jax.lax.stop_gradient(real), others)
            return jax.value_and_grad(loss, has_aux=True)(params, step)

        return still
    plain = jax.value_and_grad(loss_fn, has_aux=True)
    if choice != "first_order":
        return plain

    def first_order(params: PyTree, step: Array):
        # With stopped params no second derivative with respect to them is traced through
        # the inner backward pass.
        value, grads = plain(jax.lax.stop_gradient(params), step)
        # Only the gradients: stopping the params themselves would cut the path from the
        # result back to the initialisation and zero the meta-gradient.
        return value, jax.lax.stop_gradient(grads)

    return first_order


def _forward_over_reverse(loss_fn: LossAndAux) -> Callable:
    """`value_and_grad` whose own reverse derivative is a forward derivative.

    Let `c` be the arrays that the loss closes over, and `g(params, c)` the gradient of the
    loss in both arguments. A cotangent `v` of the gradient in `params` has to be pulled
    back to `params` and `c`. By the symmetry of second derivatives the result is the
    derivative of `g` along `v` in `params`, which takes one forward pass over one backward
    pass.
    """

    def run(params: PyTree, step: Array):
        closed, real, others = explicit(loss_fn, params, step)

        # A rule of `custom_vjp` may not close over traced arrays, so they are arguments.
        def loss(params: PyTree, real: list, others: list, step: Array):
            return closed(real, others, params, step)

        @jax.custom_vjp
        # Automatic reverse mode would run back through the backward pass that is inside
        # `value_and_grad`, and store all of it. The rule below needs the arguments only.
        def call(*args: PyTree):
            return jax.value_and_grad(loss, has_aux=True)(*args)

        def forward(*args: Any):
            # With `symbolic_zeros` JAX hands over pairs of a value and whether it is
            # perturbed.
            values = jax.tree.map(lambda a: a.value, args)
            return call(*values), values

        def backward(kept: tuple, cotangents: tuple):
            params, real, *rest = kept
            (ct_loss, ct_aux), ct_grads = cotangents

            def both(params: PyTree):
                return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, real, *rest)[0]

            # One pass gives the gradient and its derivative along the cotangent.
            grads, along = jax.jvp(both, (params,), (_filled(ct_grads, params),))
            # Symbolic zeros: nothing uses the value of the inner loss, or `aux`. The passes
            # for those two are then left out.
            if not isinstance(ct_loss, SymbolicZero):
                along = jax.tree.map(lambda a, g: a + ct_loss * g, along, grads)
            if not all(isinstance(c, SymbolicZero) for c in _cotangents(ct_aux)):
                aux, pull = jax.vjp(lambda p, c: loss(p, c, *rest)[1], params, real)
                along = jax.tree.map(jnp.add, along, pull(_filled(ct_aux, aux)))
            # Integers, keys and the number of the step have no derivative.
            return (*along, *jax.tree.map(lambda _: None, rest))

        call.defvjp(forward, backward, symbolic_zeros=True)
        value, grads = call(params, real, others, step)
        return value, checkpoint_name(grads, INNER_GRADS)

    return run


def _cotangents(tree: PyTree) -> list:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))


def _filled(cotangents: PyTree, like: PyTree) -> PyTree:
    """Cotangents with arrays of zeros in place of symbolic zeros; float0 for integers."""

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
    """Scan of `update(carry, step)` over `0..S-1` that stores as much as `choice` says."""
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
        return loops.scan(update, carry, steps)

    # Segments of about sqrt(S) steps: the carry is stored once a segment, and again for the
    # steps of the one segment that the backward pass is in.
    length = max(1, round(num_steps**0.5))
    whole = num_steps // length * length

    def segment(carry: PyTree, steps: Array):
        return loops.scan(update, carry, steps)

    segment = jax.checkpoint(segment, prevent_cse=False)
    carry, outs = loops.scan(segment, carry, steps[:whole].reshape(-1, length))
    outs = jax.tree.map(lambda leaf: leaf.reshape((whole, *leaf.shape[2:])), outs)
    if whole < num_steps:
        carry, rest = loops.scan(update, carry, steps[whole:])
        outs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), outs, rest)
    return carry, outs


def at_minimum(loss_fn: LossAndAux, params: PyTree, how: Implicit) -> PyTree:
    """The given parameters, with the derivative that a minimum of the loss has.

    Args:
      loss_fn: Loss of the last step.
      params: Parameters at the end of the inner loop. The derivative that `params` have as
        the end of the loop is not used.
      how: Settings of the solve.
    """
    # The path that ends here is not differentiated; derivatives pass through `real` alone.
    params = jax.lax.stop_gradient(params)
    grad, real, others = explicit(jax.grad(lambda p: loss_fn(p)[0]), params)

    @jax.custom_vjp
    # The identity, but for its derivative: the rule solves the linear system of the
    # implicit function theorem. Automatic differentiation would give the derivative 1.
    def minimum(params: PyTree, real: list, others: list) -> PyTree:
        return params

    def backward(kept: tuple, cotangent: PyTree):
        params, real, others = kept

        def slope(params: PyTree, real: list) -> PyTree:
            return grad(real, others, params)

        def product(v: PyTree) -> PyTree:
            curved = jax.jvp(lambda p: slope(p, real), (params,), (v,))[1]
            return jax.tree.map(lambda h, x: h + how.damping * x, curved, v)

        solved = conjugate_gradients(
            product, cotangent, max_steps=how.cg_steps, fallback="shortest"
        ).x
        _, pull = jax.vjp(lambda c: slope(params, c), real)
        return (
            # A minimum does not depend on the point from which it was found.
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
