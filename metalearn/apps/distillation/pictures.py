"""The picture of a run: the shares that student and teacher give to each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metalearn.apps import plots
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples

MOST_NAMES = 20


def of_teacher(model: Model, state: Mapping[str, Any], x: Any) -> np.ndarray:
    """Logits of the teacher in the state of a run, `[N, C]`."""
    variables = Variables(params=state["teacher"], state=state["teacher_state"])
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x)[0])(variables, x))


def taken_for(
    path: str | Path,
    examples: Examples,
    outputs: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    *,
    title: str,
) -> None:
    """Mean probabilities of all classes, for the examples of each, by network.

    Args:
      path: Path of a .png file.
      examples: Examples `[N, ...]`.
      outputs: Logits `[N, C]` of each network, by its name.
      class_names: Name of each class.
      title: Title above the figure.
    """
    valid = np.asarray(examples.mask)
    truth, num = np.asarray(examples.y)[valid], len(class_names)
    figure = plots.figure_of(4.6 * len(outputs) + 0.6, 4.8)
    axes = figure.subplots(1, len(outputs), squeeze=False)[0]
    for ax, (name, logits) in zip(axes, outputs.items()):
        shares = np.exp(logits[valid] - logits[valid].max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        found = np.full((num, num), np.nan)
        for number in np.unique(truth):
            found[number] = shares[truth == number].mean(0)
        ax.imshow(found, vmin=0, vmax=1, cmap="Blues")
        right = (shares.argmax(1) == truth).mean()
        told = f"{name}: {right:.0%} of {len(truth)} right"
        ax.set_title(told, loc="left", fontsize=10)
        ax.set_xlabel("class it is taken for")
        ax.set_ylabel("class")
        if num <= MOST_NAMES:
            words = [name[:12] for name in class_names]
            ax.set_xticks(range(num), words, rotation=90, fontsize=7, parse_math=False)
            ax.set_yticks(range(num), words, fontsize=7, parse_math=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)
