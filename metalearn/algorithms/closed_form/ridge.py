"""Ridge regression of the classes on the embeddings of a support set.

L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi. Meta-learning with Differentiable
Closed-form Solvers. ICLR 2019: R2-D2.

K. Lee, S. Maji, A. Ravichandran, S. Soatto. Meta-Learning with Differentiable Convex
Optimization. CVPR 2019: the ridge regression among the heads of MetaOptNet.

Of R2-D2 the released code is followed (github.com/bertinetto/r2d2):

- Embeddings and targets of the support set are divided by the root of their number there.
  So the penalty on the weights is the number of examples times the regularisation. The bias
  is penalised as a weight is.
- The regularisation stays at 50 and scale and offset are learned there. Here
  `learn="all"` learns the regularisation too, by its logarithm.
- The scale starts at 10, as there for Omniglot and CIFAR-FS; for mini-ImageNet it is 1e-4.

Of MetaOptNet's ridge regression the released code is followed too
(github.com/kjunelee/MetaOptNet). Its objective has the linear term twice, so logits are two
times those of ridge regression. There is no bias, and the regularisation is not multiplied
by the number of examples.

Differences for both: masked rows do not count, and the system is solved by Cholesky's
factors and not by an inverse. What the other solvers of this family need of learned numbers
is here as well.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack, get_args

import jax.numpy as jnp

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
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key
from metalearn.inner.solve import solve

Learn = Literal["nothing", "calibration", "all"]


@takes_options(of=EMBEDDING)
def r2d2(
    encoder: Model,
    *,
    num_ways: int,
    regularisation: float = 50.0,
    scale: float = 10.0,
    offset: float = 0.0,
    learn: Learn = "calibration",
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by ridge regression, through whose solution the encoder learns.

    With embeddings and a column of ones in X `[N, D + 1]`, one-hot rows Y `[N, W]` and n
    valid examples: `W = (X'X + n regularisation I)^-1 X'Y`, and
    `logits = scale [f(x), 1] W + offset`. Where N is at most D + 1 the same weights come
    from the smaller system `W = X'(XX' + n regularisation I)^-1 Y`.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set get a logit that never wins.
      regularisation: Penalty on squared weights for each example; where training starts if
        it is learned.
      scale: Factor of the scores; where training starts if it is learned. A start that does
        not fit the size of the embeddings makes training stall.
      offset: Number added to all logits, which a softmax ignores.
      learn: Numbers that are learned: "nothing", "calibration" (scale and offset), or "all"
        three.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the weights `[D + 1, W]`, the last row being the
      bias. The paper trains with more ways than at test, and with a number of shots that
      differs from task to task.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.r2d2(ml.from_linen(ml.models.Conv4()), num_ways=20)
    """
    numbers = calibrated(regularisation, scale, offset, learn)

    def fit(params, support: Examples, *, key: Key | None = None) -> Array:
        penalty = numbers["regularisation"].read(params, support.x.dtype)
        num = jnp.maximum(support.mask.sum(), 1).astype(support.x.dtype)
        x = with_ones(support.x, support.mask)
        return ridge(x, members_of(support, num_ways), num * penalty)

    def score(params, weights: Array, x: Array) -> Array:
        return adjusted(numbers, params, x @ weights[:-1] + weights[-1:])

    head = exact(Head(fit=fit, score=score, init=init_of(numbers)))
    settings = {
        "regularisation": regularisation,
        "scale": scale,
        "offset": offset,
        "learn": learn,
    }
    return embedded("r2d2", encoder, head, num_ways=num_ways, settings=settings, **options)


