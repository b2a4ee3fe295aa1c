"""MetaOptNet: a support vector machine on the embeddings, and derivatives of its solution.

K. Lee, S. Maji, A. Ravichandran, S. Soatto. Meta-Learning with Differentiable Convex
Optimization. CVPR 2019.

Differences from the paper and its released code (github.com/kjunelee/MetaOptNet):

- The solver is that of `closed_form.svm`. There it is an interior-point method, of 15
  iterations in training and 3 at test.
- `diagonal` is added to the diagonal of the Gram matrix. The paper's problem has none, and
  its code, which gave the published numbers, adds 1, as the default here does.
- Classes without an example take no part in the problem, and masked rows do not count.
- Label smoothing is a matter of the loss, and is left out here.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax.numpy as jnp

from metalearn.algorithms.closed_form.ridge import Number, adjusted, init_of
from metalearn.algorithms.closed_form.svm import crammer_singer
from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    embedded,
    exact,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, losses
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key


class Machine(NamedTuple):
    """The support vector machine of a task.

    Attributes:
      weights: Weights of the classes, `[D, W]`.
      alpha: Dual variables, `[N, W]`.
      residual: Largest violation of the conditions of optimality, a scalar, where 1 is the
        margin. Above some 1e-3 the solver needs more iterations.
    """

    weights: Array
    alpha: Array
    residual: Array


@takes_options(of=EMBEDDING)
def metaoptnet(
    encoder: Model,
    *,
    num_ways: int,
    cost: float = 0.1,
    diagonal: float = 1.0,
    iterations: int = 60,
    scale: float = 1.0,
    learn_scale: bool = True,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by a support vector machine, through whose solution the encoder learns.

    `alpha` `[N, W]` solves the dual problem of Crammer and Singer on the embeddings X:
    it maximises `sum_i alpha_i^{y_i} - sum_k |X' alpha^k|^2 / 2` where for each example i
    `sum_k alpha_i^k = 0`, `alpha_i^{y_i} <= cost` and `alpha_i^k <= 0` for other k. Then
    `logits_k = scale f(x) X' alpha^k`.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set get a logit that never wins.
      cost: C, the price of an example that misses its margin by 1.
      diagonal: Number added to the diagonal of the Gram matrix. 0 is the problem of the
        paper; 1, as in its code, makes the solution unique and the solver precise.
      iterations: Number of iterations of the solver; `support/residual` of training shows
        whether they suffice.
      scale: Factor of the logits; where training starts if it is learned.
      learn_scale: Whether the scale is learned.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Machine`. Training has the metric
      `support/residual`. The paper trains with more shots than at test: 15 on
      mini-ImageNet.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.metaoptnet(ml.from_linen(ml.models.ResNet12()), num_ways=5)
    """
    checks.number("cost", cost, positive=True)
    checks.number("diagonal", diagonal)
    checks.whole_number("iterations", iterations, least=1)
    checks.number("scale", scale, positive=True)
    numbers = {"scale": Number("scale", scale, learned=learn_scale)}

    def fit(params, support: Examples, *, key: Key | None = None) -> Machine:
        x = support.x
        gram = x @ x.T + diagonal * jnp.eye(x.shape[0], dtype=x.dtype)
        dual = crammer_singer(
            gram,
            support.y,
            support.mask,
            num_ways=num_ways,
            cost=cost,
            iterations=iterations,
        )
        return Machine(weights=x.T @ dual.alpha, alpha=dual.alpha, residual=dual.residual)

    def score(params, machine: Machine, x: Array) -> Array:
        return adjusted(numbers, params, x @ machine.weights)

    def loss(params, machine: Machine, support, query: Examples, logits, *, key: Key):
        report = {"support/residual": machine.residual}
        return losses.cross_entropy(logits, query), report

    head = exact(Head(fit=fit, score=score, init=init_of(numbers), loss=loss))
    settings = {
        "cost": cost,
        "diagonal": diagonal,
        "iterations": iterations,
        "scale": scale,
        "learn_scale": learn_scale,
    }
    return embedded(
        "metaoptnet", encoder, head, num_ways=num_ways, settings=settings, **options
    )
