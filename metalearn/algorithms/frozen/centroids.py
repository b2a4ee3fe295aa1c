"""Nearest centroids and nearest neighbours among frozen features.

The classifier of the training classes is linear here, and the image it is trained on is
seen as it is: no label smoothing, no mixed or cut images.

*SimpleShot*. Y. Wang, W.-L. Chao, K. Q. Weinberger, L. van der Maaten. SimpleShot:
Revisiting Nearest-Neighbor Classification for Few-Shot Learning. arXiv 1911.04623, 2019.
The paper takes the mean over the training images by the trained network. Here it is a
running average over the tasks of meta-training: the plain mean over its first hundred outer
steps, and afterwards one that forgets within a hundred. So it is of the network that it
was some steps ago, in training mode (statistics of the batch, dropout), it counts tasks and
not images alike, and it is noisy by the images of a hundred steps. It settles with the rate
of the outer optimiser.

*Classifier-Baseline*. Y. Chen, Z. Liu, H. Xu, T. Darrell, X. Wang. Meta-Baseline: Exploring
Simple Meta-Learning for Few-Shot Learning. ICCV 2021. `meta_baseline` goes on from it.

*Nearest neighbours* have no paper of their own; Wang et al. compare with them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Unpack, get_args

import jax.numpy as jnp

from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    Head,
    class_means,
    members_of,
)
from metalearn.algorithms.frozen.builder import pretrained
from metalearn.algorithms.options import takes_options
from metalearn.core import checks
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model
from metalearn.core.rows import unit
from metalearn.core.task import Examples
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array

Transform = Literal["UN", "L2N", "CL2N"]
Distance = Literal["cosine", "euclidean"]


@takes_options(of=EMBEDDING)
def simple_shot(
    encoder: Model,
    *,
    num_classes: int,
    num_ways: int,
    transform: Transform = "CL2N",
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by the nearest class mean of centred, normalised features of a classifier.

    `z = (f(x) - m) / ||f(x) - m||`, `c_k = mean of z_i over y_i = k`, `logit_k = -||z -
    c_k||^2`, where m is the mean feature of meta-training and c_k is not normalised again.
    The term `||z||^2`, common to all classes, is left out.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_classes: Number of training classes.
      num_ways: W, classes the logits have room for. Classes absent from a support set get a
        logit that never wins.
      transform: Form of the features: "UN" as they are, "L2N" of length one, "CL2N" centred
        and then of length one.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Means`, and `variables.state["mean"]` is m.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4())
      >>> learner = ml.simple_shot(encoder, num_classes=64, num_ways=5)
    """
    checks.one_of("transform", transform, get_args(Transform))
    return pretrained(
        "simple_shot",
        encoder,
        euclidean_head(num_ways, normalised=transform != "UN"),
        num_classes=num_classes,
        num_ways=num_ways,
        settings={"transform": transform},
        centred=transform == "CL2N",
        **options,
    )


