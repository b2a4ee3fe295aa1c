"""Rewrite convolutions as matrix products before anything differentiates them.

In meta-learning every task owns its adapted kernels.  ``vmap`` over such kernels
turns a convolution into one with ``feature_group_count = tasks``, whose gradients,
and their gradients, fall on slow generic paths of the compiler: measured on a CPU, a
factor of twenty.  A matrix product has no such trap, for batching it gives a batched
matrix product and differentiating it gives matrix products again.

``lower(fun)`` therefore traces ``fun`` to a jaxpr and exchanges single equations in
it: a convolution becomes shifted slices and one matrix product (im2col, channels
last) or, where that pays, sixteen smaller ones (`winograd.py`), max-pooling over
disjoint windows becomes element-wise selections.  The model is the user's own,
unchanged; every other equation stays as JAX traced it.
"""

import functools
import itertools

import jax
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from metalearn.lowering.convolution import convolution_rule
from metalearn.lowering.pooling import max_pool_rule

_POOLING = {primitives.reduce_window_max_p: max_pool_rule}
_RULES = _POOLING | {primitives.conv_general_dilated_p: convolution_rule}


def lower(fun, *, convolutions=True):
    """Exchanges the operations of a model that are slow under per-task weights.

    Convolutions become matrix products and max-pooling over disjoint windows becomes
    element-wise selections.  Both keep their values and derivatives, up to rounding;
    the gradient of a pooling tie goes to the first maximum of the window, as in lax.

    The exchange happens where ``fun`` is called, hence ``grad``, ``vmap``, ``jit``,
    ``scan`` and ``checkpoint`` are to be applied to the result and not before.
    Inside ``fun`` it reaches into ``jit``, ``checkpoint``, ``scan``, ``while_loop``
    and ``cond``.  Rules of ``custom_jvp`` and ``custom_vjp`` are the author's word:
    what sits inside such a function stays as it is.  So do convolutions with
    ``batch_group_count > 1``, with an empty side, with an output sharding, and those
    with overlapping windows of more than 128 taps.

    Args:
      fun: Function of pytrees, for example ``model.apply`` of a flax module.  Arrays
        in its positional and keyword arguments are traced, all other leaves (Python
        numbers, strings, functions) pass through as they are.
      convolutions: Whether convolutions are exchanged, or pooling alone.
    Returns:
      Function with the signature of ``fun`` and outputs of the same structure,
      shapes and dtypes.
    Example:
      >>> apply = lower(model.apply)
      >>> logits = jax.vmap(apply)(variables_per_task, images)  # [T, N, W]

    Reference: K. Chellapilla, S. Puri, P. Simard (2006), High Performance
    Convolutional Neural Networks for Document Processing.
    """

    if not callable(fun):
        hint = " of a model: lower(model.apply)" if hasattr(fun, "apply") else ""
        raise TypeError(
            f"fun is a {type(fun).__name__}; expected a function of pytrees{hint}."
        )
    rules = _RULES if convolutions else _POOLING

    @functools.wraps(fun)
    def wrapped(*args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        is_array = [isinstance(x, jax.Array | np.ndarray | np.generic) for x in leaves]
        arrays = list(itertools.compress(leaves, is_array))

        # A new function each time: the trace cache of JAX must not freeze values
        # that `fun` reads from its surroundings.
        def flat_fun(*arrays):
            remaining = iter(arrays)
            merged = [
                next(remaining) if traced else leaf
                for leaf, traced in zip(leaves, is_array, strict=True)
            ]
            merged_args, merged_kwargs = jax.tree.unflatten(structure, merged)
            return fun(*merged_args, **merged_kwargs)

        closed, out_shape = jax.make_jaxpr(flat_fun, return_shape=True)(*arrays)
        lowered = closed.replace(jaxpr=_rewrite(closed.jaxpr, rules))
        # Also where nothing was exchanged: calling `fun` would run its Python again.
        outputs = core.jaxpr_as_fun(lowered)(*arrays)
        return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

    return wrapped


_RECURSE_INTO = frozenset(
    {
        primitives.jit_p,
        primitives.remat_p,
        primitives.scan_p,
        primitives.while_p,
        primitives.cond_p,
    }
)


def _rewrite(jaxpr, rules):
    """Applies `rules` to the equations of a jaxpr.

    Args:
      jaxpr: Open jaxpr.
      rules: Mapping from primitive to a function of an equation that returns a
        replacement (function of the inputs of the equation), or None to keep it.
    Returns:
      New jaxpr over the same variables; the very same object if no rule applied.
    """
    eqns = [_rewrite_equation(eqn, rules) for eqn in jaxpr.eqns]
    if all(new is old for new, old in zip(eqns, jaxpr.eqns, strict=True)):
        return jaxpr
    return jaxpr.replace(eqns=eqns)


def _rewrite_equation(eqn, rules):
    if eqn.primitive in _RECURSE_INTO:
        params = {k: _rewrite_param(v, rules) for k, v in eqn.params.items()}
        if all(params[k] is v for k, v in eqn.params.items()):
            return eqn
        return eqn.replace(params=params)
    rule = rules.get(eqn.primitive)
    replacement = None if rule is None else rule(eqn)
    if replacement is None:
        return eqn
    # The replacement is jitted, so its trace is one equation, which can stand where
    # the old one stood.  The compiler dissolves the call.
    with jax.disable_jit(False):
        (call,) = jax.make_jaxpr(replacement)(*(v.aval for v in eqn.invars)).jaxpr.eqns
    for new, old in zip(call.outvars, eqn.outvars, strict=True):
        assert (new.aval.shape, new.aval.dtype) == (old.aval.shape, old.aval.dtype), eqn
    return eqn.replace(primitive=call.primitive, params=call.params)


def _rewrite_param(value, rules):
    if isinstance(value, core.ClosedJaxpr):
        jaxpr = _rewrite(value.jaxpr, rules)
        return value if jaxpr is value.jaxpr else value.replace(jaxpr=jaxpr)
    if isinstance(value, core.Jaxpr):
        return _rewrite(value, rules)
    if type(value) is tuple:
        items = tuple(_rewrite_param(item, rules) for item in value)
        unchanged = all(new is old for new, old in zip(items, value, strict=True))
        return value if unchanged else items
    return value
