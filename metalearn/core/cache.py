"""Where prepared data and compiled programs are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Where prepared data and compiled programs are kept.

    `METALEARN_CACHE` if set, else `metalearn` in `XDG_CACHE_HOME` or `~/.cache`.
    """
    if chosen := os.environ.get("METALEARN_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "metalearn"
