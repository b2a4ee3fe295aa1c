"""Output of the commands: lines, rows of training, times in words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from metalearn.apps import Recipe
from metalearn.core import mesh
from metalearn.core.optional import require


def say(text: str) -> None:
    """Prints a line; only the first process prints."""
    if mesh.leads():
        print(text, flush=True)


def say_data(record: dict[str, Any]) -> None:
    """Prints a line that describes the data."""
    if "parts" not in record:
        return
    parts = ", ".join(
        f"{part} {numbers['classes']:,}{' x 4 rotations' if numbers['rotations'] else ''}"
        for part, numbers in record["parts"].items()
    )
    shape = f"{record.get('num_features')} features"
    if "image_shape" in record:
        height, width, channels = record["image_shape"]
        shape = f"{height}x{width} {'grey' if channels == 1 else 'colour'}"
    say(f"Data {record['name']}: {shape}; classes: {parts}")


def console(recipe: Recipe) -> Callable[[Any], None]:
    """A sink that prints one line for each row.

    On a terminal the progress bar shows the rows of training, so only the rows of
    validation are printed.
    """
    bar = sys.stderr.isatty()
    windows = 0

    def write(row: dict[str, Any]) -> None:
        nonlocal windows
        validation = "best_step" in row
        # Names lose their group below. Without "support/", "loss" is the query loss.
        numbers = {
            name.split("/")[-1]: value
            for name, value in row.items()
            if not name.startswith("support/")
        }
        words = [f"step {row['step']:>6,}/{recipe.steps:,}"]
        if validation:
            words.append("validation")
        if "loss" in numbers:
            words.append(f"loss {numbers['loss']:.4f}")
        if "accuracy" in numbers:
            words.append(f"accuracy {numbers['accuracy']:.1%}")
        if validation:
            words.append(f"best so far at {row['best_step']:,}")
        elif rate := row.get("tasks_per_s"):
            windows += 1
            words.append(f"{rate:,.0f} tasks/s")
            if windows > 1:  # the first one includes compilation
                left = (recipe.steps - row["step"]) * recipe.tasks_per_step / rate
                words.append(f"{in_words(left)} left")
        if row.get("meta/skipped"):
            words.append(f"{row['meta/skipped']} updates skipped")
        if not bar:
            say("  ".join(words))
        elif validation:
            tqdm = require("tqdm", "to show progress").tqdm

            # Above the bar; a plain print would break it.
            tqdm.write("  ".join(words), file=sys.stderr)

    return write


def in_words(seconds: float) -> str:
    """A duration, such as "5 min 02 s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
