"""Tasks shared among devices and processes, on JAX's own meshes.

To share tasks, make a mesh with `task_mesh` and set it by `jax.set_mesh`. Sampling,
meta-gradients and evaluation then run on each device's share of the tasks, and all devices
hold the same learned arrays. Without a mesh the functions of this module do nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from metalearn.core.types import PyTree

TASKS = "tasks"
MOST_CPU_DEVICES = 256
"""Devices that a CPU is split into at most; each has threads of its own."""


def task_mesh(devices: int | None = None) -> Mesh:
    """A mesh that shares tasks among the devices of all processes.

    Args:
      devices: Number of devices, 1 or more; all devices if `None`. The number has to be a
        multiple of the number of processes.

    Raises:
      ValueError: the machine has fewer devices, or the devices do not divide over the
        processes.

    Example:
      >>> with jax.set_mesh(ml.task_mesh(8)):
      ...     result = ml.fit(trainer, tasks, ...)
    """
    found = jax.devices()
    num = len(found) if devices is None else devices
    whole = isinstance(num, (int, np.integer)) and not isinstance(num, bool)
    if not whole or not 1 <= num <= len(found):
        hint = ""
        if found[0].platform == "cpu" and whole and 1 <= num <= MOST_CPU_DEVICES:
            hint = (
                " A CPU counts as one device; split it before anything is computed by "
                f"jax.config.update('jax_num_cpu_devices', {num})."
            )
        raise ValueError(
            f"devices is {devices!r}; expected 1 to {len(found)}, the number of "
            f"{found[0].platform} devices here.{hint}"
        )
    processes = jax.process_count()
    if num % processes:
        raise ValueError(
            f"{num} devices do not divide over {processes} processes; ask for a multiple."
        )
    # The same number from each process, so that each feeds an equal slice of a batch.
    each = num // processes
    chosen = [
        device
        for process in range(processes)
        for device in [d for d in found if d.process_index == process][:each]
    ]
    return jax.make_mesh((num,), (TASKS,), axis_types=(AxisType.Auto,), devices=chosen)


def fitting(num_tasks: int, *, padded: bool = False) -> int:
    """Default number of devices for `num_tasks` tasks at a time.

    The cores of a CPU are all used. Only one accelerator is used, because the others may be
    meant for other users.

    Args:
      num_tasks: Number of tasks of an outer step or of an evaluation.
      padded: Whether tasks are added until the number divides, as in an evaluation.
        Otherwise every device runs all tasks that are left over, in a program twice as
        large.
    """
    if jax.default_backend() != "cpu":
        return 1
    rest = (lambda n: num_tasks % n > 0) if padded else (lambda n: num_tasks % n)
    # The cost is the number of rounds of one task each. `min` keeps the fewest devices
    # among equals.
    found = range(1, len(jax.devices()) + 1)
    return min(found, key=lambda n: num_tasks // n + rest(n))


def shares() -> int:
    """Number of devices that share tasks in the current mesh; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or TASKS not in mesh.axis_names or TASKS in mesh.manual_axes:
        return 1
    kind = mesh.axis_types[mesh.axis_names.index(TASKS)]
    if kind != AxisType.Auto:
        raise ValueError(
            f"the current mesh has an axis {TASKS!r} of type {kind.name}; expected Auto. "
            "Make the mesh by ml.task_mesh."
        )
    return mesh.shape[TASKS]


def share(
    fn: Callable[..., tuple[PyTree, PyTree]], common: PyTree, *batched: PyTree
) -> tuple[PyTree, PyTree]:
    """Runs `fn` on every device's share of the tasks.

    Args:
      fn: Function `(common, *batched) -> (to_sum, per_task [T', ...])` for any number of
        tasks T'. The function must not close over traced arrays.
      common: Arrays that every device reads.
      *batched: Arrays `[T, ...]`.

    Returns:
      The sum over the shares, and the per-task results `[T, ...]`. If T does not divide
      over the devices, every device runs the tasks that are left over.

    Raises:
      ValueError: the batch has fewer tasks than the mesh has devices.
    """
    num, num_tasks = shares(), jax.tree.leaves(batched)[0].shape[0]
    if num == 1:
        return fn(common, *batched)
    even = num_tasks // num * num
    check_enough(num_tasks, num)
    if even < num_tasks:
        # The rest is not padded: a padded task would count in the sum.
        total, stacked = share(fn, common, *jax.tree.map(lambda x: x[:even], batched))
        rest, others = fn(common, *jax.tree.map(lambda x: x[even:], batched))
        return (
            jax.tree.map(jnp.add, total, rest),
            jax.tree.map(lambda a, b: jnp.concatenate([a, b]), stacked, others),
        )

    def local(common: PyTree, batched: tuple):
        to_sum, per_task = fn(common, *batched)
        return jax.lax.psum(to_sum, TASKS), per_task

    # `check_vma=False` switches off the tracking of varying values, which would sum the
    # derivatives inside over all shares. Each is meant to be of its own share.
    return jax.shard_map(
        local, in_specs=(P(), P(TASKS)), out_specs=(P(), P(TASKS)), check_vma=False
    )(common, batched)


