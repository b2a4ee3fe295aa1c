"""The networks of LEO: a relational encoder and a decoder of classifier weights.

A. Rusu, D. Rao, J. Sygnowski, O. Vinyals, R. Pascanu, S. Osindero, R. Hadsell.
Meta-Learning with Latent Embedding Optimization. ICLR 2019. Outputs of both stand for
Gaussians, of which `draw` makes samples.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, Key, PyTree

LEAST_DEVIATION = 1e-10


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
          members: Weights of the average over each class, `[W, N]`.

        Returns:
          `[W, 2 L]`.
        """
        # Whatever a masked row holds, it may not reach the gradient of the weights.
        codes = self.encoder(jnp.where(mask[:, None], x, 0))
        codes, first = nn.dtypes.promote_dtype(codes, self.relation_0)
        # A product with the pair is the sum of the products with its halves.
        left, right = codes @ first[: self.latents], codes @ first[self.latents :]
        pairs = nn.relu(left[None] + right[:, None])  # [partner, example, hidden]
        of_example = masked_mean(nn.relu(self.relation_1(pairs)), mask)
        of_example = of_example.astype(pairs.dtype)  # a mean is float32 at least
        return self.relation_2(members @ of_example)

    def decode(self, codes: Array) -> Array:
        """Means and logarithmic deviations of weights: `[M, L]` to `[M, 2 D]`."""
        return self.decoder(codes)


def check_features(x: PyTree) -> None:
    """Raises a `ValueError` unless inputs are real feature vectors `[N, D]`."""
    if getattr(x, "ndim", 0) != 2:
        raise ValueError(
            f"leo got inputs of shape {jax.tree.map(jnp.shape, x)}; expected feature "
            "vectors [N, D]. Give it the outputs of a network trained before."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"leo got inputs of dtype {x.dtype}, which its rates would have as well; "
            "expected real numbers. Convert the features, e.g. to float32."
        )


def correlation_penalty(rows: Array) -> Array:
    """R: mean squared difference of the cosines among rows `[L, F]` and the identity."""
    # A row of zeros has no direction; without the small number its slope would be 0 / 0.
    lengths = jnp.sqrt(jnp.sum(jnp.square(rows), -1, keepdims=True) + 1e-30)
    cosines = (rows / lengths) @ (rows / lengths).T
    return jnp.mean(jnp.square(cosines - jnp.eye(rows.shape[0], dtype=rows.dtype)))


def draw(key: Key | None, made: Array, offset: float) -> tuple[Array, Array]:
    """A sample of the Gaussians that the network's outputs stand for.

    As in the released code a deviation is `max(exp(s) - (1 - offset), 1e-10)` of the
    output s. With offset 0, for codes, s = 0 gives none, and with `sqrt(2 / (D + W))`, for
    weights, Glorot's.

    Args:
      key: Key of the draw. Without one the mean is drawn, and the divergences are zeros.
      made: Outputs `[M, 2 F]`, means and s.
      offset: Deviation that an output s of 0 stands for.

    Returns:
      The sample `[M, F]`, and what its coordinates say of the KL divergence to N(0, 1).
    """
    mean, spread = jnp.split(made, 2, axis=-1)
    if key is None:
        return mean, jnp.zeros_like(mean)
    deviation = jnp.maximum(jnp.exp(spread) - (1 - offset), LEAST_DEVIATION)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    sample = mean + deviation * noise
    # log q - log p by the noise: (sample - mean) / deviation would have lost its digits.
    kl = 0.5 * (jnp.square(sample) - jnp.square(noise)) - jnp.log(deviation)
    return sample, kl


def drop_features(key: Key | None, x: Array, rate: float) -> Array:
    """Dropout; without a key, or at rate 0, the same."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
