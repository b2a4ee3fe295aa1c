"""Intervals of few numbers, such as one a training seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def student(values: Sequence[float] | np.ndarray) -> float | None:
    """Half-width of Student's 95 % interval of a mean; None of a single value."""
    if len(values) < 2:
        return None
    wide = stats.t.ppf(0.975, len(values) - 1)
    return float(wide * np.std(values, ddof=1) / np.sqrt(len(values)))
