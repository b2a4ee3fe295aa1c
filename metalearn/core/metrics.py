"""Numbers that are reported: accuracy, directions, means with intervals, calibration."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, labels, losses
from metalearn.core.choices import choice_ndcg as choice_ndcg  # part of `ml.metrics`
from metalearn.core.choices import hit_rate as hit_rate
from metalearn.core.pairing import paired
from metalearn.core.ranking import auc as auc
from metalearn.core.ranking import mae as mae
from metalearn.core.ranking import ndcg as ndcg
from metalearn.core.task import Examples
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, LossFn

# Whether more is better, by the last part of a metric's name ("query/loss": "loss"), what
# follows an @ left out ("query/ndcg@3": "ndcg").
HIGHER_IS_BETTER = {
    "accuracy": True,
    "auc": True,
    "calibration_error": False,
    "choice_ndcg": True,
    "error": False,
    "f1": True,
    "hit_rate": True,
    "log_likelihood": True,
    "loss": False,
    "macro_accuracy": True,
    "mae": False,
    "mse": False,
    "multi_step_loss": False,
    "ndcg": True,
    "nll": False,
    "objective": False,
    "return": True,
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
        said = HIGHER_IS_BETTER.get(str(name).rpartition("/")[2].partition("@")[0])
    if said is None:
        raise ValueError(
            f"whether more of the metric {name!r} is better is not known; known are "
            f"{', '.join(HIGHER_IS_BETTER)}, after any prefix. Correct the name, or say "
            "higher_is_better=True or False."
        )
    if not isinstance(said, (bool, np.bool_)):
        raise ValueError(f"higher_is_better is {said!r}; expected True, False or None.")
    return bool(said)


def mean_return(outputs: Array, examples: Examples) -> Array:
    """Mean return over the valid episodes of one task.

    Args:
      outputs: Returns of the episodes, float `[N]`.
      examples: Episodes, of which `mask` `[N]` alone is read.

    Raises:
      ValueError: the outputs are not `[N]`.

    Example:
      >>> episodes = ml.Examples.of(jnp.zeros((2, 1)), jnp.zeros(2))
      >>> float(ml.metrics.mean_return(jnp.array([1.0, 3.0]), episodes))
      2.0
    """
    return -losses.negative_return(outputs, examples)


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
    losses.check_classes(logits, examples, "accuracy")
    best = logits == jnp.max(logits, axis=-1, keepdims=True)
    y = examples.y
    if y.dtype.itemsize < 4:  # W may lie beyond what its dtype holds
        y = y.astype(jnp.int32)
    hit = jnp.take_along_axis(best, y[:, None], axis=-1)[:, 0]
    # An index outside would be filled with True and count as a hit.
    hit = hit & (y >= 0) & (y < logits.shape[-1])
    tied = jnp.maximum(jnp.sum(best, axis=-1), 1)
    # A share in bfloat16 has two digits.
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return masked_mean(hit.astype(dtype) / tied.astype(dtype), examples.mask)


def f1(logits: Array, examples: Examples) -> Array:
    """Macro F1: the mean over classes of `2 TP / (2 TP + FP + FN)`, in 0..1.

    Classes that occur neither among the valid labels nor among the predictions are left
    out, as scikit-learn does. Of tied logits the first is the prediction.

    Args:
      logits: Float `[N, W]`.
      examples: Class indices `y` int `[N]`, `mask` `[N]`.

    Returns:
      Scalar; 0 if every row is masked.

    Example:
      >>> logits = jnp.array([[2.0, 1.0], [3.0, 0.0], [0.0, 1.0]])
      >>> examples = ml.Examples.of(jnp.zeros((3, 1)), jnp.array([0, 1, 1]))
      >>> round(float(ml.metrics.f1(logits, examples)), 4)
      0.6667
    """
    losses.check_classes(logits, examples, "f1")
    ways = jnp.arange(logits.shape[-1])
    valid = examples.mask[:, None]
    true = (examples.y.astype(jnp.int32)[:, None] == ways[None]) & valid
    found = (jnp.argmax(logits, axis=-1)[:, None] == ways[None]) & valid
    both = jnp.sum(true & found, axis=0)
    counted = jnp.sum(true, axis=0) + jnp.sum(found, axis=0)
    of_class = 2 * both / jnp.maximum(counted, 1)
    return masked_mean(of_class.astype(jnp.float32), counted > 0)


def macro_accuracy(logits: Array, examples: Examples) -> Array:
    """Mean over classes of the share of their examples that is right, in 0..1.

    Every class counts the same, however rare it is. Classes without a valid example are
    left out. Of tied logits the first is the prediction. The shares are those of one set:
    a mean of this over tasks is not that of all their examples together, unless each task
    has as many of every class.

    Args:
      logits: Float `[N, W]`.
      examples: Class indices `y` int `[N]`, `mask` `[N]`.

    Returns:
      Scalar; 0 if every row is masked, NaN if a valid row has a logit that is NaN.

    Example:
      >>> logits = jnp.array([[2.0, 1.0], [3.0, 0.0], [0.0, 1.0]])
      >>> examples = ml.Examples.of(jnp.zeros((3, 1)), jnp.array([0, 1, 1]))
      >>> float(ml.metrics.macro_accuracy(logits, examples))
      0.75
    """
    losses.check_classes(logits, examples, "macro_accuracy")
    ways = jnp.arange(logits.shape[-1])
    true = (examples.y.astype(jnp.int32)[:, None] == ways[None]) & examples.mask[:, None]
    found = jnp.argmax(logits, axis=-1)[:, None] == ways[None]
    count = jnp.sum(true, axis=0)
    right = jnp.sum(true & found, axis=0) / jnp.maximum(count, 1)
    lost = jnp.any(jnp.isnan(logits).any(-1) & examples.mask)
    mean = masked_mean(right.astype(jnp.float32), count > 0)
    return jnp.where(lost, jnp.nan, mean)


def of_task(loss_fn: LossFn, outputs: Array, examples: Examples) -> dict[str, Array]:
    """Loss of one task, and accuracy where targets are class indices.

    Returns:
      `{"loss": scalar}` and, for integer `y` `[N]` with logits `[N, W]`, `"accuracy"`.
    """
    result = {"loss": paired(loss_fn, outputs, examples)}
    if labels.num_classes(loss_fn, outputs, examples.y) is not None:
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
    """Cross-entropy for integer targets, mean squared error for real ones.

    Raises:
      TypeError: targets that are no array, of which no loss can be guessed.
    """
    if not hasattr(examples.y, "dtype"):
        raise TypeError(
            f"the targets are a {type(examples.y).__name__}, of which no loss can be "
            "guessed, and the learner carries none; give "
            "loss_fn=(outputs, examples) -> scalar."
        )
    return losses.cross_entropy if labels.is_classes(examples.y) else losses.mse


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
    # The sums of rows are as exact as the dtype that they were rounded to.
    coarse = str(getattr(probabilities, "dtype", "")) in ("bfloat16", "float16")
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
    near = np.allclose(sums, 1, atol=2e-2 if coarse else 1e-3)
    if not (near and np.all(probabilities >= 0)):
        raise ValueError(
            "calibration_error got rows that are no probabilities (sums from "
            f"{sums.min():.3g} to {sums.max():.3g}); give softmax(logits)."
        )
    confidence = probabilities.max(-1)
    hit = probabilities.argmax(-1) == labels
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gap = np.bincount(bins, weights=hit - confidence, minlength=num_bins)
    return float(np.abs(gap).sum() / len(labels))
