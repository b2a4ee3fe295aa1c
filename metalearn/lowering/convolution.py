"""Convolutions as matrix products."""

import functools
import itertools
import math

import jax
import numpy as np
from jax import lax

from metalearn.lowering import winograd
from metalearn.lowering.product import placed_by_type, product

# Every kernel tap is one slice in the program and one copy of the images in memory;
# the limit is chosen to bound both, not tuned.
MAX_TAPS = 128


def convolution_rule(eqn):
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
            math.prod(kernel) > MAX_TAPS
            and not _disjoint(
                kernel, spatial, params["window_strides"], params["rhs_dilation"]
            )
        )
    ):
        return None
    one_group = params["feature_group_count"] == 1
    # Its tiles are cut by reshapes that types with shardings do not pass.
    minimal = one_group and not placed_by_type(lhs, rhs)
    minimal = minimal and winograd.pays(
        sides=spatial,
        window=kernel,
        channels=[rhs.shape[d] for d in params["dimension_numbers"].rhs_spec[:2]],
        steps=[
            step
            for name in ("window_strides", "lhs_dilation", "rhs_dilation")
            for step in params[name]
        ],
        dtypes=(lhs.dtype, rhs.dtype, out.dtype),
    )
    return functools.partial(_convolution, minimal=minimal, **params)


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
        "minimal",
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
    minimal,
):
    """``lax.conv_general_dilated`` as one matrix product, or as sixteen smaller ones.

    Args:
      lhs: Images, laid out as ``dimension_numbers.lhs_spec`` says.
      rhs: Kernels, laid out as ``dimension_numbers.rhs_spec`` says.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
        feature_group_count, precision, preferred_element_type: Parameters of the
        primitive ``conv_general_dilated``.
      minimal: Whether by `winograd.convolution`.
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

    by_patches = functools.partial(
        _by_patches,
        strides=window_strides,
        dilation=rhs_dilation,
        precision=precision,
        dtype=preferred_element_type,
    )
    if feature_group_count > 1:
        images = images.reshape(*images.shape[:-1], feature_group_count, -1)
        kernels = kernels.reshape(*kernels.shape[:-1], feature_group_count, -1)
        out = jax.vmap(by_patches, in_axes=-2, out_axes=-2)(images, kernels)
        out = out.reshape(*out.shape[:-2], -1)
    elif minimal:
        out = winograd.convolution(images, kernels, precision=precision)
    else:
        out = by_patches(images, kernels)
    channels_last = (out_spec[0], *out_spec[2:], out_spec[1])
    return lax.transpose(out, np.argsort(channels_last))


def _by_patches(images, kernels, strides, dilation, precision, dtype):
    """One product of all patches `[N * positions, taps * D]` with the kernels."""
    *window, _, num_outputs = kernels.shape
    patches = _patches(images, window, strides, dilation)
    # Two axes and not more: the product and its derivatives then need no change of
    # layout, which is worth a tenth of a training step.
    out = product(
        patches.reshape(-1, patches.shape[-1]),
        kernels.reshape(-1, num_outputs),
        precision=precision,
        dtype=dtype,
    )
    return out.reshape(*patches.shape[:-1], num_outputs)


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
