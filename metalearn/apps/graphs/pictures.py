"""The picture of a run: nodes of test tasks, and what was predicted of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metalearn.apps import plots


class NodePanel(NamedTuple):
    """One task.

    Attributes:
      places: Places of the queries, `[Q, 2]`.
      truth: Class of each query, `[Q]`.
      before: Predicted classes before adaptation, `[Q]`, or None.
      after: Predicted classes after adaptation, `[Q]`.
      class_names: Names of the classes.
    """

    places: np.ndarray
    truth: np.ndarray
    before: np.ndarray | None
    after: np.ndarray
    class_names: tuple[str, ...]


def plane(features: np.ndarray) -> np.ndarray:
    """The first two principal components of rows, `[Q, 2]`."""
    centred = features - features.mean(0, keepdims=True)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = (left * sizes[None])[:, :2]
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def nodes(path: str | Path, panels: Sequence[NodePanel], *, title: str) -> None:
    """Queries by their features; the shape is the class, a filled sign is a correct answer.

    Args:
      path: Path of a .png file.
      panels: The tasks.
      title: Title above the figure.
    """
    figure = plots.figure_of(4.6 * len(panels) + 0.4, 4.2)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel in zip(axes, panels):
        for number, name in enumerate(panel.class_names):
            mine = panel.truth == number
            right = panel.after == panel.truth
            for shown, label in ((mine & right, name), (mine & ~right, None)):
                ax.plot(
                    *panel.places[shown].T,
                    "os^DvP*X"[number % 8],
                    ls="none",
                    ms=6,
                    color=plots.RIGHT if label else plots.GREY,
                    mfc=None if label else "none",
                    label=label,
                )
        told = f"right: {np.mean(panel.after == panel.truth):.0%}"
        if panel.before is not None:
            told += f", before adaptation {np.mean(panel.before == panel.truth):.0%}"
        ax.set_title(told, loc="left", fontsize=9)
        plots.tidy(ax)
        ax.set_xlabel("first principal component of the features")
        ax.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("second component")
    figure.suptitle(f"{title}; hollow: wrong", x=0.01, ha="left", fontsize=11)
    figure.savefig(path)
