"""Prototypical networks: a class is the mean of its support embeddings.

J. Snell, K. Swersky, R. Zemel. Prototypical Networks for Few-shot Learning. NeurIPS 2017.
"""

from __future__ import annotations

from typing import Unpack

import jax.numpy as jnp

from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    class_means,
    embedded,
)
from metalearn.algorithms.options import takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.types import Array


@takes_options(of=EMBEDDING)
def protonet(
    encoder: Model,
    *,
    num_ways: int,
    scale: float = 1.0,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by the squared Euclidean distance to class prototypes.

    `c_k = mean of f(x_i) over y_i = k`; `logit_k = -scale ||f(x) - c_k||^2` (equations 1
    and 2). The term `||f(x)||^2`, common to all classes, is left out: softmax ignores it
    and it costs digits.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set get a logit that never wins.
      scale: Multiplies the distances; use `1 / D` for wide embeddings.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the prototypes `[W, D]`. The paper trains with
      more ways than at test (60 on Omniglot) and the shots of the test.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.protonet(ml.from_linen(ml.models.Conv4()), num_ways=20)
    """
    checks.number("scale", scale, positive=True)

    def score(params, means: Array, x: Array) -> Array:
        return -scale * (jnp.sum(jnp.square(means), -1)[None] - 2 * x @ means.T)

    head = Head(
        fit=lambda params, support, *, key=None: class_means(support, num_ways), score=score
    )
    settings = {"scale": scale}
    return embedded(
        "protonet", encoder, head, num_ways=num_ways, settings=settings, **options
    )
