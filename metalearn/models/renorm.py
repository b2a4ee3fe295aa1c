"""Batch renormalisation: batch norm whose outputs in training are those at test."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.core.types import Array


class BatchRenorm(nn.Module):
    """Batch norm whose outputs in training are those by its running averages.

    S. Ioffe. Batch Renormalization: Towards Reducing Minibatch Dependence in
    Batch-Normalized Models. NeurIPS 2017. In training

        y = (x - mean_B) / std_B * r + d
        r = clip(std_B / std, 1 / r_max, r_max),  d = clip((mean_B - mean) / std, +-d_max)

    which is `(x - mean) / std` within the limits. `r` and `d` are constants to the
    gradient, which is that of batch norm with other sizes. A task of few classes is a batch
    whose statistics say much of the task; a network that trains by them does not find them
    in running averages.

    Outputs, not gradients, are those of test: an inner loop under the policy "running"
    takes other steps in training than at test, as with batch norm.

    Differences from the paper: the running average is one of squares in place of standard
    deviations, so that the variance between tasks counts as much as that within them; the
    limits of `r` and `d` stand from the first step on. A standard deviation is at least a
    thousandth of the root mean square, below which the running averages hold no digits.

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

        Raises:
          ValueError: an attribute is out of range.
        """
        self._check()
        width = (x.shape[-1],)
        of_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        of_square = self.variable("batch_stats", "square", jnp.ones, width)
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        given, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
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
            # Constants to the gradient, which is that of batch norm. By averages alone,
            # which follow the weights late, activations could grow without limit.
            r, d = jax.lax.stop_gradient((std_b / std, (mean_b - mean) / std))
            r = jnp.clip(r, 1 / self.r_max, self.r_max)
            d = jnp.clip(d, -self.d_max, self.d_max)
            y = (x - along(mean_b)) / along(std_b) * along(r) + along(d)
            if not self.is_initializing():
                for kept, now in ((of_mean, mean_b), (of_square, square_b)):
                    kept.value = self.momentum * kept.value + (1 - self.momentum) * now
        y = y * along(scale) + along(bias)
        return y.astype(jnp.result_type(given, scale, bias))  # as flax has it

    def _moments(self, mean: Array, square: Array) -> tuple[Array, Array]:
        """Mean and standard deviation by the running averages."""
        # A difference of large squares is rounding alone below that share of them, and can
        # be negative.
        variance = jnp.maximum(square - jnp.square(mean), 1e-6 * square)
        return mean, jnp.sqrt(variance + self.epsilon)

    def _check(self) -> None:
        """Refuses attributes out of range."""
        wanted = {
            "momentum": (0 <= self.momentum < 1, "0 or more and below 1"),
            "epsilon": (self.epsilon > 0, "more than 0"),
            "r_max": (self.r_max >= 1, "1 or more"),
            "d_max": (self.d_max >= 0, "0 or more"),
        }
        for name, (right, expected) in wanted.items():
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected {expected}.")
