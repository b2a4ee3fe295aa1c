"""Deep kernel transfer: a Gaussian process on the embeddings, without an inner loop.

M. Patacchiola, J. Turner, E. Crowley, M. O'Boyle, A. Storkey. Bayesian Meta-Learning for
the Few-Shot Setting via Deep Kernels. NeurIPS 2020.

Differences from the released code (github.com/BayesWatch/deep-kernel-transfer). Its
classification is here, its regression is not.

- One mean, one scale and one lengthscale serve all classes. There each class index of an
  episode has its own, although classes come to indices at random.
- Positive numbers are learned by their logarithm and not by a softplus.
- By default a batch norm stands before the cosine there. Here that layer belongs to the
  encoder.
- Kernels are linear, RBF and cosine; there are Matern and polynomials as well.
- The noise starts at 0.1 and stays there, as in the released code, unless it is learned.
- The optimiser there has a tenth of the rate for the numbers of the process.
- Masked rows do not count, nor classes without an example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp

from metalearn.algorithms.closed_form.ridge import Number, init_of
from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    embedded,
    exact,
    members_of,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.rows import unit
from metalearn.core.task import Examples, concatenate
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, Key
from metalearn.inner.solve import solve

Kernel = Literal["linear", "rbf", "cosine"]
Values = Mapping[str, Array]


class Process(NamedTuple):
    """The process given a support set.

    Attributes:
      x: Embeddings of the support set, `[N, D]`.
      mask: Mask of the valid ones, bool `[N]`.
      weights: `(K + noise I)^-1 (Y - mean)`, `[N, W]`.
    """

    x: Array
    mask: Array
    weights: Array


@takes_options(of=EMBEDDING)
def dkt(
    encoder: Model,
    *,
    num_ways: int,
    kernel: Kernel = "cosine",
    outputscale: float = 0.693,
    lengthscale: float = 0.693,
    noise: float = 0.1,
    learn_noise: bool = False,
    jitter: float = 1e-4,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by Gaussian processes, one for each class against the rest.

    The targets of class k are 1 for its examples and -1 for others. Training minimises
    `-log N(y_k; mean, K + noise I)`, the mean over classes and examples of support and
    query together. At test the logits are the predictive means
    `mean + K_*S (K_SS + noise I)^-1 (y_k - mean)`. The kernel is `outputscale` times
    `f(a) f(b)` ("linear"), `exp(-|f(a) - f(b)|^2 / (2 lengthscale^2))` ("rbf"), or
    `f(a) f(b) / (|f(a)| |f(b)|)` ("cosine").

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set get a logit that never wins.
      kernel: Kernel of the embeddings: "linear", "rbf" or "cosine".
      outputscale: Variance of the process that learning starts with.
      lengthscale: Distance of embeddings that learning starts with; "rbf" alone reads it.
      noise: Variance of the noise of targets; where training starts if it is learned.
      learn_noise: Whether the noise is learned.
      jitter: Number added to the noise, for matrices that rounding makes indefinite.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Process`. The metric `joint/nll` is what
      training minimises, and `query/loss` the cross-entropy of the logits. These are near
      -1..1, so that among five classes `query/loss` is hardly below 0.43: judge by
      `query/accuracy`.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.dkt(ml.from_linen(ml.models.Conv4()), num_ways=5, kernel="rbf")
    """
    checks.one_of("kernel", kernel, get_args(Kernel))
    checks.number("jitter", jitter)
    numbers = {
        number.name: number
        for number in (
            Number("outputscale", outputscale, learned=True, positive=True),
            Number("lengthscale", lengthscale, learned=kernel == "rbf", positive=True),
            Number("noise", noise, learned=learn_noise, positive=True),
            Number("mean", 0.0, learned=True),
        )
    }

    def values_of(params, x: Array) -> dict[str, Array]:
        return {name: number.read(params, x.dtype) for name, number in numbers.items()}

    def fit(params, support: Examples, *, key: Key | None = None) -> Process:
        values = values_of(params, support.x)
        matrix = covariance(kernel, values, support, jitter)
        apart = deviations(support, num_ways, values["mean"])
        return Process(support.x, support.mask, solve(matrix, apart))

    def score(params, process: Process, x: Array) -> Array:
        values = values_of(params, x)
        near = gram(kernel, values, x, process.x, process.mask)
        return values["mean"] + near @ process.weights

    def loss(params, process, support: Examples, query: Examples, logits, *, key: Key):
        values, both = values_of(params, support.x), concatenate(support, query)
        matrix = covariance(kernel, values, both, jitter)
        apart = deviations(both, num_ways, values["mean"])
        nll = negative_log_likelihood(matrix, apart, both.mask)
        present = members_of(both, num_ways).any(0)
        num = jnp.maximum(both.mask.sum(), 1).astype(nll.dtype)
        mean = masked_mean(nll, present) / num
        return mean, {"joint/nll": mean}

    head = exact(Head(fit=fit, score=score, init=init_of(numbers), loss=loss))
    settings = {
        "kernel": kernel,
        "outputscale": outputscale,
        "lengthscale": lengthscale,
        "noise": noise,
        "learn_noise": learn_noise,
        "jitter": jitter,
    }
    return embedded("dkt", encoder, head, num_ways=num_ways, settings=settings, **options)


