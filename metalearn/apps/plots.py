"""Pictures of a run: the learning curve, and test tasks before and after adaptation."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.core.optional import require
from metalearn.core.task import Task

INK, GREY, FAINT = "#222222", "#8a8a8a", "#d9d9d9"
RIGHT, WRONG = "#1a7f37", "#c62828"
TRAINING, VALIDATION = "#9db7d5", "#1f4e8c"
FAMILY_COLOURS = ("#1f4e8c", "#d98c21", "#1a7f37", "#8e4585", "#c62828", "#4fa3a5")


def learning_curve(path: str | Path, history: Sequence[dict[str, Any]], title: str) -> None:
    """Loss and accuracy of training and validation against outer steps.

    Args:
      path: Path of a .png file.
      history: Rows of `FitResult.history` or of `metrics.jsonl`.
      title: Title above the figure.
    """
    panels = [
        (name, series)
        for name in ("loss", "accuracy")
        if any(series := _series(history, name))
    ]
    figure = figure_of(5.2 * max(len(panels), 1), 3.8)
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for ax, (name, (training, validation)) in zip(axes, panels):
        for rows, colour, label in (
            (training, TRAINING, "training"),
            (validation, VALIDATION, "validation"),
        ):
            if rows:
                marker = "o" if label == "validation" or len(rows) == 1 else None
                ax.plot(*zip(*rows), color=colour, label=label, marker=marker, ms=4, lw=1.8)
        values = [value for rows in (training, validation) for _, value in rows]
        if name == "loss" and spans_decades(values):
            _make_logarithmic(ax)
        if name == "accuracy":
            best = max(validation, key=lambda row: row[1], default=None)
            if best:
                # The best validation, whose variables are kept.
                ax.axvline(best[0], color=FAINT, lw=1, zorder=0)
                ax.annotate(
                    f"best {best[1]:.1%}",
                    best,
                    xytext=(0, -16),
                    textcoords="offset points",
                    ha="right" if best[0] > 0.7 * validation[-1][0] else "left",
                    color=VALIDATION,
                    fontsize=9,
                )
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        tidy(ax)
        ax.set_xlabel("outer step")
        ax.set_title(name, loc="left", fontsize=10)
        ax.legend(frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether values are positive and the largest is ten times the smallest, or more.

    On a linear axis most of such a curve would look flat.
    """
    return min(values) > 0 and max(values) >= 10 * min(values)


