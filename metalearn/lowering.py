"""Rewrite convolutions as matrix products before anything differentiates them.

In meta-learning every task owns its adapted kernels.  ``vmap`` over such kernels
turns a convolution into one with ``feature_group_count = tasks``, whose gradients,
and their gradients, fall on slow generic paths of the compiler: measured on a CPU, a
factor of twenty.  A matrix product has no such trap, for batching it gives a batched
matrix product and differentiating it gives matrix products again.

``lower(fun)`` therefore traces ``fun`` to a jaxpr and exchanges single equations in
it: a convolution becomes shifted slices and one matrix product (im2col, channels
last), max-pooling over disjoint windows becomes element-wise selections.  The model
is the user's own, unchanged; every other equation stays as JAX traced it.
"""

import functools
import itertools
import math

import jax
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

# Every kernel tap is one slice in the program and one copy of the images in memory;
# the limit is chosen to bound both, not tuned.
_MAX_TAPS = 128


def lower(fun):
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
    Returns:
      Function with the signature of ``fun`` and outputs of the same structure,
      shapes and dtypes.
    Example:
      >>> apply = lower(model.apply)
      >>> logits = jax.vmap(apply)(variables_per_task, images)  # [T, N, W]

    Reference: K. Chellapilla, S. Puri, P. Simard (2006), High Performance
    Convolutional Neural Networks for Document Processing.
    """

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
        lowered = _rewrite(closed.jaxpr, _RULES)
        if lowered is closed.jaxpr:
            return fun(*args, **kwargs)
        outputs = core.jaxpr_as_fun(closed.replace(jaxpr=lowered))(*arrays)
        return jax.tree.unflatten(jax.tree.structure(out_shape), outputs)

    return wrapped


# -- Jaxpr to jaxpr -----------------------------------------------------------------

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
    (call,) = jax.make_jaxpr(replacement)(*(v.aval for v in eqn.invars)).jaxpr.eqns
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


# -- Convolution --------------------------------------------------------------------


def _convolution_rule(eqn):
    params = dict(eqn.params)
    lhs, rhs = (v.aval for v in eqn.invars)
    (out,) = (v.aval for v in eqn.outvars)
    kernel = [rhs.shape[d] for d in params["dimension_numbers"].rhs_spec[2:]]
    spatial = [out.shape[d] for d in params["dimension_numbers"].out_spec[2:]]
    if (
        params.pop("batch_group_count") != 1
        or params.pop("out_sharding", None) is not None
        or 0 in (*lhs.shape, *rhs.shape, *out.shape)
        or (
            math.prod(kernel) > _MAX_TAPS
            and not _disjoint(
                kernel, spatial, params["window_strides"], params["rhs_dilation"]
            )
        )
    ):
        return None
    return functools.partial(_convolution, **params)


def _disjoint(window, positions, strides, dilation):
    """Whether windows tile the images, so that a reshape can cut them out."""
    axes = zip(window, positions, strides, dilation, strict=True)
    return all((p == 1 or w == s) and (w == 1 or d == 1) for w, p, s, d in axes)


@functools.partial(
    jax.jit,
    static_argnames=(
        "window_strides",
        "padding",
        "lhs_dilation",
        "rhs_dilation",
        "dimension_numbers",
        "feature_group_count",
        "precision",
        "preferred_element_type",
    ),
)
def _convolution(
    lhs,
    rhs,
    *,
    window_strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dimension_numbers,
    feature_group_count,
    precision,
    preferred_element_type,
):
    """``lax.conv_general_dilated`` as one matrix product.

    Args:
      lhs: Images, laid out as ``dimension_numbers.lhs_spec`` says.
      rhs: Kernels, laid out as ``dimension_numbers.rhs_spec`` says.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
        feature_group_count, precision, preferred_element_type: Parameters of the
        primitive ``conv_general_dilated``.
    Returns:
      The convolution, laid out as ``dimension_numbers.out_spec`` says.
    """
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    images = lax.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
    kernels = lax.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))
    pads = [(lo, hi, d - 1) for (lo, hi), d in zip(padding, lhs_dilation, strict=True)]
    if any(pad != (0, 0, 0) for pad in pads):
        zero = np.zeros((), images.dtype)
        images = lax.pad(images, zero, [(0, 0, 0), *pads, (0, 0, 0)])

    def product(images, kernels):
        *window, _, num_outputs = kernels.shape
        patches = _patches(images, window, window_strides, rhs_dilation)
        # Two axes and not more: the product and its transposes then need no
        # change of layout, which is worth a tenth of a training step.
        out = lax.dot_general(
            patches.reshape(-1, patches.shape[-1]),
            kernels.reshape(-1, num_outputs),
            (((1,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
        return out.reshape(*patches.shape[:-1], num_outputs)

    if feature_group_count == 1:
        out = product(images, kernels)
    else:
        images = images.reshape(*images.shape[:-1], feature_group_count, -1)
        kernels = kernels.reshape(*kernels.shape[:-1], feature_group_count, -1)
        out = jax.vmap(product, in_axes=-2, out_axes=-2)(images, kernels)
        out = out.reshape(*out.shape[:-2], -1)
    channels_last = (out_spec[0], *out_spec[2:], out_spec[1])
    return lax.transpose(out, np.argsort(channels_last))


def _patches(images, window, strides, dilation):
    """Collects the inputs of each output position, taps before channels.

    Args:
      images: Padded images, `[N, *spatial, D]`.
      window: Spatial shape of the kernel.
      strides: Steps between windows.
      dilation: Steps between the taps of a window.
    Returns:
      `[N, *positions, prod(window) * D]`.
    """
    num, *spatial, channels = images.shape
    extent = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    positions = [(n - e) // s + 1 for n, e, s in zip(spatial, extent, strides, strict=True)]
    if _disjoint(window, positions, strides, dilation):
        # Each input is read at most once: reordering needs no slice per tap.
        limit = [p * k for p, k in zip(positions, window, strict=True)]
        images = lax.slice(images, [0] * images.ndim, [num, *limit, channels])
        split = itertools.chain.from_iterable(zip(positions, window, strict=True))
        images = images.reshape(num, *split, channels)
        outer, inner = range(1, images.ndim - 1, 2), range(2, images.ndim - 1, 2)
        images = lax.transpose(images, (0, *outer, *inner, images.ndim - 1))
        return images.reshape(num, *positions, -1)
    reach = [(p - 1) * s + 1 for p, s in zip(positions, strides, strict=True)]
    taps = []
    for tap in itertools.product(*map(range, window)):
        start = [t * d for t, d in zip(tap, dilation, strict=True)]
        limit = [i + r for i, r in zip(start, reach, strict=True)]
        taps.append(
            lax.slice(images, [0, *start, 0], [num, *limit, channels], [1, *strides, 1])
        )
    return lax.concatenate(taps, dimension=images.ndim - 1)


# -- Max-pooling --------------------------------------------------------------------


def _max_pool_rule(eqn):
    window, strides = eqn.params["window_dimensions"], eqn.params["window_strides"]
    (images,), (out,) = eqn.invars, eqn.outvars
    if (
        window != strides
        or any(pad != (0, 0) for pad in eqn.params["padding"])
        or any(d != 1 for d in eqn.params["base_dilation"])
        or any(d != 1 for d in eqn.params["window_dilation"])
        or not 1 < math.prod(window) <= _MAX_TAPS
        or 0 in (*images.aval.shape, *out.aval.shape)
    ):
        return None
    return functools.partial(_max_pool, window=window)


@functools.partial(jax.jit, static_argnames="window")
def _max_pool(images, *, window):
    """Maximum over disjoint windows; trailing rows that fill no window are left out.

    Args:
      images: Array of any rank.
      window: Window size along each axis of `images`.
    Returns:
      Array of shape `images.shape[i] // window[i]`.
    """

    def first_maximum(left, right):
        # `lax.max` would halve the gradient of a tie, select-and-scatter gives all
        # of it to the first.  The second condition keeps NaN, as `lax.max` does.
        return lax.select((left >= right) | (left != left), left, right)

    # Axis by axis from the last: the winner of a tie is still the first maximum in
    # row-major order of the window, with fewer slices than one per window element.
    for axis in reversed(range(images.ndim)):
        size = window[axis]
        limit = images.shape[axis] // size * size
        slices = (
            lax.slice_in_dim(images, start, limit, size, axis) for start in range(size)
        )
        images = functools.reduce(first_maximum, slices)
    return images


_RULES = {
    primitives.conv_general_dilated_p: _convolution_rule,
    primitives.reduce_window_max_p: _max_pool_rule,
}
