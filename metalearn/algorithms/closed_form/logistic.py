"""Logistic regression of each class against the rest, by a few of Newton's steps.

L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi. Meta-learning with Differentiable
Closed-form Solvers. ICLR 2019: LR-D2.

Differences from the released code (github.com/bertinetto/r2d2):

- Scale and offset of the scores, which the paper has, are defined and not used there. Here
  they are learned from 1 and 0, and `learn="nothing"` leaves them out.
- Tasks of two classes have two regressions and a softmax as others have; there they have
  one, and its sigmoid.
- Weights of examples are held at 1e-6 or more, so that confident examples do not divide by
  zero. The solution that the steps approach stays the same.
- Masked rows do not count, systems are solved by Cholesky's factors, and the first step,
  whose system all classes share, is done once for all of them.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.closed_form.ridge import (
    Learn,
    adjusted,
    calibrated,
    init_of,
    ridge,
    with_ones,
)
from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    embedded,
    exact,
    members_of,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, loops
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key
from metalearn.inner.solve import solve

LEAST = 1e-6  # of the weight of an example


@takes_options(of=EMBEDDING)
def lr_d2(
    encoder: Model,
    *,
    num_ways: int,
    num_steps: int = 5,
    regularisation: float = 50.0,
    scale: float = 1.0,
    offset: float = 0.0,
    learn: Learn = "calibration",
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by logistic regressions, through whose steps the encoder learns.

    X `[N, D + 1]` has a column of ones. Each class has a vector w of weights, which starts
    at zero, and targets y of 1 for its own examples and 0 for others. A step is one of
    iteratively reweighted least squares: `eta = X w`, `mu = sigmoid(eta)`,
    `s = mu (1 - mu)`, `z = eta + (y - mu) / s`,
    `w <- X'(XX' + regularisation diag(1 / s))^-1 z`. Then
    `logits = scale [f(x), 1] W + offset`, and the loss is the cross-entropy of all classes.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set get a logit that never wins.
      num_steps: Number of Newton's steps; the paper has results of 1 and of 5.
      regularisation: Penalty on half the squared weights, whatever the number of examples;
        where training starts if it is learned.
      scale: Factor of the scores; where training starts if it is learned.
      offset: Number added to all logits, which a softmax ignores.
      learn: Numbers that are learned: "nothing", "calibration" (scale and offset), or "all"
        three.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the weights `[D + 1, W]`, the last row being the
      bias.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.lr_d2(ml.from_linen(ml.models.Conv4()), num_ways=10, num_steps=1)
    """
    checks.whole_number("num_steps", num_steps, least=1)
    numbers = calibrated(regularisation, scale, offset, learn)

    def fit(params, support: Examples, *, key: Key | None = None) -> Array:
        penalty = numbers["regularisation"].read(params, support.x.dtype)
        x = with_ones(support.x, support.mask)
        return logistic(x, members_of(support, num_ways), penalty, num_steps)

    def score(params, weights: Array, x: Array) -> Array:
        return adjusted(numbers, params, x @ weights[:-1] + weights[-1:])

    head = exact(Head(fit=fit, score=score, init=init_of(numbers)))
    settings = {
        "num_steps": num_steps,
        "regularisation": regularisation,
        "scale": scale,
        "offset": offset,
        "learn": learn,
    }
    return embedded("lr_d2", encoder, head, num_ways=num_ways, settings=settings, **options)


def logistic(x: Array, y: Array, penalty: Array, steps: int) -> Array:
    """Weights `[D, W]` of a logistic regression for each column of the targets.

    Args:
      x: Design X, `[N, D]`; a row of zeros changes nothing, whatever its targets.
      y: Targets 0 or 1, `[N, W]`.
      penalty: Positive scalar; the loss is the sum over examples, plus
        `penalty |w|^2 / 2`.
      steps: Number of Newton's steps from zero, 1 or more.
    """
    num, width = x.shape
    gram = x @ x.T if num <= width else None

    def one(weight: Array, right: Array) -> Array:
        """Weights of a class, where `right` is `s z`."""
        if gram is None:
            matrix = (x * weight[:, None]).T @ x
            matrix = matrix + penalty * jnp.eye(width, dtype=x.dtype)
            return solve(matrix, (x.T @ right)[:, None])[:, 0]
        # Roots of the weights on both sides of the Gram matrix, and not inverses on its
        # diagonal, which are large where an example is confident.
        root = jnp.sqrt(weight)
        matrix = root[:, None] * gram * root[None]
        matrix = matrix + penalty * jnp.eye(num, dtype=x.dtype)
        return x.T @ (root * solve(matrix, (right / root)[:, None])[:, 0])

    def step(weights: Array, _: None) -> tuple[Array, None]:
        scores = x @ weights
        shares = jax.nn.sigmoid(scores)
        weight = jnp.maximum(shares * (1 - shares), LEAST)
        right = weight * scores + y - shares
        return jax.vmap(one, in_axes=1, out_axes=1)(weight, right), None

    # At zero every share is a half and every weight a quarter: targets of 2 and -2, and one
    # system for all classes.
    weights = ridge(x, 4 * y - 2, 4 * penalty)
    return loops.scan(step, weights, None, length=steps - 1)[0]
