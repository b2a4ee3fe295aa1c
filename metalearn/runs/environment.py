"""Where a run computes, with which versions, and the cache of compiled programs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import filelock
import jax

from metalearn.core.cache import cache_root


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


def enable_compilation_cache() -> None:
    """Lets jax keep compiled programs for the next process; for the command line.

    Leaves a cache alone that the user has set already, and goes without one, with a
    warning, where the folder cannot be written or locked.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = cache_root() / "compiled"
    try:
        share_compilations(folder)
    except (OSError, NotImplementedError) as error:
        warnings.warn(
            f"every program is compiled anew, for {folder} cannot keep them ({error}). Set "
            "METALEARN_CACHE to a folder that can be written.",
            stacklevel=2,
        )


def share_compilations(folder: Path | str) -> None:
    """Keeps compiled programs in a folder that several processes may use at once.

    The limit of 8 GiB makes jax lock the folder (by the package filelock); without it, of
    two processes the second can read what the first has half written, and crash. A locked
    cache fails on a program without its time of use, which a process leaves behind that
    was killed while it wrote, or that used the folder without the limit. Those are removed.

    Raises:
      OSError: the folder cannot be written, or its lock is held for more than 10 s.
      NotImplementedError: its file system knows no locks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob("*-cache"):
            if not program.with_name(
                program.name.removesuffix("-cache") + "-atime"
            ).exists():
                program.unlink(missing_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 2**33)


def cores() -> int:
    """CPU cores that this process may use, by its affinity and the quota of a container."""
    found = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        found = min(found, max(1, int(quota) // int(period)))  # "max" is not a number
    return found


def split_cpu(num: int) -> None:
    """Makes `num` devices of the CPU; before anything is computed.

    A core that works on tasks of its own keeps them in its cache and waits for no other:
    a third faster than all cores on one task where the arrays of a task nearly fit a cache,
    little where they do not, far slower for tasks of microseconds (benchmarks/NOTES.md).
    """
    split = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if num > 1 and not split:
        jax.config.update("jax_num_cpu_devices", num)


def connect(
    *,
    devices: int | None = None,
    processes: int = 1,
    process: int = 0,
    coordinator: str | None = None,
) -> None:
    """Splits the CPU into devices and joins the other processes, before anything computes.

    Args:
      devices: Devices in all, over all processes; if `None` as many as there are, of a
        CPU in one process its cores.
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
    if devices is not None:
        split_cpu(devices // processes)
    elif processes == 1 and jax.config.jax_num_cpu_devices < 1:
        # Where jax has been used already there are the devices that there are.
        with contextlib.suppress(RuntimeError):
            split_cpu(cores())
    if processes > 1:
        jax.distributed.initialize(
            coordinator,
            num_processes=processes,
            process_id=process,
            initialization_timeout=60,
            heartbeat_timeout_seconds=20,  # a dead process stops the others by then
        )
