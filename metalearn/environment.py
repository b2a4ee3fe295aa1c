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


def connect(
    *, devices: int | None, processes: int, process: int, coordinator: str | None
) -> None:
    """Splits the CPU into devices and joins the other processes, before anything computes.

    Args:
      devices: Devices in all, over all processes; as many as there are if `None`.
      processes: How many processes train together.
      process: Number of this one, from 0.
      coordinator: "HOST:PORT" of the first.

    Raises:
      ValueError: the numbers do not fit together.
    """
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(
            f"process {process} of {processes}; expected processes of 1 or more, numbered "
            "from 0."
        )
    if (processes > 1) != (coordinator is not None):
        raise ValueError(
            f"processes is {processes} and coordinator is {coordinator}; several processes "
            "need the address of the first, such as --coordinator localhost:9876, and one "
            "process needs none."
        )
    if devices is not None and (devices < 1 or devices % processes):
        raise ValueError(
            f"devices is {devices}; expected a positive multiple of {processes}, "
            "the number of processes."
        )
    split = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if devices is not None and devices // processes > 1 and not split:
        jax.config.update("jax_num_cpu_devices", devices // processes)
    if processes > 1:
        jax.distributed.initialize(
            coordinator,
            num_processes=processes,
            process_id=process,
            initialization_timeout=60,
            heartbeat_timeout_seconds=20,  # a dead process stops the others by then
        )
