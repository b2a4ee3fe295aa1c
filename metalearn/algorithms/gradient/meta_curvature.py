"""Meta-Curvature: a learned linear transformation of every inner gradient.

E. Park, J. Oliva. Meta-Curvature. NeurIPS 2019.
"""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax

from metalearn.algorithms.bilevel import Hooks, bilevel
from metalearn.algorithms.gradient.kronecker import check_axes, curved_sgd
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.types import Array, Key, LossFn, PyTree


@takes_options()
def meta_curvature(
    model: Model,
    loss_fn: LossFn,
    *,
    num_steps: int = 1,
    rate: float = 0.01,
    learn_rate: bool = False,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML whose inner gradients pass through learned matrices, one for each mode.

    `phi_{k+1} = phi_k - alpha MC(grad L(phi_k; support))` with
    `MC(G) = G x_3 M_f x_2 M_i x_1 M_o` for a convolution, G being `[out, in, taps]` in the
    paper; `MC(G) = M_o G M_i'` for a dense layer. The factors start at the identity, which
    is MAML, and are learned with the initialisation; nothing keeps them symmetric or
    positive.

    The paper says nothing of biases and normalisation layers, and no code was released
    that would: here every vector `[out]` has one matrix `[out, out]`. The paper's cheaper
    variant, MC1, is not offered.

    Args:
      model: The network, with kernels in the layout of flax: dense `[in, out]`,
        convolutions `[height, width, in, out]` (HWIO). A kernel in another layout, e.g.
        OIHW, would be transformed along the wrong axes without an error. Any matrix counts
        as `[in, out]`: an embedding table of V rows gets a factor `[V, V]`.
      loss_fn: Loss of one task.
      num_steps: K, inner steps; the paper uses 1 for regression and Omniglot, 5 for
        mini-ImageNet.
      rate: Inner rate alpha. As MAML's; losses are means, so rates printed for that code's
        classification are to be multiplied by the number of ways.
      learn_rate: Whether the rate is learned too. The factors can scale already, each
        layer by itself; a common rate moves them together.
      adapt_filter: `(path, leaf) -> bool`: parameters that adapt, which alone have
        factors; all when `None`.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` whose adapted object is a `metalearn.inner.Adapted`. Its params are
      `{"model": ..., "inner": {"factors": tree}}`, and `"rate"` beside the factors if
      learned. In the tree stands for every parameter that adapts
      `{"taps": [t, t], "inputs": [i, i], "outputs": [o, o]}` with `t = height * width`,
      without taps for a dense kernel, with outputs only for a vector.

    Raises:
      ValueError: `rate` is not a finite number; in `init`: a parameter has three axes,
        or more than four, so that its modes are unclear.

    Example:
      >>> learner = ml.meta_curvature(model, ml.losses.cross_entropy, rate=0.4)
    """
    checks.number("rate", rate, signed=True)

    def initial(key: Key, params: PyTree) -> PyTree:
        del key
        factors = jax.tree_util.tree_map_with_path(_identities, params)
        return {"factors": factors} | ({"rate": float(rate)} if learn_rate else {})

    def inner_opt(hparams: PyTree) -> optax.GradientTransformation:
        return curved_sgd(hparams["factors"], hparams.get("rate", rate))

    settings = {"rate": float(rate), "learn_rate": bool(learn_rate)}
    return bilevel(
        "meta_curvature",
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(inner_hparams=initial, settings=settings),
        **options,
    )


def _identities(path: Any, leaf: Array) -> dict[str, Array]:
    """Identity factors for one parameter."""
    shape = leaf.shape
    check_axes("meta_curvature", path, leaf)
    sizes = {"outputs": shape[-1] if shape else 1}
    if len(shape) > 1:
        sizes["inputs"] = shape[-2]
    if len(shape) == 4:
        sizes["taps"] = shape[0] * shape[1]
    return {mode: jnp.eye(size, dtype=leaf.dtype) for mode, size in sizes.items()}
