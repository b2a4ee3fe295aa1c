"""Predictions for new inputs from a few labelled examples."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, given, kinds, pixels
from metalearn.core.keys import check_key, of_seed
from metalearn.core.learner import MetaLearner, is_transductive
from metalearn.core.model import Variables
from metalearn.core.programs import compiled, kept_with_owner
from metalearn.core.task import Examples
from metalearn.core.types import Key, PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What an adapted learner says of Q inputs.

    Attributes:
      outputs: Outputs of the learner, `[Q, ...]`: logits `[Q, W]`, or values.
      probabilities: Probability of each class, float32 `[Q, W]`; rows sum to one, and a
        class without support has 0. `None` if the support has no classes.
      classes: Most probable class, int `[Q]`; `None` if the support has no classes.
      transductive: Whether the prediction of one input depended on the others; measured.
    """

    outputs: PyTree
    probabilities: np.ndarray | None
    classes: np.ndarray | None
    transductive: bool


def predict(
    learner: MetaLearner,
    variables: Variables,
    support: Examples,
    x: PyTree,
    *,
    key: Key | None = None,
) -> Prediction:
    """Adapts to the support set and predicts new inputs.

    Adaptation and prediction are compiled once for each learner and shapes.

    Args:
      learner: Learner whose `adapt` and `predict` are used.
      variables: Variables that were learned, such as `result.variables`.
      support: Labelled examples, `y` int `[N]` for classes. Images of bytes (uint8) are
        mapped to 0..1, as the samplers of `ml.data` do.
      x: New inputs `[Q, ...]`, shaped and scaled as those of the support.
      key: Key of learners that draw; that of seed 0 if `None`.

    Returns:
      A `Prediction`.

    Raises:
      TypeError: an argument is of another kind.
      ValueError: shapes do not fit, values are not finite, or a label has no logit.

    Example:
      >>> support = ml.Examples.of(images, labels)
      >>> ml.predict(learner, result.variables, support, new_images).classes
    """
    kinds.learner(learner)
    kinds.variables(variables)
    checks.one_set(support, "support")
    given.check_kept(x, "x")
    _check_inputs(support.x, x)
    _check_scales(support.x, x)
    support = dataclasses.replace(support, x=_as_floats(support.x))
    x = _as_floats(x)
    _check_finite(support.x, "support.x")
    _check_finite(x, "x")
    _warn_of_unscaled((support.x, x))
    key = of_seed(0) if key is None else key
    check_key(key)
    outputs, flag = _predictor(learner)(variables, support, x, key)
    outputs = jax.device_get(outputs)
    _check_outputs(outputs)
    probabilities = _probabilities(outputs, support)
    return Prediction(
        outputs=outputs,
        probabilities=probabilities,
        classes=None if probabilities is None else probabilities.argmax(-1),
        transductive=bool(flag),
    )


@kept_with_owner
def _predictor(learner: MetaLearner) -> Any:
    def run(variables: Variables, support: Examples, x: PyTree, key: Key):
        k_adapt, k_predict = jax.random.split(key)
        adapted = learner.adapt(variables, support, key=k_adapt)
        outputs = learner.predict(adapted, x, key=k_predict)
        return outputs, is_transductive(learner, adapted, x, key=k_predict)

    return compiled(run)


def _check_inputs(support: PyTree, x: PyTree) -> None:
    """New inputs differ from those of the support in their number only."""

    def shapes(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], tree)

    same = jax.tree.structure(support) == jax.tree.structure(x)
    ranks = same and all(jnp.ndim(leaf) > 0 for leaf in jax.tree.leaves(x))
    if not ranks or shapes(support) != shapes(x):
        raise ValueError(
            f"x has shapes {jax.tree.map(jnp.shape, x)}, the support "
            f"{jax.tree.map(jnp.shape, support)}; expected [Q, ...] with the same sizes "
            "after the first axis. Give one input as x[None]."
        )
    numbers = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(x)}
    if len(numbers) != 1 or 0 in numbers:
        raise ValueError(
            f"x holds {sorted(numbers)} inputs; expected one or more, the same in all "
            "leaves."
        )


def _check_scales(support: PyTree, x: PyTree) -> None:
    """Bytes on one side become 0..1, so the floats of the other side have to be that."""
    for pair in zip(jax.tree.leaves(support), jax.tree.leaves(x), strict=True):
        others = [np.asarray(leaf) for leaf in pair if leaf.dtype != np.uint8]
        if len(others) == 1 and others[0].size:
            low, high = float(others[0].min()), float(others[0].max())
            if low < -1e-3 or high > 1 + 1e-3:
                dtypes = " and ".join(str(leaf.dtype) for leaf in pair)
                raise ValueError(
                    f"support.x and x are {dtypes}; bytes are mapped to 0..1, and the "
                    f"others run from {low:g} to {high:g}. Give both in one form."
                )


def _warn_of_unscaled(tree: PyTree) -> None:
    """Warns of images of 0..255; the learner may have been trained on such values."""
    for leaf in jax.tree.leaves(tree):
        if np.ndim(leaf) == 4:
            try:
                pixels.check_values(np.asarray(leaf), few=True)
            except ValueError as error:
                told = str(error).removesuffix(f" {pixels.REMEDY}")
                warnings.warn(told, stacklevel=3)


def _as_floats(tree: PyTree) -> PyTree:
    def scaled(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        return leaf.astype(jnp.float32) / 255 if leaf.dtype == jnp.uint8 else leaf

    return jax.tree.map(scaled, tree)


def _check_finite(tree: PyTree, name: str) -> None:
    for leaf in jax.tree.leaves(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        if bad := int(np.sum(~np.isfinite(np.asarray(leaf, np.float32)))):
            raise ValueError(
                f"{name} holds {bad} non-finite values; expected finite numbers. Clean the "
                "data."
            )


def _check_outputs(outputs: PyTree) -> None:
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(outputs)]
    if bad := sum(int(np.sum(~np.isfinite(leaf))) for leaf in leaves):
        raise ValueError(
            f"the predictions hold {bad} non-finite values: adaptation to this support set "
            "diverges, or the inputs are far from those of training. Look at the range of "
            "support.x, and at the inner rate."
        )


def _probabilities(outputs: PyTree, support: Examples) -> np.ndarray | None:
    """Softmax over the classes of the support; `None` if there are no classes."""
    y, mask = support.y, np.asarray(support.mask)
    classes = hasattr(y, "dtype") and jnp.issubdtype(y.dtype, jnp.integer) and y.ndim == 1
    if not classes or getattr(outputs, "ndim", 0) != 2:
        return None
    labels, ways = np.asarray(y)[mask], outputs.shape[-1]
    if not labels.size or labels.min() < 0 or labels.max() >= ways:
        found = f"{labels.min()}..{labels.max()}" if labels.size else "no labels"
        raise ValueError(
            f"the support holds {found}, but the learner gives {ways} logits; expected "
            f"labels 0..{ways - 1}. Number the classes from 0, or build the learner for "
            "more ways."
        )
    present = np.bincount(labels, minlength=ways) > 0
    logits = np.where(present[None], np.asarray(outputs, np.float64), -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