def _make_logarithmic(ax: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    # Over few decades the powers of ten alone are too few ticks to read values at.
    subs = (1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def image_episode(
    path: str | Path,
    task: Task,
    before: np.ndarray | None,
    after: np.ndarray,
    *,
    title: str,
    names: Sequence[str] = (),
    max_ways: int = 10,
    max_shots: int = 5,
    max_queries: int = 3,
) -> None:
    """Support images, and query images with their predictions before and after.

    Args:
      path: Path of a .png file.
      task: One task of images `[N, H, W, C]` in 0..1.
      before: Logits `[Q, W]` without adaptation; None if the learner has no such logits.
      after: Logits `[Q, W]` of the adapted learner.
      title: Title above the figure.
      names: Name of each class of the task.
      max_ways: Largest number of columns.
      max_shots: Largest number of support images of a class.
      max_queries: Largest number of query images of a class.
    """
    support_y, query_y = np.asarray(task.support.y), np.asarray(task.query.y)
    ways = int(max(support_y.max(), query_y.max())) + 1
    columns = min(ways, max_ways)
    support = [np.flatnonzero(support_y == c)[:max_shots] for c in range(columns)]
    query = [np.flatnonzero(query_y == c)[:max_queries] for c in range(columns)]
    shots, queries = max(map(len, support)), max(map(len, query))
    cell, label = 1.0, 0.42
    # Inches from the top: title, class names, support, gap, queries, footer.
    top, gap = 1.0, 0.35
    height = top + shots * cell + gap + queries * (cell + label) + 0.45
    left = 0.95
    width = max(left + columns * (cell + 0.12) + 0.25, 6.2)
    figure = figure_of(width, height, constrained=False)

    def place(column: int, from_top: float):
        x = left + column * (cell + 0.12)
        return figure.add_axes(
            (x / width, 1 - (from_top + cell) / height, cell / width, cell / height)
        )

    def text(x: float, from_top: float, words: str, **style: Any) -> None:
        style = {"fontsize": 9, "color": INK, "va": "center", **style}
        figure.text(x / width, 1 - from_top / height, words, **style)

    text(0.2, 0.24, title, fontsize=11)
    text(0.2, top + shots * cell / 2, "support", color=GREY, rotation=90)
    query_top = top + shots * cell + gap
    middle = query_top + queries * (cell + label) / 2
    text(0.2, middle, "query", color=GREY, rotation=90)
    for column in range(columns):
        centre = left + column * (cell + 0.12) + cell / 2
        text(centre, 0.55, letter(column), ha="center", fontweight="bold")
        if column < len(names):
            text(
                centre, 0.79, short_name(names[column]), ha="center", fontsize=6, color=GREY
            )
        for row, index in enumerate(support[column]):
            show_image(place(column, top + row * cell), task.support.x[index], FAINT)
        for row, index in enumerate(query[column]):
            y = query_top + row * (cell + label)
            guess, right = _guess(after[index], column)
            show_image(place(column, y), task.query.x[index], RIGHT if right else WRONG)
            if before is None:
                _verdict(text, centre, y + cell + 0.13, guess, right, "center")
                continue
            first, first_right = _guess(before[index], column)
            _verdict(text, centre - 0.16, y + cell + 0.13, first, first_right, "right")
            text(centre, y + cell + 0.13, "→", ha="center", color=GREY)
            _verdict(text, centre + 0.16, y + cell + 0.13, guess, right, "left")
    legend = "predicted class"
    if before is not None:
        legend += ", before → after adaptation"
    accuracy = [_accuracy(x, query_y) for x in (before, after) if x is not None]
    numbers = " → ".join(f"{value:.0%}" for value in accuracy)
    text(0.2, height - 0.24, f"{legend}; all {len(query_y)} queries: {numbers}", color=GREY)
    figure.savefig(path)


def curve_episodes(
    path: str | Path,
    x: np.ndarray,
    panels: Sequence[tuple[Task, np.ndarray, np.ndarray | None, np.ndarray]],
    *,
    title: str,
) -> None:
    """Regression tasks: the curve, its support points, predictions before and after.

    Args:
      path: Path of a .png file.
      x: Points at which the curves are drawn, `[P, 1]`.
      panels: Task, truth, and predictions before and after adaptation, for each panel. The
        support of the task has `x` and `y` `[N, 1]`; the other three are `[P, 1]`.
      title: Title above the figure.
    """
    figure = figure_of(3.6 * len(panels) + 0.4, 3.4)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for ax, (task, truth, before, after) in zip(axes, panels):
        support = task.support.x, task.support.y
        ax.plot(x, truth, color=INK, lw=1.2, label="truth")
        if before is not None:
            ax.plot(x, before, color=GREY, lw=1.6, ls="--", label="before adaptation")
        ax.plot(x, after, color=RIGHT, lw=2.2, label="after adaptation")
        ax.plot(*support, "o", color=VALIDATION, ms=6, mec="white", label="support")
        tidy(ax)
        ax.set_xlabel("x")
    axes[0].set_ylabel("y")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


def figure_of(width: float, height: float, constrained: bool = True):
    """An empty figure; sizes are inches."""
    # A figure without pyplot, which would ask for a window system.
    Figure = require("matplotlib.figure", "to draw pictures").Figure

    layout = "constrained" if constrained else None
    return Figure(figsize=(width, height), dpi=150, layout=layout, facecolor="white")


def tidy(ax: Any) -> None:
    """Takes off what a plot does not need."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(colors=INK, labelsize=9)
    ax.grid(axis="y", color=FAINT, lw=0.6)
    ax.set_axisbelow(True)


def _series(history: Sequence[dict[str, Any]], name: str) -> tuple[list, list]:
    """Points `(step, value)` of training and of validation."""
    training, validation = [], []
    for row in history:
        for key, value in row.items():
            group, _, what = key.partition("/")
            # Rows of a file have null where a number was not finite.
            if what != name or value is None or not np.isfinite(value):
                continue
            if group == "validation":
                validation.append((row["step"], value))
            elif group in ("query", "fit", "joint"):
                training.append((row["step"], value))
    return training, validation


def show_image(ax: Any, image: Any, colour: str) -> None:
    """Draws an image `[H, W, C]` in 0..1 with a frame."""
    image = np.asarray(image)
    if image.shape[-1] == 1:
        image = image[..., 0]
        # Ink on an empty ground is shown as on paper.
        image = 1 - image if np.median(image) < 0.05 else image
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
    else:
        ax.imshow(image)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(1 if colour == FAINT else 2)


def _guess(logits: np.ndarray, truth: int) -> tuple[str, bool]:
    """Letter of the predicted class, "?" if several are equally likely."""
    best = np.flatnonzero(logits == logits.max())
    if len(best) > 1:
        return "?", False
    return letter(int(best[0])), int(best[0]) == truth


def _verdict(text, x, from_top, guess, right, align) -> None:
    colour = GREY if guess == "?" else RIGHT if right else WRONG
    text(x, from_top, guess, ha=align, color=colour, fontweight="bold")


def _accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    # Among equal logits each class counts as a part of a hit.
    hits = logits == logits.max(-1, keepdims=True)
    return float((hits[np.arange(len(y)), y] / hits.sum(-1)).mean())


def letter(index: int) -> str:
    """Letter of a class, or its number beyond Z."""
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def short_name(name: str) -> str:
    """A name in two short lines, without characters that the font may lack or misread."""
    name = "".join(c for c in name if c.isascii() and c != "$").replace("_", " ")
    name = name.replace("/", " ").capitalize().replace(" letter ", " ")
    return "\n".join(textwrap.wrap(name, 19, max_lines=2, placeholder="..."))


def cluster_tree(
    path: str | Path | None,
    leaves: np.ndarray,
    upper: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    title: str,
) -> Any:
    """The tree of `ml.hsml`, with the share of each family of tasks in every cluster.

    Args:
      path: Path of a .png file; nothing is written if `None`.
      leaves: Mean share of each leaf over the tasks of a family, `[F, K0]`.
      upper: Mean shares `[F, K_below, K_l]` for each layer above the leaves, without the
        root.
      names: Names of the F families.
      title: Title above the figure.

    Returns:
      The figure, which a notebook shows.
    """
    layers = [np.asarray(leaves)]
    for shares in upper:
        layers.append(np.einsum("fk,fkm->fm", layers[-1], shares))
    layers.append(np.ones((len(names), 1)))
    edges = [*upper, np.ones((len(names), layers[-2].shape[1], 1))]
    widest = max(layer.shape[1] for layer in layers)
    figure = figure_of(1.7 * widest + 1.5, 1.6 * len(layers) + 1.0)
    ax = figure.subplots()
    place = lambda layer, node: (
        (node + 0.5) * widest / layers[layer].shape[1],
        1.6 * layer,
    )
    for layer, shares in enumerate(edges):
        for below in range(shares.shape[1]):
            for above in range(shares.shape[2]):
                weight = np.mean(layers[layer][:, below] * shares[:, below, above])
                (x0, y0), (x1, y1) = place(layer, below), place(layer + 1, above)
                ax.plot(
                    [x0, x1],
                    [y0, y1],
                    color=GREY,
                    lw=0.3 + 14 * weight,
                    alpha=0.5,
                    zorder=0,
                )
    for layer, shares in enumerate(layers):
        for node in range(shares.shape[1]):
            x, y = place(layer, node)
            left, whole = x - 0.4, shares[:, node].sum()
            for family, name in enumerate(names):
                width = 0.8 * shares[family, node] / max(whole, 1e-9)
                first = layer == node == 0
                ax.barh(
                    y,
                    width,
                    0.5,
                    left=left,
                    color=FAMILY_COLOURS[family % len(FAMILY_COLOURS)],
                    label=name if first else None,
                )
                left += width
            ax.text(
                x, y - 0.42, f"{whole / len(names):.0%}", ha="center", fontsize=8, color=INK
            )
    ax.set_xlim(0, widest)
    ax.set_ylim(-0.7, 1.6 * len(layers) - 1.0)
    ax.set_axis_off()
    handles = ax.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    if path is not None:
        figure.savefig(path)
    return figure
