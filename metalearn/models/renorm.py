"""Batch renormalisation: batch norm that trains on what it will use at test."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.types import Array


class BatchRenorm(nn.Module):
    """Batch norm whose outputs in training are those by its running averages.

    S. Ioffe. Batch Renormalization: Towards Reducing Minibatch Dependence in
    Batch-Normalized Models. NeurIPS 2017. In training

        y = (x - mean_B) / std_B * r + d,  r = std_B / std,  d = (mean_B - mean) / std,

    which is `(x - mean) / std`, while the gradient is that of batch norm. A task of few
    classes is a batch whose statistics say much of the task; a network that trains on them
    does not find them in running averages.

    Differences from the paper: the running average is one of squares in place of standard
    deviations, so that the variance between tasks counts as much as that within them; the
    limits of `r` and `d` stand from the first step on.

    Attributes:
      momentum: Decay of the running averages, in [0, 1).
      epsilon: Number added to variances.
      r_max: Largest `r`; its inverse is the smallest.
      d_max: Largest size of `d`.

    Example:
      >>> encoder = ml.from_linen(ml.models.ConvMaps(norm="renorm"))
      >>> learner = ml.relation_network(encoder, num_ways=5)
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    r_max: float = 3.0
    d_max: float = 5.0

    @nn.compact
    def __call__(
        self, x: Array, use_running_average: bool = False, mask: Array | None = None
    ) -> Array:
        """Normalised examples.

        Args:
          x: Numbers `[N, ..., C]`.
          use_running_average: Whether to normalise by the averages alone, as at test.
          mask: True for numbers of valid examples, of the shape of `x`.
        """
        width = (x.shape[-1],)
        of_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        of_square = self.variable("batch_stats", "square", jnp.ones, width)
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        given, x = x, x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = tuple(range(x.ndim - 1))
        along = lambda vector: jnp.expand_dims(vector, axes)
        mean, std = self._moments(of_mean.value, of_square.value)
        if use_running_average:
            y = (x - along(mean)) / along(std)
        else:
            mean_b = jnp.mean(x, axes, where=mask)
            square_b = jnp.mean(jnp.square(x), axes, where=mask)
            # In two passes, because a difference of large squares loses all digits.
            var_b = jnp.mean(jnp.square(x - along(mean_b)), axes, where=mask)
            std_b = jnp.sqrt(var_b + self.epsilon)
            # Constants to the gradient, which is that of batch norm: through the averages
            # nothing would hold the size of activations.
            r, d = jax.lax.stop_gradient((std_b / std, (mean_b - mean) / std))
            r = jnp.clip(r, 1 / self.r_max, self.r_max)
            d = jnp.clip(d, -self.d_max, self.d_max)
            y = (x - along(mean_b)) / along(std_b) * along(r) + along(d)
            if not self.is_initializing():
                for kept, now in ((of_mean, mean_b), (of_square, square_b)):
                    kept.value = self.momentum * kept.value + (1 - self.momentum) * now
        return (y * along(scale) + along(bias)).astype(given.dtype)

    def _moments(self, mean: Array, square: Array) -> tuple[Array, Array]:
        """Mean and standard deviation by the running averages."""
        # Rounding can put a mean of squares below the square of the mean.
        variance = jnp.maximum(square - jnp.square(mean), 0)
        return mean, jnp.sqrt(variance + self.epsilon)
