"""FEAT: the prototypes of a task are adapted together by self-attention.

H.-J. Ye, H. Hu, D.-C. Zhan, F. Sha. Few-Shot Learning via Embedding Adaptation with
Set-to-Set Functions. CVPR 2020. Of its set functions this is the transformer. Differences:

- The paper trains the encoder as a classifier of the base classes first, and then the set
  function at ten times the encoder's rate. Here both are as the user trains them.
- Dropout of what attention adds is on in training alone, as in the released code. Dropout
  of the attention itself, at a rate of 0.1 there, is left out, as is the bias of the last
  layer. The reported "query/loss" is the one without dropout.
- Classes may have different numbers of support examples and queries, in the auxiliary loss
  too.
"""

from __future__ import annotations

from typing import Literal, Unpack, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
from metalearn.core.losses import cross_entropy, mask_absent, present_classes
from metalearn.core.model import Model
from metalearn.core.rows import unit
from metalearn.core.task import Examples, concatenate
from metalearn.core.types import Array, Key, PyTree

Metric = Literal["euclidean", "cosine"]
SETS_APART = 2**24  # more than the rows of any set

# The usual variance loses the digits of a small spread around a large mean.
_NORM = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)


@takes_options(of=EMBEDDING)
def feat(
    encoder: Model,
    *,
    num_ways: int,
    metric: Metric = "euclidean",
    temperature: float = 64.0,
    auxiliary: float = 1.0,
    auxiliary_temperature: float = 16.0,
    dropout: float = 0.5,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by distances to class means that attend to one another.

    The class means P `[W, D]` become `P' = LN(P + drop(A P V O))`, where `A = softmax(P Q
    (P K)' / sqrt(D))` over the classes of the task. `logit_c = -|f(x) - P'_c|^2 /
    temperature`, without the term that all classes share; the query is not adapted.

    In training the same block is applied to all examples of one class, support and query,
    and `m_c` is the mean of what it gives. The loss is the cross-entropy of the queries and
    `auxiliary` times that of all examples e by the logits `-|e - m_c|^2 /
    auxiliary_temperature`. The defaults are the paper's for one shot and four layers; with
    five shots its `auxiliary` is 0.1 and its temperatures are 32 and 64.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_ways: W, classes the logits have room for: the largest number in training or at
        test. Classes absent from a support set attract no attention and get a logit that
        never wins.
      metric: "euclidean"; or "cosine" for `logit_c = f(x) P'_c / |P'_c| / temperature`, in
        which the query keeps its length.
      temperature: Divides the distances.
      auxiliary: Weight of the loss by the centres of support and query together.
      auxiliary_temperature: Divides the distances of that loss.
      dropout: Share of what attention adds that is dropped in training, below 1.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the adapted prototypes `[W, D]`.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> learner = ml.feat(ml.from_linen(ml.models.Conv4()), num_ways=20)
    """
    checks.one_of("metric", metric, get_args(Metric))
    checks.number("temperature", temperature, positive=True)
    checks.number("auxiliary", auxiliary)
    checks.number("auxiliary_temperature", auxiliary_temperature, positive=True)
    checks.number("dropout", dropout)
    if dropout >= 1:
        raise ValueError(f"dropout is {dropout!r}; expected a number from 0 to below 1.")

    def adapted(params: PyTree, support: Examples, drop: Array | None = None) -> Array:
        means, present = class_means(support, num_ways), present_classes(support, num_ways)
        among = jnp.broadcast_to(present[None], (num_ways, num_ways))
        return _attend(params, means, among, drop)

    def fit(params: PyTree, support: Examples, *, key: Key | None = None) -> Array:
        return adapted(params, support)

    def score(params: PyTree, prototypes: Array, x: Array) -> Array:
        return _similarity(prototypes, x, metric) / temperature

    def loss(params, prototypes, support: Examples, query: Examples, logits, *, key):
        both, drop = concatenate(support, query), None
        if dropout:
            sizes = (num_ways, support.x.shape[0], query.x.shape[0])
            drop = _dropping(key, sizes, both.x, dropout)
            prototypes = adapted(params, support, drop[:num_ways])
            logits = score(params, prototypes, query.x)
            logits = mask_absent(logits, present_classes(support, num_ways))
            drop = drop[num_ways:]
        loss = cross_entropy(logits, query)
        if not auxiliary:
            return loss, {}
        among = (both.y[:, None] == both.y[None]) & both.mask[None]
        rows = _attend(params, both.x, among, drop)
        centres = class_means(Examples(x=rows, y=both.y, mask=both.mask), num_ways)
        each = _similarity(centres, both.x, metric) / auxiliary_temperature
        each = mask_absent(each, present_classes(both, num_ways))
        apart = cross_entropy(each, both)
        return loss + auxiliary * apart, {"auxiliary/loss": apart}

    head = Head(fit=fit, score=score, init=_init, loss=loss)
    settings = {
        "metric": metric,
        "temperature": temperature,
        "auxiliary": auxiliary,
        "auxiliary_temperature": auxiliary_temperature,
        "dropout": dropout,
    }
    return embedded("feat", encoder, head, num_ways=num_ways, settings=settings, **options)


def _init(key: Key, like: Array) -> PyTree:
    """Parameters of the block, without biases but that of the layer norm."""
    size, dtype = like.shape[-1], like.dtype
    draw = nn.initializers.glorot_normal()
    keys = jax.random.split(key, 4)
    names = ("query", "key", "value", "output")
    params = {n: draw(k, (size, size), dtype) for n, k in zip(names, keys)}
    norm = {"scale": jnp.ones((size,), dtype), "bias": jnp.zeros((size,), dtype)}
    return {**params, "norm": norm}


def _attend(params: PyTree, rows: Array, among: Array, drop: Array | None) -> Array:
    """Rows `[M, D]` after one block of self-attention.

    Args:
      params: Parameters of the block.
      rows: Rows `[M, D]`.
      among: Rows that each row attends to, bool `[M, M]`.
      drop: Factors `[M, D]` of what attention adds; `None` for ones.
    """
    scores = (rows @ params["query"]) @ (rows @ params["key"]).T / rows.shape[-1] ** 0.5
    # Finite, since a row of -inf alone has no softmax.
    scores = jnp.where(among, scores, jnp.finfo(scores.dtype).min)
    added = jax.nn.softmax(scores, axis=-1) @ (rows @ params["value"]) @ params["output"]
    if drop is not None:
        added = added * drop
    return _NORM.apply({"params": params["norm"]}, rows + added)


def _dropping(key: Key, sizes: tuple[int, ...], like: Array, rate: float) -> Array:
    """Factors 0 or `1 / (1 - rate)` for the rows of some sets, one after the other.

    Each row draws by its number in its set, so that padding changes no other row's factors.

    Args:
      key: Key of the draws.
      sizes: Numbers of rows of the sets.
      like: Rows `[M, D]`, whose D and dtype the factors have.
      rate: Share of zeros.
    """
    numbers = [SETS_APART * i + np.arange(size) for i, size in enumerate(sizes)]
    row = lambda i: jax.random.bernoulli(
        jax.random.fold_in(key, i), 1 - rate, like.shape[1:]
    )
    kept = jax.vmap(row)(np.concatenate(numbers).astype(np.uint32))
    return kept.astype(like.dtype) / (1 - rate)


def _similarity(centres: Array, x: Array, metric: Metric) -> Array:
    """Logits `[Q, W]` at temperature 1."""
    if metric == "euclidean":
        return 2 * x @ centres.T - jnp.sum(jnp.square(centres), -1)[None]
    return x @ unit(centres).T
