"""Pictures of a run: how far up the right place is ranked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metalearn.apps import plots


class RankPanel(NamedTuple):
    """One area.

    Attributes:
      name: Name of the area.
      mask: Mask of the valid queries, bool `[Q]`.
      before: Scores before adaptation, `[Q, K]`, the right place first, or None.
      after: Scores after adaptation, `[Q, K]`.
    """

    name: str
    mask: np.ndarray
    before: np.ndarray | None
    after: np.ndarray


def ranks(path: str | Path, panels: Sequence[RankPanel], *, title: str) -> None:
    """Share of the queries whose right place is among the first k, for each k.

    Args:
      path: Path of a .png file.
      panels: The areas.
      title: Title above the figure.
    """
    figure = plots.figure_of(3.4 * len(panels) + 0.4, 3.6)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, panel in zip(axes, panels, strict=True):
        most = panel.after.shape[1]
        k = np.arange(1, most + 1)
        ax.plot(k, k / most, color=plots.FAINT, lw=1.2, label="random order")
        if panel.before is not None:
            ax.plot(
                *(k, _hits(panel.before[panel.mask])),
                color=plots.GREY,
                lw=1.2,
                label="before adaptation",
            )
        hits = _hits(panel.after[panel.mask])
        ax.plot(k, hits, color=plots.RIGHT, lw=1.6, label="after adaptation")
        at = min(10, most)
        told = f"{panel.name}: {100 * hits[at - 1]:.0f} % among the first {at}"
        ax.set_title(told, loc="left", fontsize=9)
        plots.tidy(ax)
        ax.set_xscale("log")
        ax.set_xlabel("first k places of the ranking")
    axes[0].set_ylabel("share of right places")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


def _hits(scores: np.ndarray) -> np.ndarray:
    """Share of the rows whose first score is among the k highest, for each k, `[K]`."""
    place = 1 + (scores[:, 1:] >= scores[:, :1]).sum(1)
    return (place[:, None] <= np.arange(1, scores.shape[1] + 1)[None]).mean(0)