@takes_options(of=EMBEDDING)
def nearest_centroid(
    encoder: Model,
    *,
    num_classes: int,
    num_ways: int,
    scale: float = 10.0,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by the cosine to class means of features that a classifier has learned.

    `c_k = mean of f(x_i) over y_i = k`, `logit_k = scale cos(f(x), c_k)`.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_classes: Number of training classes.
      num_ways: W, classes the logits have room for. Classes absent from a support set get a
        logit that never wins.
      scale: Factor of the cosines, which changes probabilities and no decision.
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` are the centroids `[W, D]`, of length one.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4())
      >>> learner = ml.nearest_centroid(encoder, num_classes=64, num_ways=5)
    """
    checks.number("scale", scale, positive=True)
    return pretrained(
        "nearest_centroid",
        encoder,
        cosine_head(num_ways, scale=scale),
        num_classes=num_classes,
        num_ways=num_ways,
        settings={"scale": scale},
        **options,
    )


@takes_options(of=EMBEDDING)
def nearest_neighbours(
    encoder: Model,
    *,
    num_classes: int,
    num_ways: int,
    k: int = 1,
    distance: Distance = "cosine",
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Classifies by a vote of the nearest support features of a trained classifier.

    `logit_c = votes of class c - share_c / 2`, where `share_c` is what the voters of class
    c have of the distances of all voters. So of classes with equally many votes the one
    wins whose voters are nearer, and no other decision changes. An example as near as the
    k-th one votes too. With fewer than k support examples all vote.

    Args:
      encoder: Network from inputs to embeddings `[N, D]`.
      num_classes: Number of training classes.
      num_ways: W, classes the logits have room for. Classes absent from a support set get a
        logit that never wins.
      k: Number of neighbours that vote.
      distance: Distance of features: "cosine" (`1 - cos`) or "euclidean".
      **options: See `EmbeddingOptions`.

    Returns:
      A `MetaLearner`; `adapted.fitted` is a `Neighbours`.

    Raises:
      ValueError: an option is out of range.

    Example:
      >>> encoder = ml.from_linen(ml.models.Conv4())
      >>> learner = ml.nearest_neighbours(encoder, num_classes=64, num_ways=5, k=3)
    """
    checks.whole_number("k", k, least=1)
    checks.one_of("distance", distance, get_args(Distance))
    return pretrained(
        "nearest_neighbours",
        encoder,
        neighbour_head(num_ways, k=k, distance=distance),
        num_classes=num_classes,
        num_ways=num_ways,
        settings={"k": k, "distance": distance},
        **options,
    )


class Means(NamedTuple):
    """The class means of a support set.

    Attributes:
      means: Class means `[W, D]`, seen from the centre.
      centre: Mean of the support features, `[D]`.
    """

    means: Array
    centre: Array


def euclidean_head(num_ways: int, *, normalised: bool) -> Head:
    """The nearest class mean, of embeddings as they are or of length one."""
    shaped = unit if normalised else lambda x: x

    def fit(params, support: Examples, *, key=None) -> Means:
        x, centre = _centred(shaped(support.x), support.mask)
        return Means(class_means(_with(support, x), num_ways), centre)

    def score(params, found: Means, x: Array) -> Array:
        apart = shaped(x) - found.centre[None]
        return 2 * apart @ found.means.T - jnp.sum(jnp.square(found.means), -1)[None]

    return Head(fit=fit, score=score)


def cosine_head(num_ways: int, *, scale: float, learned: bool = False) -> Head:
    """Cosines to class means, times a scale, which may be the parameter `scale`."""

    def fit(params, support: Examples, *, key=None) -> Array:
        # Of the mean, and not the mean of what is of length one already.
        return unit(class_means(support, num_ways))

    def score(params, means: Array, x: Array) -> Array:
        factor = params["scale"] if learned else scale
        return factor * (unit(x) @ means.T)

    def init(key, like):
        return {"scale": jnp.asarray(scale, like.dtype)}

    return Head(fit=fit, score=score, init=init if learned else None)


class Neighbours(NamedTuple):
    """The support set of nearest neighbours.

    Attributes:
      x: Features `[N, D]`; of length one where cosines compare them, else seen from the
        centre.
      members: Which example is of which class, one-hot `[N, W]`; rows of zeros where
        masked.
      centre: Mean of the support features, `[D]`, which cosines do not use.
    """

    x: Array
    members: Array
    centre: Array


def neighbour_head(num_ways: int, *, k: int, distance: Distance) -> Head:
    """A vote of the nearest examples."""
    cosine = distance == "cosine"

    def fit(params, support: Examples, *, key=None) -> Neighbours:
        members = members_of(support, num_ways)
        x, centre = _centred(support.x, support.mask)
        return Neighbours(unit(support.x) if cosine else x, members, centre)

    def score(params, found: Neighbours, x: Array) -> Array:
        valid = found.members.any(-1)
        apart = (
            _cosine(found.x, x) if cosine else _euclidean(found.x, x - found.centre[None])
        )
        apart = jnp.where(valid[None], apart, jnp.inf)
        # What is as near as the k-th one votes too, or the order of rows would decide.
        furthest = jnp.sort(apart, axis=-1)[:, min(k, apart.shape[1]) - 1]
        near = valid[None] & (apart <= furthest[:, None])
        votes = near.astype(x.dtype) @ found.members
        # To be told of: comparisons take what is not a number for far.
        lost = jnp.isnan(apart).any(-1, keepdims=True)
        votes = jnp.where(lost, jnp.nan, votes)
        length = jnp.where(near, apart, 0) @ found.members
        total = length.sum(-1, keepdims=True)
        return votes - 0.5 * length / jnp.where(total > 0, total, 1)

    return Head(fit=fit, score=score)


def _cosine(support: Array, x: Array) -> Array:
    """One minus the cosines of queries to support features of length one, `[Q, N]`."""
    return jnp.maximum(1 - unit(x) @ support.T, 0)


def _euclidean(support: Array, x: Array) -> Array:
    """Distances of queries to support features, `[Q, N]`."""
    lengths = jnp.sum(jnp.square(x), -1)[:, None] + jnp.sum(jnp.square(support), -1)[None]
    squares = lengths - 2 * x @ support.T
    # The derivative of a root is infinite at 0.
    none = squares <= 0
    return jnp.where(none, 0, jnp.sqrt(jnp.where(none, 1, squares)))


def _centred(x: Array, mask: Array) -> tuple[Array, Array]:
    """Rows seen from the mean of the valid ones, and that mean.

    Distances are differences of squares, which have no digits left where all rows lie far
    from zero and near one another.
    """
    centre = masked_mean(x, mask)
    return x - centre[None], centre


def _with(examples: Examples, x: Array) -> Examples:
    return Examples(x=x, y=examples.y, mask=examples.mask)
