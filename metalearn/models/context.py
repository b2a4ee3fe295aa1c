"""Networks with a context vector among their parameters, for CAVIA.

L. Zintgraf, K. Shiarlis, V. Kurin, K. Hofmann, S. Whiteson. Fast Context Adaptation via
Meta-Learning. ICML 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.types import Array, Key
from metalearn.models.conv4 import pools
from metalearn.models.norm import Norm

# The initialisation of the released code, "kaiming" of a linear layer.
_FILM_KERNEL = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class ContextMLP(nn.Module):
    """`MLP` over `[x, context]`, where the inputs x `[N, ...]` are flattened.

    The parameter `context` `[num_context]` starts at zero and is the same for all rows. The
    defaults are the sinusoid regressor of the paper.

    Attributes:
      num_outputs: Size of the output; `None` returns the last hidden layer.
      widths: Sizes of the hidden layers.
      norm: Kind of normalisation between a layer and its ReLU, see `Norm`.
      num_context: Length of the context vector.
    """

    num_outputs: int | None = 1
    widths: Sequence[int] = (40, 40)
    norm: str = "none"
    num_context: int = 5

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        context = _context(self)
        x = x.reshape((x.shape[0], -1))
        # The same context beside every example, because it describes the task.
        rows = jnp.broadcast_to(context[None], (x.shape[0], self.num_context))
        x = jnp.concatenate([x, rows], axis=-1)
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = nn.relu(Norm(self.norm)(x, train, mask))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)


class FilmConv4(nn.Module):
    """`Conv4` with one block whose channels are scaled and shifted by the context.

    Block `film_at` computes `(gamma, beta) = W c + b` and `h <- gamma * h + beta`, where c
    is the parameter `context` `[num_context]`. The layer with W and b is named `film`. As
    in the released code, the order of a block is convolution, norm, pooling, FiLM, ReLU.
    Without FiLM such a block equals that of `Conv4`.

    W and b start as in the released code: uniform in `±sqrt(3 / n)` and `±1 / sqrt(n)` for
    a context of length n. W is not zero, because the context would have no gradient then.
    The entries of b have a root mean square of `1 / sqrt(3 n)`, 0.06 for n = 100: channels
    start at small gammas of either sign. The size of b decides how far a step of the
    context reaches, because convolution and norm behind the FiLM layer undo its scale. With
    a b that is s times as large a step is s times shorter, and moves gamma by s^2 less in
    proportion.

    Attributes:
      num_outputs: Number of logits from a linear head named `head`; `None` returns the
        features.
      width: Channels of every block.
      norm: Kind of normalisation, see `Norm`.
      downsample: Way to halve the sides, "pool" or "stride", see `Conv4`.
      num_context: Length of the context vector; the paper uses 100.
      film_at: Number of the block with FiLM, 1 to 4; the paper uses 3.
    """

    num_outputs: int | None = None
    width: int = 64
    norm: str = "batch"
    downsample: str = "pool"
    num_context: int = 100
    film_at: int = 3

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        if self.film_at not in (1, 2, 3, 4):
            raise ValueError(
                f"film_at is {self.film_at!r}; expected the number of a block, 1 to 4."
            )
        pool = pools(self, x)
        context = _context(self)
        for block in range(1, 5):
            x = nn.Conv(self.width, (3, 3), strides=1 if pool else 2)(x)
            x = Norm(self.norm)(x, train, mask)
            if pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            if block == self.film_at:
                made = nn.Dense(
                    2 * self.width,
                    name="film",
                    kernel_init=_FILM_KERNEL,
                    bias_init=_uniform(self.num_context**-0.5),
                )(context[None])
                gamma, beta = jnp.split(made[:, None, None], 2, axis=-1)
                # One gamma and beta for all examples: the context belongs to the task.
                x = gamma * x + beta
            x = nn.relu(x)
        x = x.reshape((x.shape[0], -1)) if pool else x.mean((1, 2))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)


def _context(module: nn.Module) -> Array:
    num = module.num_context
    checks.whole_number("num_context", num, least=1)
    return module.param("context", nn.initializers.zeros, (num,), jnp.float32)


def _uniform(bound: float) -> nn.initializers.Initializer:
    """Numbers that are uniform in `±bound`."""

    def draw(key: Key, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw
