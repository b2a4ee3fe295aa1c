"""Numbers that are reported: accuracy, directions, means with intervals, calibration."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, losses
from metalearn.core.task import Examples
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, LossFn

# Whether more is better, by the last part of a metric's name ("query/loss": "loss").
HIGHER_IS_BETTER = {
    "accuracy": True,
    "calibration_error": False,
    "error": False,
    "log_likelihood": True,
    "loss": False,
    "mae": False,
    "mse": False,
    "multi_step_loss": False,
    "nll": False,
    "objective": False,
    "rmse": False,
}


def higher_is_better(name: str, said: bool | None = None) -> bool:
    """Whether more of a metric is better.

    Args:
      name: Name of the metric, such as "query/accuracy".
      said: Direction that the caller says; `None` for that of `HIGHER_IS_BETTER`.

    Raises:
      ValueError: neither the caller nor the table says it, or `said` is no bool.
    """
    if said is None:
        said = HIGHER_IS_BETTER.get(str(name).rpartition("/")[2])
    if said is None:
        raise ValueError(
            f"whether more of the metric {name!r} is better is not known; known are "
            f"{', '.join(HIGHER_IS_BETTER)}, after any prefix. Correct the name, or say "
            "higher_is_better=True or False."
        )
    if not isinstance(said, (bool, np.bool_)):
        raise ValueError(f"higher_is_better is {said!r}; expected True, False or None.")
    return bool(said)


def accuracy(logits: Array, examples: Examples) -> Array:
    """Share of valid examples whose largest logit is their class, in 0..1.

    Ties count as one over the number of tied classes, so that a constant predictor
    scores exactly `1 / W`.

    Args:
      logits: Float `[N, W]`.
      examples: Class indices `y` int `[N]`, `mask` `[N]`.

    Example:
      >>> logits = jnp.array([[2.0, 1.0], [0.0, 0.0]])  # the second is a tie
      >>> examples = ml.Examples.of(jnp.zeros((2, 1)), jnp.array([0, 1]))
      >>> float(ml.metrics.accuracy(logits, examples))
      0.75
    """
    best = logits == jnp.max(logits, axis=-1, keepdims=True)
    hit = jnp.take_along_axis(best, examples.y[:, None], axis=-1)[:, 0]
    # An index outside would be filled with True and count as a hit.
    hit = hit & (examples.y >= 0) & (examples.y < logits.shape[-1])
    tied = jnp.maximum(jnp.sum(best, axis=-1), 1)
    share = hit.astype(logits.dtype) / tied.astype(logits.dtype)
    return masked_mean(share, examples.mask)


def of_task(loss_fn: LossFn, outputs: Array, examples: Examples) -> dict[str, Array]:
    """Loss of one task, and accuracy where targets are class indices.

    Returns:
      `{"loss": scalar}` and, for integer `y` `[N]` with logits `[N, W]`, `"accuracy"`.
    """
    result = {"loss": loss_fn(outputs, examples)}
    y = examples.y
    classes = hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.integer)
    if classes and y.ndim == 1 and getattr(outputs, "ndim", 0) == 2:
        result["accuracy"] = accuracy(outputs, examples)
    return result


def mean_ci95(values) -> tuple[float, float]:
    """Mean over tasks and the half-width of its 95 % interval.

    `1.96 * std(ddof=1) / sqrt(T)`. The interval covers the sampling of tasks only, not
    training seeds.

    Args:
      values: `[T]`, one number a task, `T >= 2`.

    Example:
      >>> mean, half = ml.metrics.mean_ci95([0.0, 1.0, 2.0, 1.0])
      >>> mean, round(half, 3)
      (1.0, 0.8)
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(
            f"mean_ci95 got values of shape {values.shape}; expected [T] with T >= 2."
        )
    half = 1.96 * values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean()), float(half)


def default_loss(examples: Examples) -> LossFn:
    """Cross-entropy for integer targets, mean squared error for real ones."""
    if jnp.issubdtype(jnp.result_type(examples.y), jnp.integer):
        return losses.cross_entropy
    return losses.mse


def calibration_error(probabilities, labels, *, num_bins: int = 15) -> float:
    """Expected calibration error: how far confidence is from accuracy, in 0..1.

    Predictions are put into `num_bins` equal bins of confidence, the largest probability;
    the error is the mean over predictions of `|accuracy - mean confidence|` of their bin
    (Guo, Pleiss, Sun, Weinberger 2017, equation 3). Pool the queries of many tasks: a
    single task has too few for bins, and the error of few predictions is biased upwards.

    Args:
      probabilities: `[P, W]`, rows sum to one.
      labels: Class indices `[P]`.
      num_bins: Number of bins.

    Raises:
      ValueError: shapes do not fit, nothing is predicted, rows are no probabilities,
        labels are no classes, or there are no bins.

    Example:
      >>> ml.metrics.calibration_error([[0.75, 0.25], [0.5, 0.5]], [0, 1])
      0.375
    """
    checks.whole_number("num_bins", num_bins, least=1)
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    shaped = probabilities.ndim == 2 and labels.shape == probabilities.shape[:1]
    if not shaped or not probabilities.size:
        raise ValueError(
            f"calibration_error got probabilities {probabilities.shape} and labels "
            f"{labels.shape}; expected [P, W] and [P], with one prediction or more."
        )
    ways = probabilities.shape[1]
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= ways:
        raise ValueError(
            f"calibration_error got labels of dtype {labels.dtype} from {labels.min()} to "
            f"{labels.max()}; expected class indices 0..{ways - 1}."
        )
    sums = probabilities.sum(-1)
    if not (np.all(probabilities >= 0) and np.allclose(sums, 1, atol=1e-3)):
        raise ValueError(
            "calibration_error got rows that are no probabilities (sums from "
            f"{sums.min():.3g} to {sums.max():.3g}); give softmax(logits)."
        )
    confidence = probabilities.max(-1)
    hit = probabilities.argmax(-1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gap = np.bincount(bins, weights=hit - confidence, minlength=num_bins)
    return float(np.abs(gap).sum() / len(labels))