@takes_options(of=EMBEDDING)
def metaoptnet_ridge(
    encoder: Model,
    *,
    num_ways: int,
    regularisation: float = 50.0,
    scale: float = 1.0,
    learn_scale: bool = True,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by twice the ridge regression without a bias, as MetaOptNet's code does.

    With embeddings X `[N, D]` and one-hot rows Y `[N, W]`:
    `W = 2 X'(XX' + regularisation I)^-1 Y` and `logits = scale f(x) W`.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set get a logit that never wins.
      regularisation: Penalty on squared weights, whatever the number of examples.
      scale: Factor of the logits; where training starts if it is learned.
      learn_scale: Whether the scale is learned.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the weights `[D, W]`.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.metaoptnet_ridge(ml.from_linen(ml.models.ResNet12()), num_ways=5)
    """
    checks.number("regularisation", regularisation, positive=True)
    checks.number("scale", scale, positive=True)
    numbers = {"scale": Number("scale", scale, learned=learn_scale)}

    def fit(params, support: Examples, *, key: Key | None = None) -> Array:
        penalty = jnp.asarray(regularisation, support.x.dtype)
        return 2 * ridge(support.x, members_of(support, num_ways), penalty)

    def score(params, weights: Array, x: Array) -> Array:
        return adjusted(numbers, params, x @ weights)

    head = exact(Head(fit=fit, score=score, init=init_of(numbers)))
    settings = {
        "regularisation": regularisation,
        "scale": scale,
        "learn_scale": learn_scale,
    }
    return embedded(
        "metaoptnet_ridge", encoder, head, num_ways=num_ways, settings=settings, **options
    )


def ridge(x: Array, y: Array, penalty: Array) -> Array:
    """Weights `[D, W]` that minimise `|X W - Y|^2 + penalty |W|^2`.

    Rows that are zero in x and y change nothing.

    Args:
      x: Design X, `[N, D]`.
      y: Targets Y, `[N, W]`.
      penalty: Positive scalar.
    """
    num, width = x.shape
    if num <= width:
        return x.T @ solve(x @ x.T + penalty * jnp.eye(num, dtype=x.dtype), y)
    return solve(x.T @ x + penalty * jnp.eye(width, dtype=x.dtype), x.T @ y)


def with_ones(x: Array, mask: Array) -> Array:
    """Rows with a column of ones for the bias, `[N, D + 1]`; masked rows stay zero."""
    return jnp.concatenate([x, mask[:, None].astype(x.dtype)], 1)


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of a head, which is a parameter of it or stays as it is.

    A positive number is learned by its logarithm, so that no step of an optimiser makes it
    negative.

    Attributes:
      name: Name of the argument; the parameter is `name`, or `log_name` if positive.
      start: Value, or the one that training starts with.
      learned: Whether it is a parameter.
      positive: Whether it has to be above 0.

    Raises:
      ValueError: the start is not finite, or not above 0 where it has to be.
    """

    name: str
    start: float
    learned: bool
    positive: bool = False

    def __post_init__(self) -> None:
        checks.number(
            self.name, self.start, positive=self.positive, signed=not self.positive
        )

    @property
    def parameter(self) -> str:
        """Name of the parameter."""
        return f"log_{self.name}" if self.positive else self.name

    def read(self, params: Mapping[str, Array], dtype: Any) -> Array:
        """The present value, a scalar."""
        if not self.learned:
            return jnp.asarray(self.start, dtype)
        value = params[self.parameter].astype(dtype)
        return jnp.exp(value) if self.positive else value


def init_of(numbers: Mapping[str, Number]) -> Callable[[Key, Any], dict[str, Array]] | None:
    """`Head.init` of a head whose parameters are numbers; `None` if none is learned."""
    starts = {
        n.parameter: math.log(n.start) if n.positive else n.start
        for n in numbers.values()
        if n.learned
    }

    def init(key: Key, like: Any) -> dict[str, Array]:
        del key
        return {name: jnp.asarray(start, like.dtype) for name, start in starts.items()}

    return init if starts else None


def calibrated(
    regularisation: float, scale: float, offset: float, learn: Learn
) -> dict[str, Number]:
    """The numbers of R2-D2 and of its logistic sibling.

    Raises:
      ValueError: a number is out of range, or `learn` unknown.
    """
    checks.one_of("learn", learn, get_args(Learn))
    checks.number("scale", scale, positive=True)
    both = learn != "nothing"
    numbers = (
        Number("regularisation", regularisation, learned=learn == "all", positive=True),
        Number("scale", scale, learned=both),
        Number("offset", offset, learned=both),
    )
    return {number.name: number for number in numbers}


def adjusted(
    numbers: Mapping[str, Number], params: Mapping[str, Array], scores: Array
) -> Array:
    """Logits from scores: multiplied by the scale, and the offset added if there is one."""
    logits = numbers["scale"].read(params, scores.dtype) * scores
    if "offset" not in numbers:
        return logits
    return logits + numbers["offset"].read(params, scores.dtype)
