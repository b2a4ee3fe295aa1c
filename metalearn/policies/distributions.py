"""Distributions of actions: one of several, or a vector of independent normals."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from metalearn.core.types import Array, Key

LOG_2PI = math.log(2 * math.pi)


class Distribution(Protocol):
    """What a policy returns: a pytree of parameters with leading axes `[...]`."""

    def sample(self, key: Key, /) -> Array:
        """One action for each of the leading axes."""
        ...

    def log_prob(self, action: Array, /) -> Array:
        """Log-probability or log-density `[...]` of actions."""
        ...

    def entropy(self) -> Array:
        """Entropy `[...]` in nats."""
        ...

    def kl(self, other, /) -> Array:
        """Divergence `KL(self || other)` `[...]` in nats."""
        ...

    def mode(self) -> Array:
        """The likeliest action for each of the leading axes."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Categorical:
    """One of A actions, with probabilities `softmax(logits)`.

    A logit of minus infinity rules an action out: its probability is 0, and neither
    entropies, divergences nor their derivatives become NaN. One logit has to be finite.

    Attributes:
      logits: Logits, float `[..., A]`, of any offset.

    Example:
      >>> law = ml.policies.Categorical(jnp.array([0.0, 0.0, -jnp.inf]))
      >>> print(f"{law.entropy():.4f}")  # log 2
      0.6931
    """

    logits: Array

    def sample(self, key: Key, /) -> Array:
        """Actions, int32 `[...]`."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def log_prob(self, action: Array, /) -> Array:
        """Log-probabilities `[...]` of actions `[...]`; NaN for a number beyond A."""
        at = jnp.asarray(action)[..., None]
        logs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(logs, at, axis=-1, mode="fill")[..., 0]

    def entropy(self) -> Array:
        """Entropies `[...]` in nats, from 0 to log A."""
        probabilities, logs = self._terms()
        return -jnp.sum(probabilities * logs, axis=-1)

    def kl(self, other: Categorical, /) -> Array:
        """`KL(self || other)` `[...]`; infinite if only the other rules an action out."""
        probabilities, logs = self._terms()
        others = jax.nn.log_softmax(other.logits)
        # Chosen by the probability, which may be 0 by underflow too. A probability that is
        # NaN is not equal to 0 and stays to be seen.
        excess = jnp.where(probabilities == 0, 0.0, logs - others)
        return jnp.sum(probabilities * excess, axis=-1)

    def mode(self) -> Array:
        """The likeliest actions, int32 `[...]`; the first of equals."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def _terms(self) -> tuple[Array, Array]:
        """Probabilities, and their logarithms with 0 for what is ruled out."""
        out = jnp.isneginf(self.logits)
        logs = jnp.where(out, 0.0, jax.nn.log_softmax(self.logits))
        return jnp.where(out, 0.0, jnp.exp(logs)), logs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiagonalGaussian:
    """Vectors of D independent normal numbers.

    Attributes:
      mean: Means, float `[..., D]`.
      log_std: Logarithms of the standard deviations, float `[..., D]`.

    Example:
      >>> law = ml.policies.DiagonalGaussian(jnp.zeros(2), jnp.zeros(2))
      >>> print(f"{law.log_prob(jnp.zeros(2)):.4f}")  # -log(2 pi)
      -1.8379
    """

    mean: Array
    log_std: Array

    def sample(self, key: Key, /) -> Array:
        """Actions, float `[..., D]`, without bounds."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * noise

    def log_prob(self, action: Array, /) -> Array:
        """Log-densities `[...]` of actions `[..., D]`, summed over D."""
        scores = (action - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * scores**2 + self.log_std + 0.5 * LOG_2PI, axis=-1)

    def entropy(self) -> Array:
        """Differential entropies `[...]` in nats, which may be negative."""
        return jnp.sum(self.log_std + 0.5 * (LOG_2PI + 1.0), axis=-1)

    def kl(self, other: DiagonalGaussian, /) -> Array:
        """`KL(self || other)` `[...]` in nats, summed over D."""
        ratio = self.log_std - other.log_std
        scores = (self.mean - other.mean) * jnp.exp(-other.log_std)
        # By expm1: of two policies that are close, exp(2 ratio) - 1 would keep no digit.
        return jnp.sum(0.5 * (jnp.expm1(2 * ratio) + scores**2) - ratio, axis=-1)

    def mode(self) -> Array:
        """Means `[..., D]`."""
        return self.mean
