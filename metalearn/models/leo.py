"""The networks of LEO: a relational encoder and a decoder of classifier weights.

A. Rusu, D. Rao, J. Sygnowski, O. Vinyals, R. Pascanu, S. Osindero, R. Hadsell.
Meta-Learning with Latent Embedding Optimization. ICLR 2019.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from metalearn._tree import masked_mean
from metalearn._typing import Array


class LeoNet(nn.Module):
    """Encoder, relation network and decoder; no layer has a bias.

    Attributes:
      features: D, length of the feature vectors.
      latents: L, length of a code.
      hidden: Width of the relation network; 2 L when `None`, as in the paper.
    """

    features: int
    latents: int = 64
    hidden: int | None = None

    def setup(self):
        def dense(width: int) -> nn.Dense:
            # With xavier_uniform, the initialisation of the released code.
            return nn.Dense(
                width, use_bias=False, kernel_init=nn.initializers.xavier_uniform()
            )

        width = self.hidden or 2 * self.latents
        self.encoder = dense(self.latents)
        self.relation_0 = self.param(
            "relation_0",
            nn.initializers.xavier_uniform(),
            (2 * self.latents, width),
            jnp.float32,
        )
        self.relation_1 = dense(width)
        self.relation_2 = dense(2 * self.latents)
        self.decoder = dense(2 * self.features)

    def __call__(self, x: Array, mask: Array, members: Array) -> Array:
        """Touches every parameter, for `init`."""
        codes = self.encode(x, mask, members)
        return self.decode(codes[:, : self.latents])

    def encode(self, x: Array, mask: Array, members: Array) -> Array:
        """Means and logarithmic deviations of the codes.

        The relation network sees all pairs of examples; its outputs are averaged over the
        partners of an example and then over the examples of a class. Its last layer is
        linear and comes after both averages here, which is the same and cheaper.

        Args:
          x: Features `[N, D]`.
          mask: Bool `[N]`; masked rows are nobody's partner.
          members: `[W, N]`, the weights of the average over each class.

        Returns:
          `[W, 2 L]`.
        """
        codes = self.encoder(jnp.where(mask[:, None], x, 0))
        codes, first = nn.dtypes.promote_dtype(codes, self.relation_0)
        # A product with the pair is the sum of the products with its halves.
        left, right = codes @ first[: self.latents], codes @ first[self.latents :]
        pairs = nn.relu(left[None] + right[:, None])  # [partner, example, hidden]
        of_example = masked_mean(nn.relu(self.relation_1(pairs)), mask)
        return self.relation_2(members @ of_example)

    def decode(self, codes: Array) -> Array:
        """Means and logarithmic deviations of weights: `[M, L]` to `[M, 2 D]`."""
        return self.decoder(codes)
