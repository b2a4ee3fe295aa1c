"""Where a run computes, with which versions, and the cache of compiled programs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = {"metalearn": "metalearn-jax"}
    names |= {name: name for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    found = {"python": platform.python_version()}
    for name, distribution in names.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def device() -> dict[str, Any]:
    """Where computations run."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }


def cache_root() -> Path:
    """Where prepared data and compiled programs are kept.

    `METALEARN_CACHE` if set, else `metalearn` in `XDG_CACHE_HOME` or `~/.cache`.
    """
    if chosen := os.environ.get("METALEARN_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "metalearn"


def enable_compilation_cache() -> None:
    """Lets jax keep compiled programs for the next process; for the command line.

    Leaves a cache alone that the user has set already.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "compiled"))
