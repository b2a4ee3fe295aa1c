"""The devices and versions of a run, and the cache of compiled programs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import warnings
from pathlib import Path
from typing import Any

import jax

from metalearn.core import mesh
from metalearn.core.cache import cache_root
from metalearn.core.errors import in_short
from metalearn.core.optional import require

MOST_PROCESSES = 4096


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
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
    """Description of the devices of this process."""
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

    A cache that the user has set already is kept. If the folder cannot be written or
    locked, there is a warning and no cache.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = cache_root() / "compiled"
    try:
        share_compilations(folder)
    except (OSError, NotImplementedError, ImportError) as error:
        warnings.warn(
            f"every program is compiled anew, for {folder} cannot keep them ({error}). Set "
            "METALEARN_CACHE to a folder that can be written.",
            stacklevel=2,
        )


def share_compilations(folder: Path | str) -> None:
    """Keeps compiled programs in a folder that several processes may use at once.

    The size limit of 8 GiB makes jax lock the folder (by the package filelock). Without the
    lock one process can read a program that another process has half written, and crash.

    A cache with a limit fails on a program whose file with the time of use is missing. Such
    programs come from a process that was killed while it wrote, or that used the folder
    without the limit. This function removes them.

    Raises:
      OSError: the folder cannot be written, or its lock is held for more than 10 s.
      NotImplementedError: the file system of the folder has no locks.
      ImportError: filelock is not installed, and jax needs it as well.
    """
    filelock = require("filelock", "to share compiled programs")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        # Under the lock, because another process may write a program and its time of use.
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
    """Splits the CPU into `num` devices; call this before anything is computed.

    A core with tasks of its own keeps the tasks in its cache and waits for no other core.
    If the arrays of a task nearly fit the cache, this is a third faster than all cores on
    one task. If they do not fit, it is little faster. For tasks of microseconds it is far
    slower (benchmarks/NOTES.md).
    """
    # The user has split the CPU already, and the two ways exclude each other.
    split = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if num > 1 and not split:
        jax.config.update("jax_num_cpu_devices", num)


def _check_address(coordinator: str) -> None:
    """Raises a `ValueError` unless an address is HOST:PORT."""
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise ValueError(
            f"coordinator is {coordinator!r}; expected HOST:PORT with a port of 1 to "
            "65535, such as localhost:9876."
        )


def connect(
    *,
    devices: int | None = None,
    processes: int = 1,
    process: int = 0,
    coordinator: str | None = None,
) -> None:
    """Splits the CPU into devices and joins the other processes, before anything computes.

    Args:
      devices: Number of devices over all processes; all devices if `None`. A CPU in a
        single process then has as many devices as cores.
      processes: Number of processes that train together.
      process: Number of this process, from 0.
      coordinator: Address "HOST:PORT" of the first process.

    Raises:
      ValueError: the numbers do not fit together.
      ConnectionError: the other processes did not come.
    """
    if not 1 <= processes <= MOST_PROCESSES or not 0 <= process < processes:
        raise ValueError(
            f"process {process} of {processes}; expected 1 to {MOST_PROCESSES} processes, "
            "numbered from 0."
        )
    if (processes > 1) != (coordinator is not None):
        raise ValueError(
            f"processes is {processes} and coordinator is {coordinator}; several processes "
            "need the address of the first, such as --coordinator localhost:9876, and one "
            "process needs none."
        )
    if devices is not None:
        mesh.check_devices(devices, processes)
    if coordinator is not None:
        _check_address(coordinator)
    if devices is not None:
        # If jax has been used already, `task_mesh` says how many devices there are.
        with contextlib.suppress(RuntimeError):
            split_cpu(devices // processes)
    elif processes == 1 and jax.config.jax_num_cpu_devices < 1:
        # If jax has been used already, the number of devices cannot be changed.
        with contextlib.suppress(RuntimeError):
            split_cpu(cores())
    if processes > 1:
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes=processes,
                process_id=process,
                initialization_timeout=60,
                heartbeat_timeout_seconds=20,  # a dead process stops the others by then
            )
        except jax.errors.JaxRuntimeError as error:
            raise ConnectionError(
                f"the {processes} processes did not meet at {coordinator} "
                f"({in_short(error)}). Start the command once for each process, all with "
                "the address of the first."
            ) from error
