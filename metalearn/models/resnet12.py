"""The twelve-layer residual network of the few-shot literature."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.types import Array
from metalearn.models.norm import Norm
from metalearn.models.sizes import check_sizes


class ResNet12(nn.Module):
    """Four residual blocks of three 3x3 convolutions, LeakyReLU(0.1), max-pooling.

    The defaults with `drop_rate=0.1` are the backbone of Lee et al., Meta-Learning with
    Differentiable Convex Optimization, CVPR 2019. `widths=(64, 128, 256, 512)` with
    `global_pool=True` is the backbone of Chen et al., Meta-Baseline, ICCV 2021. Tables must
    not mix the two. The keep rate of DropBlock is constant here; the released code of Lee
    et al. lowers the keep rate slowly.

    Attributes:
      num_outputs: Number of logits from a linear head named `head`; `None` returns
        features.
      widths: Channels of the four blocks.
      global_pool: Whether features are averaged over space; otherwise flattened.
      drop_rate: Share of units, 0..1, that training removes. The last two blocks use
        DropBlock, the first two plain dropout; both need a key.
      drop_block: Side of the removed squares.
      norm: Kind of normalisation, see `Norm`.
    """

    num_outputs: int | None = None
    widths: Sequence[int] = (64, 160, 320, 640)
    global_pool: bool = False
    drop_rate: float = 0.0
    drop_block: int = 5
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
        check_sizes(self)
        for i, width in enumerate(self.widths):
            x = self._block(x, width, train, mask)
            if train and self.drop_rate > 0 and self.has_rng("dropout"):
                side = self.drop_block if i >= 2 else 1
                x = drop_blocks(self.make_rng("dropout"), x, self.drop_rate, side)
        x = x.mean((1, 2)) if self.global_pool else x.reshape((x.shape[0], -1))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)

    def _block(self, x: Array, width: int, train: bool, mask: Array | None) -> Array:
        skip = nn.Conv(width, (1, 1), use_bias=False)(x)
        skip = Norm(self.norm)(skip, train, mask)
        for i in range(3):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = Norm(self.norm)(x, train, mask)
            if i < 2:
                x = nn.leaky_relu(x, 0.1)
        x = nn.leaky_relu(x + skip, 0.1)
        return nn.max_pool(x, (2, 2), strides=(2, 2))


def drop_blocks(key: Array, x: Array, rate: float, side: int) -> Array:
    """DropBlock (Ghiasi et al., NeurIPS 2018): removes squares, rescales the rest.

    Args:
      key: Key of the random squares.
      x: Features `[N, H, W, C]`.
      rate: Expected share of removed units, 0..1.
      side: Side of the squares in pixels, at most that of the image; 1 is plain dropout.
    """
    height, width = x.shape[1:3]
    side = min(side, height, width)
    places = (height - side + 1) * (width - side + 1)
    # The rate of corners at which the expected share of removed units is about `rate`:
    # a corner removes `side * side` units and can stand in `places` places.
    gamma = rate * height * width / (side * side * places)
    shape = (x.shape[0], height - side + 1, width - side + 1, x.shape[3])
    corners = jax.random.bernoulli(key, gamma, shape).astype(x.dtype)
    reach = side - 1
    corners = jnp.pad(corners, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    window = (1, side, side, 1)
    # A unit is removed if any corner lies in the square that ends at the unit.
    dropped = jax.lax.reduce_window(
        corners, -jnp.inf, jax.lax.max, window, (1, 1, 1, 1), "VALID"
    )
    # The mask is drawn at random and not computed from x: a constant of the derivative.
    keep = 1 - jax.lax.stop_gradient(dropped)
    # The scale keeps the mean of x; the 1 guards a mask that removes everything.
    return x * keep * (keep.size / jnp.maximum(keep.sum(), 1))
