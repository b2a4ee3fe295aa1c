"""A linear probe: multinomial logistic regression on frozen, normalised features.

It has no paper of its own. Y. Tian, Y. Wang, D. Krishnan, J. Tenenbaum, P. Isola
(Rethinking Few-Shot Image Classification: A Good Embedding Is All You Need? ECCV 2020) show
how far it goes. They stop scikit-learn's solver after 1,000 iterations. Here a fixed number
of Newton steps goes to the minimum, and the gradient that is left is reported. Their
self-distillation is left out.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import EMBEDDING, EmbeddingOptions, Head
from metalearn.algorithms.frozen.builder import pretrained
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, loops
from metalearn.core.learner import MetaLearner
from metalearn.core.losses import mask_absent, present_classes
from metalearn.core.model import Model
from metalearn.core.rows import unit
from metalearn.core.task import Examples
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array
from metalearn.inner.conjugate import conjugate_gradients

CONJUGATE_STEPS = 16  # directions of each Newton step
REACH = 8.0  # largest change of a logit in a step


@takes_options(of=EMBEDDING)
def linear_probe(
    encoder: Model,
    *,
    num_classes: int,
    num_ways: int,
    penalty: float = 1.0,
    num_steps: int = 12,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Fits logistic regression to the features of a classifier, normalised to length one.

    The minimum over W and b of `sum_i CE(z_i W + b, y_i) + penalty / 2 ||W||^2` with `z =
    f(x) / ||f(x)||`. It is unique up to a constant in b, and that of scikit-learn's
    `LogisticRegression(C=1 / penalty)`.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_classes: Number of training classes.
      num_ways: W, classes the logits have room for. Classes absent from a support set get a
        logit that never wins.
      penalty: Weight of half the squared length of W beside the sum of the losses.
      num_steps: Number of Newton steps; a small penalty needs more.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Probe`, whose `residual` tells how near the
      minimum is.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4())
      >>> learner = ml.linear_probe(encoder, num_classes=64, num_ways=5)
    """
    checks.number("penalty", penalty, positive=True)
    checks.whole_number("num_steps", num_steps, least=0)
    return pretrained(
        "linear_probe",
        encoder,
        logistic_head(num_ways, penalty=penalty, num_steps=num_steps),
        num_classes=num_classes,
        num_ways=num_ways,
        settings={"penalty": penalty, "num_steps": num_steps},
        **options,
    )


class Probe(NamedTuple):
    """Logistic regression of one task.

    Attributes:
      weights: Weights `[D + 1, W]`, of which the last row is b; zero for absent classes.
      residual: Length of the gradient, a scalar; 0 at the minimum.
    """

    weights: Array
    residual: Array


def logistic_head(num_ways: int, *, penalty: float, num_steps: int) -> Head:
    """Multinomial logistic regression to convergence, by Newton's method.

    The systems of equations are solved by conjugate gradients, which need products with
    the Hessian alone: with many classes it would be too large to factor.
    """

    def fit(params, support: Examples, *, key=None) -> Probe:
        x = jnp.where(support.mask[:, None], _with_one(unit(support.x)), 0)
        target = jax.nn.one_hot(support.y, num_ways, dtype=x.dtype)
        present = present_classes(support, num_ways)
        # Nothing is asked of b.
        ridge = jnp.full((x.shape[1], 1), penalty, x.dtype).at[-1].set(0)

        def chances(weights: Array) -> Array:
            return jax.nn.softmax(mask_absent(x @ weights, present))

        def slope(weights: Array, p: Array) -> Array:
            found = x.T @ (p - target) + ridge * weights
            # Its rows sum to 0. What rounding makes of that would send conjugate gradients
            # far along the direction in which the loss is flat: the same for all classes.
            return jnp.where(
                present[None], found - masked_mean(found.T, present)[:, None], 0
            )

        def step(weights: Array, _: None) -> tuple[Array, None]:
            p = chances(weights)
            gradient = slope(weights, p)

            def product(v: Array) -> Array:
                u = p * (x @ v)
                return x.T @ (u - p * u.sum(-1, keepdims=True)) + ridge * v

            way = -conjugate_gradients(product, gradient, max_steps=CONJUGATE_STEPS).x
            # Where chances are 0 and 1 up to rounding, nothing curves the loss and a step
            # would have no end.
            reach = jnp.max(jnp.abs(x @ way))
            return weights + way / jnp.maximum(reach / REACH, 1), None

        start = jnp.zeros((x.shape[1], num_ways), x.dtype)
        weights, _ = loops.scan(step, start, None, length=num_steps)
        gradient = slope(weights, chances(weights))
        return Probe(weights, jnp.sqrt(jnp.sum(jnp.square(gradient))))

    def score(params, probe: Probe, x: Array) -> Array:
        return _with_one(unit(x)) @ probe.weights

    return Head(fit=fit, score=score)


def _with_one(x: Array) -> Array:
    """A last feature of one, for b."""
    return jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
