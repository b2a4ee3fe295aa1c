"""One prediction from those of several parameters of a network."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from metalearn._typing import Array

COMBINE = ("probabilities", "mean")


def combine_outputs(outputs: Array, combine: str) -> Array:
    """The prediction of a uniform mixture.

    Args:
      outputs: `[M, Q, ...]`, of M members (samples, particles).
      combine: "probabilities" for logits `[M, Q, W]`: the logarithm of the mean of their
        probabilities, whose cross-entropy is the negative log-likelihood of the mixture;
        "mean" for regression: the mean of the mixture.

    Returns:
      `[Q, ...]`. One member's logits come back as log-probabilities.

    Raises:
      ValueError: `combine` is neither, or "probabilities" gets outputs that are no logits.
    """
    if combine == "mean":
        return jnp.mean(outputs, axis=0)
    if combine == "probabilities":
        if outputs.ndim < 3 or outputs.shape[-1] < 2:
            raise ValueError(
                f"combine='probabilities' got outputs of shape {outputs.shape[1:]}; "
                "expected logits [Q, W] of two classes or more. Use combine='mean' for "
                "regression."
            )
        each = jax.nn.log_softmax(outputs, axis=-1)
        return jax.nn.logsumexp(each, axis=0) - jnp.log(outputs.shape[0])
    raise ValueError(f"combine is {combine!r}; expected one of {', '.join(COMBINE)}.")
