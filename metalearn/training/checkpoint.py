"""Checkpoints of any pytree of arrays: atomic, sealed, strict, explicit about differences.

A checkpoint carries a digest of every array and of its own record, so that changed bytes
are noticed by whoever restores it. One process at a time writes to a folder; others may
read there meanwhile.
"""

from __future__ import annotations

import contextlib
import importlib.util
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, digest, files, lock, mesh, trees
from metalearn.core.files import read_json as read_json
from metalearn.core.types import PyTree

FORMAT = 2


class CheckpointMismatch(ValueError):
    """The stored arrays are not those that were asked for."""


class Checkpoints:
    """Numbered checkpoints in one folder, written through orbax.

    A checkpoint appears under its final name only when it is complete, so a process
    killed at any moment leaves the previous one usable. Every array is stored with its
    digest and compared with it when it is restored. The first `save` locks the folder for
    this process until `close`; `fit` locks it while it trains.

    Args:
      folder: Folder that holds them; created when missing.
      keep: Number of the latest checkpoints that are kept.
      run: Digest or name of the run that they belong to; a checkpoint of another run is not
        restored.

    Example:
      >>> checkpoints = ml.Checkpoints("run/checkpoints")
      >>> checkpoints.save(100, state, {"seed": 0})
      >>> state, extra = checkpoints.restore(checkpoints.latest(), like=state)
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, run: str = ""):
        checks.whole_number("keep", keep, least=1)
        files.check_name(folder, "the folder of checkpoints")
        if importlib.util.find_spec("orbax.checkpoint") is None:
            raise ImportError("checkpoints need a package: pip install orbax-checkpoint")
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{folder} is a file; expected a folder, or none yet.")
        self._keep, self._run = keep, run
        self._manager = None  # of orbax; made by the first `save`
        self._locks = contextlib.ExitStack()
        weakref.finalize(self, self._locks.close)

    def steps(self) -> list[int]:
        """Numbers of the complete checkpoints, sorted."""
        if not self.folder.is_dir():
            return []
        # Orbax gives a folder its number for a name when everything in it is written.
        names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isascii() and name.isdigit())

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, `None` when there is none."""
        return max(self.steps(), default=None)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from writing to the folder; this one may go on.

        Raises:
          FolderInUse: another process writes there; names it, its host and since when.
        """
        with one_writer(self.folder):
            fresh = self._manager is None
            try:
                yield
            finally:
                if fresh:
                    self.close()

    def save(self, step: int, tree: PyTree, extra: dict[str, Any] | None = None) -> None:
        """Writes arrays and a JSON-able dictionary under the number `step`.

        Raises:
          ValueError: `step` is no number of 0 or more above those that are there.
          FolderInUse: another process writes there.
          CannotWrite: the disk is full, say; earlier checkpoints are whole.
        """
        checks.whole_number("step", step, least=0)
        step, last = int(step), self.latest()
        if last is not None and step <= last:
            raise ValueError(
                f"step is {step}, but {self.folder} holds checkpoint {last} already; "
                "expected a later step. Give that, or another folder."
            )
        leaves = _to_list(tree)
        record = {
            "format": FORMAT,
            "step": step,
            "run": self._run,
            "structure": structure(tree),
            "digests": dict(zip(trees.leaf_paths(tree), map(_digest, leaves), strict=True)),
            "extra": extra or {},
        }
        kept = "No checkpoint was there before."
        if last is not None:
            kept = f"Checkpoints up to {last} are whole; go on from there."
        manager = self._writer()
        with files.writing(self.folder / str(step), kept=kept):
            args = self._orbax().args
            manager.save(
                step,
                args=args.Composite(
                    arrays=args.StandardSave(leaves),
                    extra=args.JsonSave(digest.sealed(record)),
                ),
                force=True,
            )
            manager.wait_until_finished()

    def restore(self, step: int, *, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The arrays of checkpoint `step` in the structure of `like`, and the extra.

        Raises:
          CheckpointMismatch: paths, shapes or dtypes differ, and lists every difference; or
            the checkpoint is of another run.
          FileNotFoundError: there is no such checkpoint.
          Damaged: its bytes are not those that were written.
          ValueError: its files cannot be read.
        """
        if step not in self.steps() or isinstance(step, bool):
            raise FileNotFoundError(
                f"no checkpoint {step} in {self.folder}; there are {self.steps()}."
            )
        args = self._orbax().args
        record = self._read(step, args.Composite(extra=args.JsonRestore()))["extra"]
        self._check_record(step, record)
        problems = differences(record["structure"], structure(like))
        if problems:
            raise CheckpointMismatch(
                f"checkpoint {step} in {self.folder} does not fit what it is restored "
                "into:\n  "
                + "\n  ".join(problems)
                + "\nRestore it with the model, learner and optimiser it was saved with."
            )
        target = [_abstract(leaf) for leaf in _to_list(like)]
        stored = self._read(step, args.Composite(arrays=args.StandardRestore(target)))
        arrays = stored["arrays"]
        self._check_arrays(step, record["digests"], arrays)
        return _from_list(arrays, like), record["extra"]

    def _check_record(self, step: int, record: Any) -> None:
        if isinstance(record, dict) and "structure" in record and "format" not in record:
            raise ValueError(
                f"checkpoint {step} in {self.folder} has no digests: an earlier version of "
                "metalearn wrote it. Restore it with that version, or train again in "
                "another folder."
            )
        where = self.folder / str(step) / "extra"
        digest.check_seal(record, where=where, remedy=self._remedy(step))
        if record["format"] != FORMAT:
            raise ValueError(
                f"checkpoint {step} in {self.folder} has format {record['format']}; "
                f"expected {FORMAT}. Use the version of metalearn that wrote it."
            )
        for name, there, here in (
            ("step", record["step"], step),
            ("run", record["run"], self._run or record["run"]),
        ):
            if there != here:
                raise CheckpointMismatch(
                    f"{self.folder / str(step)} was moved here: it is a checkpoint of "
                    f"{name} {there}, expected {here}. {self._remedy(step)}"
                )

    def _check_arrays(self, step: int, digests: dict[str, str], arrays: list) -> None:
        changed = [
            path
            for (path, written), leaf in zip(digests.items(), arrays, strict=True)
            if written is not None and written != _digest(leaf)
        ]
        if changed:
            named = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
            raise digest.damaged(
                self.folder / str(step) / "arrays",
                f"{named} differ from their digests",
                self._remedy(step),
            )

    def _read(self, step: int, args: Any) -> Any:
        ocp = self._orbax()
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                return reader.restore(self.folder / str(step), args=args)
        except Exception as error:  # whatever orbax and its storage layers raise
            raise ValueError(
                f"checkpoint {step} in {self.folder} cannot be read "
                f"({type(error).__name__}: {error}). {self._remedy(step)}"
            ) from error

    def _remedy(self, step: int) -> str:
        """What to do about a checkpoint that cannot be used."""
        # The first of several processes holds the lock for all of them.
        other = lock.holder(self.folder) if mesh.leads() else None
        if other is not None:
            # It may have been replaced while it was read, and is not ours to delete.
            return f"Process {other.pid} on {other.host} trains there; try again."
        earlier = [s for s in self.steps() if s < step]
        remedy = f"to go on from {max(earlier)}" if earlier else "to start afresh"
        return f"Delete {self.folder / str(step)} {remedy}."

    def _writer(self) -> Any:
        """Orbax's manager, which only the process that holds the lock may make."""
        if self._manager is None:
            self._locks.enter_context(one_writer(self.folder))
            ocp = self._orbax()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,  # of killed processes
            )
            with files.writing(self.folder):
                self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def _orbax(self) -> Any:
        import orbax.checkpoint as ocp

        return ocp

    def close(self) -> None:
        """Releases the manager's resources and the lock; `save` takes them again."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()
        self._locks.close()


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder in the process that writes; for all of them to call.

    Raises:
      FolderInUse: another process holds it.
      RuntimeError: the first of several processes could not take it.
    """
    with contextlib.ExitStack() as stack:
        error = None
        if mesh.leads():
            try:
                stack.enter_context(lock.held(folder))
            except Exception as caught:  # any kind: the other processes wait
                error = caught
        mesh.all_succeed(error)
        yield


