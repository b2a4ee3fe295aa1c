"""Where training reports go: a progress bar, a file of JSON lines, anything callable.

A sink is a function of a row, so services that draw curves need a line or two:

    writer = tensorboardX.SummaryWriter("logs")  # TensorBoard; torch's writer is the same
    tensorboard = lambda row: [writer.add_scalar(k, v, row["step"]) for k, v in row.items()]

    wandb.init(project="few-shot")  # Weights & Biases
    weights_and_biases = lambda row: wandb.log(dict(row), step=row["step"])

    ml.fit(..., sinks=[ml.sinks.json_lines("metrics.jsonl"), tensorboard])
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from metalearn.core import files, kinds, optional

Row = Mapping[str, Any]
Sink = Callable[[Row], None]


def check_sinks(sinks: Any) -> None:
    """Raises a `TypeError` unless a sequence of functions of a row."""
    if not isinstance(sinks, (list, tuple)) or not all(map(callable, sinks)):
        raise TypeError(
            f"sinks is {sinks!r}; expected a sequence of functions of a row, such as "
            '[ml.sinks.json_lines("metrics.jsonl")].'
        )
    for number, sink in enumerate(sinks):
        kinds.function(f"sink {number}", sink, ("row",), "ml.sinks.printer()")


def json_lines(path: str | Path) -> Sink:
    """Appends each row as one line of JSON; creates file and folder when missing.

    Raises:
      TypeError: not a path.
      CannotWrite: the file cannot be written; before training, as far as can be known.
    """
    if not isinstance(path, (str, Path)) or not str(path):
        raise TypeError(f"path is {path!r}; expected that of a file, as 'metrics.jsonl'.")
    path = Path(path)

    def append(text: str) -> None:
        with (
            files.writing(path, kept="The rows before are there."),
            path.open("a", encoding="utf-8") as file,
        ):
            file.write(text)

    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    append("")

    def write(row: Row) -> None:
        append(_line(row))

    return write


def rewrite(path: str | Path, rows: list[Row]) -> None:
    """Replaces a file of JSON lines by `rows` in one move."""
    files.write_text(Path(path), "".join(map(_line, rows)))


def _line(row: Row) -> str:
    """JSON knows neither NaN nor infinity: they become null."""
    finite = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v
        for k, v in row.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def printer(file: TextIO | None = None) -> Sink:
    """Prints each row on one line, to the standard output unless a file is given.

    Raises:
      TypeError: the file is none that is open for writing.
    """
    if file is not None and not callable(getattr(file, "write", None)):
        raise TypeError(
            f"file is {file!r}; expected one that is open for writing, such as sys.stderr "
            "or open('log.txt', 'w'). ml.sinks.json_lines takes a path."
        )

    def write(row: Row) -> None:
        parts = [
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
        ]
        print("  ".join(parts), file=file or sys.stdout, flush=True)

    return write


def _bar_class() -> Any:
    """The bar of tqdm for this place: widgets in a notebook that has them, else text."""
    # Where widgets are missing, `tqdm.auto` warns about them and draws text.
    widgets = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets")
    module = "tqdm.auto" if widgets else "tqdm"
    return optional.require(module, "to show progress").tqdm


class Progress:
    """A progress bar with loss, accuracy, tasks a second and the time left.

    Args:
      total: Number of steps in all.
      start: Number of steps already done.
      show: Whether to draw; `None` draws on a terminal or in a notebook.
      label: Text before the bar.
      unit: Word for what is counted.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        show: bool | None = None,
        label: str = "",
        unit: str = "step",
    ):
        if show is None:
            # A bar that nobody asked for is no reason to fail without tqdm.
            show = sys.stderr.isatty() or "ipykernel" in sys.modules
            show = show and optional.available("tqdm")
        # Said until the first update takes its place.
        self._bar, self._compiling = None, True
        if show:
            self._bar = _bar_class()(
                total=total, initial=start, desc=label, unit=unit, dynamic_ncols=True
            )
            self._bar.set_postfix_str("compiling")

    def update(self, steps: int, shown: Row | None = None) -> None:
        """Advances by `steps` and shows the numbers of `shown`."""
        if self._bar is None:
            return
        if shown:
            text = {k: v if isinstance(v, int) else f"{v:.3g}" for k, v in shown.items()}
            self._bar.set_postfix(text, refresh=False)
        elif self._compiling:
            self._bar.set_postfix_str("", refresh=False)
        self._compiling = False
        self._bar.update(steps)

    def say(self, text: str) -> None:
        """Shows a few words beside the bar until the next numbers."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
