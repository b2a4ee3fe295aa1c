"""KFO: inner gradients pass through a learned map, and the map adapts to the task too.

S. M. R. Arnold, S. Iqbal, F. Sha. When MAML Can Adapt Fast and How to Assist When It
Cannot. AISTATS 2021.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

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
def kfo(
    model: Model,
    loss_fn: LossFn,
    *,
    num_steps: int = 5,
    rate: float = 0.01,
    adapt_transform: bool = True,
    psd: bool = False,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML with a Kronecker-factored optimiser inside, which adapts with the weights.

    A gradient `G` `[n, m]` becomes `u(G) = L G R`, the product of `R' kron L` and `vec(G)`.
    With phi the factors L, R of all parameters and `g_k` the gradient at `w_k`, step k is

        phi_k = phi_{k-1} - alpha * (gradient of L(w_k) by phi_{k-1})    from k = 1 on
        w_{k+1} = w_k - alpha u_{phi_k}(g_k)

    where `w_k` depends on `phi_{k-1}` through the update that led to it. So one step adapts
    no factor. Outside, `w_0` and `phi_0` are learned by the derivative of all of it. At the
    start the factors are identities; if they stay there, this is MAML.

    A dense kernel is one matrix of inputs x outputs, and a vector one of a single column. A
    convolution is a matrix of inputs x taps for each of its output filters, which share
    their factors: Meta-Curvature has a factor of the outputs besides, and its factors are
    those of all tasks.

    The paper also has maps with hidden layers. They are not offered: the released examples
    are of a linear map.

    Args:
      model: The network, with kernels in the layout of flax: dense `[in, out]`,
        convolutions `[height, width, in, out]` (HWIO). A kernel in another layout, e.g.
        OIHW, would be mapped along the wrong axes without an error. Any matrix counts as
        `[in, out]`: an embedding table of V rows gets a factor `[V, V]`.
      loss_fn: Loss of one task.
      num_steps: K, inner steps; 5 in the released examples.
      rate: alpha, of the weights and of the factors; 0.1 in the released examples, which
        classify.
      adapt_transform: Whether the factors adapt inside. Every task then carries a copy of
        them through its steps. As in the released examples; the released wrapper, `GBML`,
        leaves it out unless told.
      psd: Whether `M' M` takes the place of every factor M, so that the map is positive
        semi-definite. Around the identity that doubles how fast it changes. The released
        transform does so unless told otherwise.
      adapt_filter: `(path, leaf) -> bool`: parameters that adapt, which alone have
        factors; all when `None`.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` whose adapted object is a `metalearn.inner.Adapted`. Its params are
      `{"model": ..., "inner": tree}`. In the tree stands for every parameter that adapts:
      for a dense kernel `{"inputs": L, "outputs": R'}`, for a convolution
      `{"inputs": L, "taps": R'}` with `height * width` taps, rows first, and for a vector
      `[n]` `{"outputs": L, "inputs": R'}` with `R` `[1, 1]`.

    Raises:
      ValueError: an option is out of range; in `init`: a parameter has three axes, or more
        than four, so that it is unclear what the axes are.

    Example:
      >>> learner = ml.kfo(model, ml.losses.cross_entropy, num_steps=5, rate=0.1)
    """
    checks.number("rate", rate, positive=True)
    alpha, adapts, psd = float(rate), bool(adapt_transform), bool(psd)

    def initial(key: Key, params: PyTree) -> PyTree:
        del key
        return identities(params)

    def inner_opt(factors: PyTree) -> optax.GradientTransformation:
        return kronecker_sgd(factors, alpha, adapts=adapts, psd=psd)

    settings = {"rate": alpha, "adapt_transform": adapts, "psd": psd}
    return bilevel(
        "kfo",
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(inner_hparams=initial, settings=settings),
        **options,
    )


class KroneckerState(NamedTuple):
    """State of `kronecker_sgd` where the factors adapt.

    Attributes:
      factors: phi of the latest step.
      gradient: Gradient of the latest step; zeros before the first.
    """

    factors: PyTree
    gradient: PyTree


def kronecker_sgd(
    factors: PyTree, rate: float, *, adapts: bool = True, psd: bool = False
) -> optax.GradientTransformation:
    """SGD along mapped gradients, whose factors descend the same loss.

    Args:
      factors: For every gradient a dictionary as in `kfo`.
      rate: alpha.
      adapts: Whether the factors move.
      psd: Whether each factor is multiplied by its transpose.
    """

    def move(factors: PyTree, grads: PyTree) -> PyTree:
        """`-alpha u_phi(g)`."""
        if psd:
            factors = jax.tree.map(lambda factor: factor.T @ factor, factors)
        return curved_sgd(factors, rate).update(grads, optax.EmptyState())[0]

    if not adapts:
        return optax.stateless(lambda grads, _: move(factors, grads))

    def init(params: PyTree) -> KroneckerState:
        return KroneckerState(factors, jax.tree.map(jnp.zeros_like, params))

    def update(
        grads: PyTree, state: KroneckerState, params: PyTree = None
    ) -> tuple[PyTree, KroneckerState]:
        del params
        # The loss at w_k depends on phi_{k-1} by the last move alone, so its gradient is
        # that by w_k, pulled back through the move. In the first step the move is of a
        # gradient of zero: nothing comes back, and phi_0 stays.
        _, pull = jax.vjp(lambda phi: move(phi, state.gradient), state.factors)
        (slope,) = pull(grads)
        phi = jax.tree.map(lambda f, s: f - rate * s, state.factors, slope)
        return move(phi, grads), KroneckerState(phi, grads)

    return optax.GradientTransformation(init, update)


def identities(params: PyTree) -> PyTree:
    """Identity factors for every parameter, as in `kfo`.

    Raises:
      ValueError: a parameter has three axes, or more than four.
    """
    return jax.tree_util.tree_map_with_path(_of_parameter, params)


def _of_parameter(path: Any, leaf: Array) -> dict[str, Array]:
    shape = leaf.shape
    check_axes("kfo", path, leaf)
    if len(shape) == 4:
        sizes = {"inputs": shape[2], "taps": shape[0] * shape[1]}
    else:
        inputs, outputs = (1, 1, *shape)[-2:]
        sizes = {"inputs": inputs, "outputs": outputs}
    return {mode: jnp.eye(size, dtype=leaf.dtype) for mode, size in sizes.items()}
