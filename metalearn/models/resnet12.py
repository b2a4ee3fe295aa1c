"""The twelve-layer residual network of the few-shot literature."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.types import Array
from metalearn.models.norm import Norm


class ResNet12(nn.Module):
    """Four residual blocks of three 3x3 convolutions, LeakyReLU(0.1), max-pooling.

    The defaults with `drop_rate=0.1` are the backbone of Lee et al., Meta-Learning with
    Differentiable Convex Optimization, CVPR 2019; `widths=(64, 128, 256, 512)` with
    `global_pool=True` is that of Chen et al., Meta-Baseline, ICCV 2021. The two are not
    interchangeable in tables. The keep rate of DropBlock is constant here; the released
    code of the former lowers it slowly.

    Attributes:
      num_outputs: W logits from a linear head named `head`; `None` returns features.
      widths: Channels of the four blocks.
      global_pool: Averages over space; otherwise features are flattened.
      drop_rate: Share of units that DropBlock removes in training in the last two
        blocks (the first two use plain dropout); needs a key.
      drop_block: Side of the removed squares.
      norm: See `Norm`.
    """

    num_outputs: int | None = None
    widths: Sequence[int] = (64, 160, 320, 640)
    global_pool: bool = False
    drop_rate: float = 0.0
    drop_block: int = 5
    norm: str = "batch"

    @nn.compact
    def __call__(self, x: Array, train: bool = False, mask: Array | None = None):
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
      key: Consumed.
      x: `[N, H, W, C]`.
      rate: Expected share of removed units, 0..1.
      side: Side of the squares; clipped to the image; 1 is plain dropout.
    """
    height, width = x.shape[1:3]
    side = min(side, height, width)
    places = (height - side + 1) * (width - side + 1)
    gamma = rate * height * width / (side * side * places)
    shape = (x.shape[0], height - side + 1, width - side + 1, x.shape[3])
    corners = jax.random.bernoulli(key, gamma, shape).astype(x.dtype)
    reach = side - 1
    corners = jnp.pad(corners, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    window = (1, side, side, 1)
    dropped = jax.lax.reduce_window(
        corners, -jnp.inf, jax.lax.max, window, (1, 1, 1, 1), "VALID"
    )
    keep = 1 - jax.lax.stop_gradient(dropped)
    return x * keep * (keep.size / jnp.maximum(keep.sum(), 1))
