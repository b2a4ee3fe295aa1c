"""Pictures of a run: ratings or clicks, and what was predicted of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metalearn.apps import plots


class RatingPanel(NamedTuple):
    """One user.

    Attributes:
      given: Ratings of the support set, `[N]`.
      truth: Ratings of the queries, `[Q]`.
      before: Predictions of them before adaptation, `[Q]`, or None.
      after: Predictions of them after adaptation, `[Q]`.
    """

    given: np.ndarray
    truth: np.ndarray
    before: np.ndarray | None
    after: np.ndarray


def ratings(
    path: str | Path,
    panels: Sequence[RatingPanel],
    limits: tuple[float, float],
    *,
    title: str,
) -> None:
    """Predicted against given ratings of users, and what each user gave on the whole.

    Args:
      path: Path of a .png file.
      panels: The users.
      limits: Lowest and highest rating of the scale.
      title: Title above the figure.
    """
    figure = plots.figure_of(3.4 * len(panels) + 0.4, 3.7)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    low, high = limits
    tops: list[float] = []
    for ax, panel in zip(axes, panels):
        ax.plot(limits, limits, color=plots.FAINT, lw=1.2, zorder=0)
        ax.axhline(
            np.mean(panel.given), color=plots.VALIDATION, lw=1, ls=":", label="user's mean"
        )
        # Equal ratings side by side, or they would hide one another.
        order = np.argsort(panel.truth, kind="stable")
        x = panel.truth[order] + np.linspace(-0.18, 0.18, len(order))
        if panel.before is not None:
            ax.plot(
                *(x, panel.before[order]),
                *("o",),
                color=plots.GREY,
                ms=4,
                mfc="none",
                label="before adaptation",
            )
        ax.plot(
            x, panel.after[order], "o", color=plots.RIGHT, ms=5, label="after adaptation"
        )
        error = np.abs(panel.after - panel.truth).mean()
        told = f"{len(panel.given)} given ratings; error {error:.2f}"
        if panel.before is not None:
            told += f", before {np.abs(panel.before - panel.truth).mean():.2f}"
        ax.set_title(told, loc="left", fontsize=9)
        plots.tidy(ax)
        margin = 0.1 * (high - low)
        shown = [panel.after, *([] if panel.before is None else [panel.before])]
        ax.set_xlim(low - margin, high + margin)
        # A prediction may lie beyond the scale.
        ax.set_ylim(min(low, *map(np.min, shown)) - margin, None)
        tops.append(max(high, *map(np.max, shown)) + margin)
        ax.set_xlabel("rating")
    axes[0].set_ylim(top=max(tops))
    axes[0].set_ylabel("prediction")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


class ClickPanel(NamedTuple):
    """One item.

    Attributes:
      name: Name of the item.
      given: Clicks of the support set, 0 or 1, `[N]`.
      truth: Clicks of the queries, `[Q]`.
      before: Chances of a click before adaptation, `[Q]`, or None.
      after: Chances of a click after adaptation, `[Q]`.
    """

    name: str
    given: np.ndarray
    truth: np.ndarray
    before: np.ndarray | None
    after: np.ndarray


def clicks(path: str | Path, panels: Sequence[ClickPanel], *, title: str) -> None:
    """Chances of a click on items, for queries that were clicked and that were not.

    Args:
      path: Path of a .png file.
      panels: The items.
      title: Title above the figure.
    """
    figure = plots.figure_of(3.2 * len(panels) + 0.4, 3.6)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, panel in zip(axes, panels):
        # Equal answers side by side, or they would hide one another.
        order = np.argsort(panel.after, kind="stable")
        truth = panel.truth[order]
        x = truth.astype(float)
        for answer in (0, 1):
            own = truth == answer
            x[own] += np.linspace(-0.3, 0.3, own.sum())
        if panel.before is not None:
            ax.plot(
                *(x, panel.before[order], "o"),
                color=plots.GREY,
                ms=4,
                mfc="none",
                label="before adaptation",
            )
        ax.plot(
            x, panel.after[order], "o", color=plots.RIGHT, ms=4, label="after adaptation"
        )
        ax.axhline(
            panel.truth.mean(),
            color=plots.VALIDATION,
            lw=1,
            ls=":",
            label="share of clicks",
        )
        clicked = f"{int(panel.given.sum())} of {len(panel.given)} given were clicks"
        ax.set_title(f"item {panel.name}: {clicked}", loc="left", fontsize=9)
        plots.tidy(ax)
        ax.set_xticks([0, 1], ["no click", "click"])
        ax.set_ylim(-0.02, 1.02)
    axes[0].set_ylabel("chance of a click")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)
