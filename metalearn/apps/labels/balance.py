"""Losses that make up for rare classes, from the numbers of examples of each class.

Both are sums over single examples, so that an example can be weighed alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from metalearn.core import losses
from metalearn.core.task import Examples
from metalearn.core.types import Array


@dataclasses.dataclass(frozen=True)
class WeightedLoss:
    """Cross-entropy, the mean of `weights[y] l` over examples.

    Of `ml.losses.cross_entropy` with weights the divisor is their sum in the batch, which
    changes from batch to batch where a class is rare.

    Attributes:
      weights: Weight of each class.
    """

    weights: tuple[float, ...]

    def __call__(self, outputs: Array, examples: Examples) -> Array:
        """The loss of one set."""
        # Without a power the focal loss is this one.
        return losses.focal(outputs, examples, gamma=0.0, class_weights=self.weights)


@dataclasses.dataclass(frozen=True)
class AdjustedLoss:
    """Cross-entropy of logits to which the logarithm of the class's share is added.

    A. K. Menon et al. Long-tail learning via logit adjustment. ICLR 2021. Predictions are
    by the logits alone, which so prefer no class for being frequent.

    Attributes:
      shift: What is added to each logit.
    """

    shift: tuple[float, ...]

    def __call__(self, outputs: Array, examples: Examples) -> Array:
        """The loss of one set."""
        shift = jnp.asarray(self.shift, outputs.dtype)
        return losses.cross_entropy(outputs + shift[None], examples)


def balanced_loss(counts: Sequence[float], *, beta: float) -> WeightedLoss:
    """Weights by the effective number of examples, whose mean over examples is 1.

    The effective number of n examples is `(1 - beta^n) / (1 - beta)`: n itself as beta goes
    to 1, and 1 for beta = 0. Y. Cui et al. Class-Balanced Loss Based on Effective Number of
    Samples. CVPR 2019.

    Args:
      counts: Examples of each class, 1 or more where there are any.
      beta: Beta, from 0 to below 1.
    """
    found = np.maximum(np.asarray(counts, np.float64), 1)
    weights = (1 - beta) / (1 - beta**found)
    weights = weights * found.sum() / (weights * found).sum()
    return WeightedLoss(tuple(weights.tolist()))


def adjusted_loss(counts: Sequence[float], *, strength: float = 1.0) -> AdjustedLoss:
    """Logit adjustment by the shares of the classes.

    Args:
      counts: Examples of each class; an absent one counts as one example.
      strength: Factor of the logarithms; 1 makes up for the shares exactly.
    """
    found = np.maximum(np.asarray(counts, np.float64), 1)
    return AdjustedLoss(tuple((strength * np.log(found / found.sum())).tolist()))
