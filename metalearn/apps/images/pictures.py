"""Picture of predictions: the support set beside the images and their classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.apps.images.own import OwnImages
from metalearn.apps.plots import (
    FAINT,
    GREY,
    INK,
    VALIDATION,
    figure_of,
    letter,
    short_name,
    show_image,
)

FORMATS = (".png", ".pdf", ".svg", ".jpg")
_CELL, _LABEL = 1.0, 0.5  # inches


def predictions(
    path: str | Path,
    images: OwnImages,
    probabilities: np.ndarray,
    *,
    title: str,
    max_ways: int = 12,
    max_shots: int = 4,
    max_images: int = 48,
) -> None:
    """Draws a column of examples for each class, and below each image with its class.

    Args:
      path: File of the picture, one of `FORMATS`.
      images: Support set and images to classify.
      probabilities: Probability of each class, `[Q, W]`.
      title: Title above the figure.
      max_ways: Largest number of classes that are drawn.
      max_shots: Largest number of examples of a class.
      max_images: Largest number of images.
    """
    ways = min(len(images.class_names), max_ways)
    support = [np.flatnonzero(images.labels == c)[:max_shots] for c in range(ways)]
    shots, shown = max(map(len, support)), min(len(images.queries), max_images)
    columns = max(ways, 6)
    rows = math.ceil(shown / columns)
    # Inches from the top: title, class names, support, gap, images, footer.
    top, gap, left = 1.0, 0.35, 0.95
    height = top + shots * _CELL + gap + rows * (_CELL + _LABEL) + 0.45
    width = left + columns * (_CELL + 0.12) + 0.25
    figure = figure_of(width, height, constrained=False)

    def place(column: int, from_top: float) -> Any:
        x = left + column * (_CELL + 0.12)
        box = (x / width, 1 - (from_top + _CELL) / height, _CELL / width, _CELL / height)
        return figure.add_axes(box)

    def text(x: float, from_top: float, words: str, **style: Any) -> None:
        # Paths may hold "$", which is no formula.
        style = {"fontsize": 9, "color": INK, "va": "center", "parse_math": False, **style}
        figure.text(x / width, 1 - from_top / height, words, **style)

    def centre(column: int) -> float:
        return left + column * (_CELL + 0.12) + _CELL / 2

    text(0.2, 0.24, title, fontsize=11)
    text(0.2, top + shots * _CELL / 2, "support", color=GREY, rotation=90)
    first = top + shots * _CELL + gap
    text(0.2, first + rows * (_CELL + _LABEL) / 2, "images", color=GREY, rotation=90)
    for column in range(ways):
        text(centre(column), 0.55, letter(column), ha="center", fontweight="bold")
        name = short_name(images.class_names[column])
        text(centre(column), 0.79, name, ha="center", fontsize=6, color=GREY)
        for row, index in enumerate(support[column]):
            show_image(
                place(column, top + row * _CELL), _floats(images.support[index]), FAINT
            )
    best = probabilities.argmax(-1)
    for number in range(shown):
        row, column = divmod(number, columns)
        y = first + row * (_CELL + _LABEL)
        # Neither the colour of right nor that of wrong: nobody knows.
        show_image(place(column, y), _floats(images.queries[number]), VALIDATION)
        words = f"{letter(int(best[number]))}  {probabilities[number, best[number]]:.0%}"
        text(centre(column), y + _CELL + 0.13, words, ha="center", fontweight="bold")
        name = _plain(Path(images.files[number]).name)
        text(centre(column), y + _CELL + 0.32, name, ha="center", fontsize=6, color=GREY)
    text(0.2, height - 0.24, _footer(images, ways, shown), color=GREY)
    figure.savefig(path)


def check_path(path: str | Path) -> None:
    """Checks where a picture is to go, before anything is computed.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: the name does not end as a picture does, or is that of a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS or path.is_dir():
        raise ValueError(
            f"out is {str(path)!r}; expected a file that ends with one of "
            f"{', '.join(FORMATS)}."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"the folder {path.parent} of --out does not exist. Make it, or give another."
        )


def _floats(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255


def _plain(name: str) -> str:
    """The end of a name, without characters that the font may lack or misread."""
    return "".join(c for c in name if c.isascii() and c != "$")[-20:]


def _footer(images: OwnImages, ways: int, shown: int) -> str:
    parts: Sequence[str] = ["predicted class and its probability"]
    if ways < len(images.class_names):
        parts = [*parts, f"{len(images.class_names) - ways} more classes"]
    if shown < len(images.queries):
        parts = [*parts, f"{len(images.queries) - shown} more images"]
    return "; ".join(parts)