def gram(kernel: Kernel, values: Values, a: Array, b: Array, mask: Array) -> Array:
    """Covariances of the process between rows `[N, D]` and `[M, D]`, `[N, M]`.

    Args:
      kernel: "linear", "rbf" or "cosine".
      values: `outputscale` and `lengthscale`.
      a: Embeddings, `[N, D]`.
      b: Embeddings, `[M, D]`.
      mask: Mask of the valid rows of b, bool `[M]`.
    """
    if kernel == "cosine":
        a, b = unit(a), unit(b)
    if kernel == "rbf":
        # Distances do not change, and squares of what is far from zero lose their digits.
        centre = jax.lax.stop_gradient(masked_mean(b, mask))[None]
        a, b = a - centre, b - centre
    products = a @ b.T
    if kernel == "rbf":
        squares = jnp.sum(a * a, -1)[:, None] + jnp.sum(b * b, -1)[None]
        # Rounding makes the distance of a row to itself negative.
        apart = jnp.maximum(squares - 2 * products, 0)
        products = jnp.exp(-apart / (2 * jnp.square(values["lengthscale"])))
    return values["outputscale"] * products


def covariance(kernel: Kernel, values: Values, examples: Examples, jitter: float) -> Array:
    """Covariance of the targets, `[N, N]`.

    A masked row is that of the unit matrix: its log-determinant is 0, and where its target
    is 0 too it changes nothing.

    Args:
      kernel: "linear", "rbf" or "cosine".
      values: `outputscale`, `lengthscale` and `noise`.
      examples: Embeddings and mask.
      jitter: Number added to the noise.
    """
    mask = examples.mask
    both = mask[:, None] & mask[None]
    matrix = jnp.where(both, gram(kernel, values, examples.x, examples.x, mask), 0)
    noise = values["noise"] + jitter
    return matrix + jnp.diag(jnp.where(mask, noise, 1))


def deviations(examples: Examples, num_ways: int, mean: Array) -> Array:
    """Targets 1 and -1 of each class less the mean, `[N, W]`; masked rows are zero."""
    signs = 2 * members_of(examples, num_ways) - 1
    return jnp.where(examples.mask[:, None], signs - mean, 0)


def negative_log_likelihood(matrix: Array, apart: Array, mask: Array) -> Array:
    """`-log N(y; mean, matrix)` of each class, `[W]`.

    Args:
      matrix: Covariance of the targets, see `covariance`.
      apart: Targets less the mean, `[N, W]`; zero in masked rows.
      mask: Mask of the valid rows, bool `[N]`.
    """
    factor = jnp.linalg.cholesky(matrix)
    white = jax.scipy.linalg.solve_triangular(factor, apart, lower=True)
    determinant = 2 * jnp.sum(jnp.log(jnp.diag(factor)))
    constant = mask.sum().astype(apart.dtype) * math.log(2 * math.pi)
    return 0.5 * (jnp.sum(jnp.square(white), 0) + determinant + constant)
