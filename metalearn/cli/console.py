"""Output of the commands: lines, JSON, rows of training, times in words."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

from metalearn.apps import Recipe
from metalearn.core import mesh
from metalearn.core.optional import require


def say(text: str) -> None:
    """Prints a line; only the first process prints."""
    if mesh.leads():
        print(text, flush=True)


def note(text: str) -> None:
    """Prints a line for the user's eyes to the standard error, as warnings are."""
    if mesh.leads():
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_stdout(quiet: bool) -> Iterator[None]:
    """Sends what anybody prints inside to the standard error, if `quiet`.

    With `--json` the standard output holds the JSON and nothing else, whatever a library or
    a learner of the user's prints.
    """
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        yield


def print_json(value: Any) -> None:
    """Prints a value as JSON; what is not finite becomes null, which JSON lacks."""
    print(json.dumps(_finite(value), indent=1, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(inside) for name, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Speaker(logging.Handler):
    """Shows messages of the library as lines of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr.isatty():
            from tqdm import tqdm

            # Above the bar; a plain print would break it.
            tqdm.write(record.getMessage(), file=sys.stderr)
        else:
            say(record.getMessage())


@contextlib.contextmanager
def library_messages() -> Iterator[None]:
    """Shows what the library logs, such as that the first step is compiled."""
    logger, speaker = logging.getLogger("metalearn"), _Speaker()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(speaker)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # other libraries print what reaches the root, once more
    try:
        yield
    finally:
        logger.removeHandler(speaker)
        logger.setLevel(level)
        logger.propagate = propagate


def say_data(record: dict[str, Any]) -> None:
    """Prints a line that describes the data."""
    if "about" in record:
        say(f"Data {record['name']}: {record['about']}")
        return
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
    lost = {part: n["left_out"] for part, n in record["parts"].items() if "left_out" in n}
    if lost:
        counts = ", ".join(f"{part} {number:,}" for part, number in lost.items())
        say(f"Left out, because other sets validate or test them: {counts}")


def console(recipe: Recipe) -> Callable[[Any], None]:
    """A sink that prints one line for each row.

    On a terminal the progress bar shows the rows of training, so only the rows of
    validation are printed.
    """
    bar = sys.stderr.isatty()
    measures = [name.rpartition("/")[2] for name in recipe.app.measures]
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
        words += [f"{n} {numbers[n]:.4f}" for n in measures if n in numbers]
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
