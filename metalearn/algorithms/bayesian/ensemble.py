"""One prediction from those of several parameters of a network, or each by itself."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from metalearn.core import trees
from metalearn.core.types import Array, Key, PyTree

Combine = Literal["probabilities", "mean"]
COMBINE: tuple[str, ...] = get_args(Combine)


def check_combine(combine: Combine) -> None:
    """Raises a `ValueError` unless `combine` is one of `COMBINE`."""
    if combine not in COMBINE:
        raise ValueError(
            f"combine is {combine!r}; expected one of {', '.join(COMBINE)}: the first for "
            "classification, the second for regression."
        )


def combine_outputs(outputs: Array, combine: Combine) -> Array:
    """The prediction of a uniform mixture.

    Args:
      outputs: Outputs of M members (samples, particles), `[M, Q, ...]`.
      combine: "probabilities" for logits `[M, Q, W]`: the logarithm of the mean of their
        probabilities, whose cross-entropy is the negative log-likelihood of the mixture;
        "mean" for regression: the mean of the mixture.

    Returns:
      `[Q, ...]`. One member's logits come back as log-probabilities.

    Raises:
      ValueError: `combine` is neither, or "probabilities" gets outputs that are no logits.
    """
    check_combine(combine)
    trees.one_array(outputs, "the output of the network", "to be combined over members")
    if combine == "mean":
        return jnp.mean(outputs, axis=0)
    if outputs.ndim < 3 or outputs.shape[-1] < 2:
        raise ValueError(
            f"combine='probabilities' got outputs of shape {outputs.shape[1:]}; expected "
            "logits [Q, W] of two classes or more. Use combine='mean' for regression."
        )
    each = jax.nn.log_softmax(outputs, axis=-1)
    return jax.nn.logsumexp(each, axis=0) - jnp.log(outputs.shape[0])


def members(learner: Any, adapted: Any, x: PyTree, *, key: Key | None = None) -> Array:
    """The predictions of each sample by itself, e.g. for the likelihood of a mixture.

    Args:
      learner: A `MetaLearner` whose adapted object has a leading axis M on every leaf,
        but for the classes that are present: all weights are sampled.
      adapted: Adapted object of the learner.
      x: Inputs, leaves `[Q, ...]`.
      key: Key of `predict`.

    Returns:
      `[M, Q, ...]`; log-probabilities where predictions are.

    Raises:
      ValueError: leaves have no common leading axis, e.g. weights that samples share.
    """
    present = getattr(adapted, "present", None)  # [W], the same for all members
    sampled = adapted if present is None else adapted.replace(present=None)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(sampled)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            f"leading axes of the adapted object are {sorted(sizes)}; expected one number "
            "of samples on every leaf. Make a learner whose samples share no weights "
            "(adapt_filter=None) and that draws some (num_samples)."
        )

    def one(member: Any) -> Array:
        alone = jax.tree.map(lambda leaf: leaf[None], member)
        if present is not None:
            alone = alone.replace(present=present)
        return learner.predict(alone, x, key=key)

    return jax.vmap(one)(sampled)


def joint_loss(each: Array, num: Array | int) -> Array:
    """The loss of a whole query set under a uniform mixture, a query.

    Minus `log mean_m prod_q p_m(y_q)`, over Q: all queries under one member, then averaged
    over members (the likelihood of J. Yoon et al., Bayesian Model-Agnostic Meta-Learning,
    NeurIPS 2018). `combine_outputs` averages query by query; members that disagree about
    a task, each consistent in itself, gain nothing there and much here.

    Args:
      each: Mean negative log-likelihood of the queries under each member, `[M]`.
      num: Q; none counts as one.
    """
    num = jnp.maximum(num, 1)
    total = jax.nn.logsumexp(-num * each) - jnp.log(each.shape[0])
    return -total / num
