"""What the host keeps in mind of a run, and what it shows of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(kw_only=True)
class Notes:
    """Bookkeeping on the host: plain numbers, saved with every checkpoint.

    Attributes:
      best: Value of the best validation; `None` before one that was a number.
      best_step: Step of the best variables.
      stale: Validations since the best one.
      seconds: Seconds that outer steps and validations took.
      window: Seconds that the outer steps of the open logging window took.
      stopped: Whether patience has ended training.
      totals: Sums of the open window, so that a resume goes on within it.
      identity: Description of the run, to tell whether a resume is of the same one.
      history: Rows so far.
      begun: Number of the step that the run began at.
      skipped: Steps of closed windows that were not finite and left out.
      first: What the first step reported, to tell a resume with another loss.
      place: Where the run began: kind and number of devices.
    """

    best: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    window: float = 0.0
    stopped: bool = False
    totals: dict[str, Any] = dataclasses.field(default_factory=dict)
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    begun: int = 0
    skipped: int = 0
    first: dict[str, float] = dataclasses.field(default_factory=dict)
    place: str = ""


# What every checkpoint of `fit` holds; older ones lack the rest.
FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Notes)
    if field.name not in ("begun", "skipped", "first", "place")
)


def beside_the_bar(row: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a row for the progress bar: the loss after adaptation, not before."""
    found = {}
    for name in ("loss", "accuracy"):
        parts = [key for key in row if key.endswith(f"/{name}")]
        parts.sort(key=lambda key: key.startswith("support/"))
        if parts:
            found[name] = row[parts[0]]
    return found | {"tasks/s": round(row["tasks_per_s"])}
