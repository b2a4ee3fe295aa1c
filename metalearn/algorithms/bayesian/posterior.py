"""The posterior of the weights of a network: likelihoods, and priors of precisions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metalearn.algorithms.bayesian.ensemble import COMBINE, Combine
from metalearn.core import checks, losses
from metalearn.core.task import Examples
from metalearn.core.types import Array, PyTree


class Gamma(NamedTuple):
    """Prior of a precision p that is sampled with the weights, as `log p`.

    Density of p proportional to `p^(shape - 1) exp(-rate p)`.

    Attributes:
      shape: a, positive.
      rate: b, positive.
      start: The precision that meta-training begins with.
    """

    shape: float
    rate: float
    start: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Posterior:
    """The density `p(weights, precisions | examples)`.

    Attributes:
      log_likelihood: `(outputs [N, ...], examples, log_precision) -> scalar`, a SUM over
        the valid examples.
      weight_precision: Precision of the prior `N(0, 1 / precision)` of every weight that
        adapts: a `Gamma`, or a number that stays, 0 for a flat prior.
      data_precision: Precision of the likelihood: a `Gamma`, or a positive number that
        stays.
      combine: How predictions are averaged, see `bayesian.ensemble`.

    Raises:
      ValueError: a number is out of range, or `combine` unknown.

    Example:
      >>> posterior = dataclasses.replace(REGRESSION, data_precision=25.0)
    """

    log_likelihood: Callable[[Array, Examples, Any], Array]
    weight_precision: Gamma | float
    data_precision: Gamma | float = 1.0
    combine: Combine = "probabilities"

    def __post_init__(self) -> None:
        checks.one_of("combine", self.combine, COMBINE)
        for name in ("data_precision", "weight_precision"):
            value = getattr(self, name)
            if not isinstance(value, Gamma):
                checks.number(name, value, positive=name == "data_precision")
                continue
            for part, number in value._asdict().items():
                checks.number(f"{part} of {name}", number, positive=True)


def gaussian(outputs: Array, examples: Examples, log_precision: Any) -> Array:
    """Log-likelihood of `y ~ N(outputs, 1 / precision)`.

    Args:
      outputs: Means, `[N, ...]`.
      examples: Targets of the same shape, and the mask.
      log_precision: Scalar.

    Returns:
      The sum over valid examples and their coordinates, without `-log(2 pi) / 2` each.
    """
    num = jnp.sum(examples.mask).astype(outputs.dtype) * math.prod(outputs.shape[1:])
    errors = jnp.exp(log_precision) * losses.mse(outputs, examples)
    return 0.5 * num * (log_precision - errors)


def categorical(outputs: Array, examples: Examples, log_precision: Any) -> Array:
    """Log-likelihood of class indices, summed over valid examples; has no precision.

    Args:
      outputs: Logits `[N, W]`.
      examples: Classes `[N]`, and the mask.
      log_precision: Not read.
    """
    del log_precision
    num = jnp.sum(examples.mask).astype(outputs.dtype)
    return -num * losses.cross_entropy(outputs, examples)


# The priors of the released code of BMAML (Yoon et al. 2018), which is for regression.
REGRESSION = Posterior(
    log_likelihood=gaussian,
    weight_precision=Gamma(2.0, 2.0, start=1.0),
    data_precision=Gamma(2.0, 0.2, start=100.0),
    combine="mean",
)
# Of classes no code was released. A sampled precision of thousands of weights has a
# gradient of thousands, which would allow rates of a thousandth of what weights need.
CLASSIFICATION = Posterior(log_likelihood=categorical, weight_precision=1.0)


def initial_precisions(posterior: Posterior, num: int) -> dict[str, Array]:
    """`{"data" or "weights": [num]}`, logarithms of the precisions that are sampled."""
    priors = {"data": posterior.data_precision, "weights": posterior.weight_precision}
    return {
        name: jnp.full((num,), math.log(prior.start), jnp.result_type(float))
        for name, prior in priors.items()
        if isinstance(prior, Gamma)
    }


def log_posterior(
    posterior: Posterior, particle: PyTree, outputs: Array, examples: Examples
) -> Array:
    """Logarithm of the unnormalised density, of the weights and log-precisions.

    A density of p gains a factor p as one of `log p`: `shape log p - rate p`.

    Args:
      posterior: The density.
      particle: `{"weights": tree, "log_precision": {"data" or "weights": scalar}}`.
      outputs: Predictions of these weights, `[N, ...]`.
      examples: What the density is conditioned on.

    Returns:
      Scalar.
    """
    logs = particle["log_precision"]
    data, prior = posterior.data_precision, posterior.weight_precision
    log_data = logs["data"] if isinstance(data, Gamma) else math.log(data)
    total = posterior.log_likelihood(outputs, examples, log_data)
    weights = jax.tree.leaves(particle["weights"])
    squares = sum(jnp.sum(jnp.square(w)) for w in weights)
    if isinstance(prior, Gamma):
        size = sum(w.size for w in weights)
        total += 0.5 * (size * logs["weights"] - jnp.exp(logs["weights"]) * squares)
    elif prior:
        total -= 0.5 * prior * squares
    for name, gamma in (("data", data), ("weights", prior)):
        if isinstance(gamma, Gamma):
            total += gamma.shape * logs[name] - gamma.rate * jnp.exp(logs[name])
    return total
