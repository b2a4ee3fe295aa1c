"""The picture of a run: images of the sources, and target images with their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metalearn.apps import plots
from metalearn.core.task import Examples

COLUMNS, MOST = 8, 24


def unseen(
    path: str | Path,
    shown: np.ndarray,
    sources: Sequence[str],
    target: Examples,
    logits: np.ndarray,
    class_names: Sequence[str],
    *,
    title: str,
) -> None:
    """Draws an image of each source above images of the target and what was predicted.

    Args:
      path: Path of a .png file.
      shown: An image of each source, `[D, H, W, C]` in 0..1.
      sources: Names of the sources.
      target: Images of the target `[Q, H, W, C]` in 0..1, with their classes.
      logits: Logits `[Q, W]`.
      class_names: Name of each class.
      title: Title above the figure.
    """
    valid = np.flatnonzero(np.asarray(target.mask))
    guesses, truth = logits.argmax(-1), np.asarray(target.y)
    right = guesses[valid] == truth[valid]
    some = valid[:MOST]
    rows = -(-len(some) // COLUMNS)
    figure = plots.figure_of(1.1 * COLUMNS, 1.4 * (rows + 1) + 0.5)
    axes = figure.subplots(rows + 1, COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, name in zip(axes[0], shown, sources):
        ax.set_axis_on()
        plots.show_image(ax, image, plots.FAINT)
        ax.set_title(name[:16], fontsize=8, color=plots.GREY, parse_math=False)
    for ax, number in zip(axes[1:].flat, some):
        guess, hit = int(guesses[number]), guesses[number] == truth[number]
        colour = plots.RIGHT if hit else plots.WRONG
        ax.set_axis_on()
        plots.show_image(ax, np.asarray(target.x[number]), colour)
        ax.set_title(class_names[guess][:16], fontsize=8, color=colour, parse_math=False)
    told = f"{title}\nabove: sources; below: predictions, {right.mean():.0%} of "
    figure.suptitle(f"{told}{len(valid)} right", x=0.01, ha="left", fontsize=10)
    figure.savefig(path)