def check_devices(devices: int, processes: int = 1) -> None:
    """Checks a number of devices before a CPU is split into them.

    Args:
      devices: Number of devices over all processes.
      processes: Number of processes.

    Raises:
      ValueError: the number is below 1, does not divide over the processes, or is larger
        than a process can have.
    """
    if devices < 1 or devices % processes:
        raise ValueError(
            f"devices is {devices}; expected a positive multiple of {processes}, "
            "the number of processes."
        )
    if devices // processes > MOST_CPU_DEVICES:
        raise ValueError(
            f"devices is {devices} in {processes} process(es); expected at most "
            f"{MOST_CPU_DEVICES} for a process. Devices help up to the number of cores or "
            "accelerators: leave the option out to use what there is."
        )


def check_enough(num_tasks: int, num: int) -> None:
    """Raises a `ValueError` unless each of `num` devices gets a task."""
    if num_tasks < num:
        raise ValueError(
            f"{num_tasks} tasks for {num} devices; expected a task for each at least. Take "
            f"{num} tasks or more, or {num_tasks} devices or fewer."
        )


def check_divides(num_tasks: int, num: int) -> None:
    """Raises a `ValueError` unless the tasks divide over `num` devices."""
    if num_tasks % num:
        below = num_tasks // num * num
        near = f"{below} or {below + num}" if below else str(num)
        raise ValueError(
            f"{num_tasks} tasks do not divide over {num} devices. Take {near} tasks, or a "
            "number of devices that divides them."
        )


def everywhere(tree: PyTree) -> PyTree:
    """Copies concrete arrays to all devices of the current mesh."""
    mesh = _tasks_mesh()
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, P()))


def local_share(num_tasks: int) -> slice | None:
    """Slice of a batch that this process has to provide; `None` for the whole batch."""
    processes, here = jax.process_count(), jax.process_index()
    if processes == 1 or shares() == 1:
        return None
    each = num_tasks // processes
    return slice(here * each, (here + 1) * each)


def place_tasks(tasks: PyTree) -> PyTree:
    """Moves tasks `[T, ...]` from the host to the devices that share the tasks."""
    if shares() == 1:
        return jax.device_put(tasks)
    divide = jax.tree.leaves(tasks)[0].shape[0] % shares() == 0
    # A sharding needs equal parts. `share` splits what does not divide.
    if jax.process_count() == 1 and not divide:
        return everywhere(tasks)
    sharding = NamedSharding(jax.sharding.get_mesh(), P(TASKS))
    if jax.process_count() == 1:
        return jax.device_put(tasks, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), tasks
    )


def replicated(tree: PyTree) -> PyTree:
    """Makes every device and process hold the results; for use in a compiled function."""
    if shares() == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, P())


def sharding() -> Any:
    """Sharding with which the arrays of a checkpoint are restored."""
    mesh = _tasks_mesh()
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return NamedSharding(mesh, P())


def _tasks_mesh() -> Mesh | None:
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty or TASKS not in mesh.axis_names else mesh


def leads() -> bool:
    """Whether this process writes the files and prints."""
    return jax.process_index() == 0


def agree(number: int) -> int:
    """The number that the first process gives; all processes have to call this together.

    Numbers that decide the calls of a compiled program must not differ between processes.
    """
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_succeed(error: Exception | None) -> None:
    """Raises on every process if any has an error; all processes have to call this.

    Raises:
      Exception: the error of this process.
      RuntimeError: another process has an error.
    """
    failed = np.zeros(1)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = multihost_utils.process_allgather(np.int32(error is not None))
    if error is not None:
        raise error
    if np.any(failed):
        raise RuntimeError(
            f"process {int(np.argmax(failed))} of this run has failed; its own message "
            "says why."
        )


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """Runs a block in the first process before the other processes enter the block.

    Raises:
      RuntimeError: another process has an error, and this one has none.
    """
    if not leads():
        # The first of two meetings: the others wait here until the first process is done.
        all_succeed(None)
    error = None
    try:
        yield
    except Exception as caught:  # any kind: the other processes wait for the result
        error = caught
    if leads():
        all_succeed(error)
    all_succeed(error)
