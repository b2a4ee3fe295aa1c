"""The folder of prepared data and compiled programs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The folder of prepared data and compiled programs.

    The folder is `METALEARN_CACHE` if that variable is set, else `metalearn` in
    `XDG_CACHE_HOME` or in `~/.cache`.
    """
    if chosen := os.environ.get("METALEARN_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "metalearn"