def structure(tree: PyTree) -> dict[str, str]:
    """`{"params/Dense_0/kernel": "float32[1,40]", ...}`."""
    leaves = [f"{x.dtype}{list(x.shape)}".replace(" ", "") for x in jax.tree.leaves(tree)]
    return dict(zip(trees.leaf_paths(tree), leaves, strict=True))


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """One line for each path that is missing, unexpected or of another shape or dtype."""
    lines = []
    for path in sorted(found.keys() | expected.keys()):
        if path not in found:
            lines.append(f"{path}: expected {expected[path]}, not in the checkpoint")
        elif path not in expected:
            lines.append(f"{path}: the checkpoint holds {found[path]}, not expected")
        elif found[path] != expected[path]:
            lines.append(
                f"{path}: the checkpoint holds {found[path]}, expected {expected[path]}"
            )
    return lines


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_list(tree: PyTree) -> list:
    # A plain list: orbax turns optimiser tuples and registered dataclasses into other
    # containers, and the strict structure is compared by us anyway.
    return [_storable(leaf) for leaf in jax.tree.leaves(tree)]


def _storable(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    # Orbax refuses arrays without elements, which only their shape tells apart.
    return leaf if np.size(leaf) else np.zeros(1, bool)


def _digest(leaf: Any) -> str | None:
    """Digest of an array that this process can see whole."""
    if isinstance(leaf, jax.Array) and not (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    ):
        return None
    return digest.of_array(leaf)


def _from_list(leaves: list, like: PyTree) -> PyTree:
    kinds, treedef = jax.tree.flatten(like)
    restored = [_as_before(x, kind) for x, kind in zip(leaves, kinds, strict=True)]
    return jax.tree.unflatten(treedef, restored)


def _as_before(stored: Any, kind: Any) -> Any:
    if _is_key(kind):
        return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(kind))
    return stored if np.size(kind) else jnp.zeros(kind.shape, kind.dtype)


def _abstract(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = mesh.sharding()
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)
