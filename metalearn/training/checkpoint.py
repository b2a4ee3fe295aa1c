"""Checkpoints of any pytree of arrays: atomic, sealed, strict, explicit about differences.

A checkpoint carries a digest of every array and of its own record, so that changed bytes
are noticed by whoever restores it. One process at a time writes to a folder; others may
read there meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, digest, files, given, lock, mesh, optional, trees
from metalearn.core.files import read_json as read_json
from metalearn.core.types import PyTree

FORMAT = 2
ARRAYS, RECORD = "arrays", "record.json"


class CheckpointMismatch(ValueError):
    """The stored arrays are not those that were asked for."""


class Checkpoints:
    """Numbered checkpoints in one folder, their arrays written through orbax.

    A checkpoint appears under its final name only when it is complete, so a process
    killed at any moment leaves the previous one usable. Every array and every file is
    stored with its digest, and compared with it when it is restored. The first `save`
    locks the folder for this process until `close`; `fit` locks it while it trains.

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
        optional.check("to save and restore checkpoints", "orbax")
        checks.whole_number("keep", keep, least=1)
        files.check_name(folder, "the folder of checkpoints")
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{folder} is a file; expected a folder, or none yet.")
        self._keep, self._run = keep, run
        self._lock = contextlib.ExitStack()
        self._writes = False  # whether `save` holds the lock until `close`
        weakref.finalize(self, self._lock.close)

    def steps(self) -> list[int]:
        """Numbers of the complete checkpoints, sorted."""
        if not self.folder.is_dir():
            return []
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
        writes = self._writes
        with one_writer(self.folder):
            self._writes = True  # `save` need not hold the lock any longer than this
            try:
                yield
            finally:
                self._writes = writes

    def save(self, step: int, tree: PyTree, extra: dict[str, Any] | None = None) -> None:
        """Writes arrays and a JSON-able dictionary under the number `step`.

        Raises:
          TypeError: a leaf is no array, or `extra` no dictionary that JSON can say.
          ValueError: `step` is no number of 0 or more above those that are there.
          FolderInUse: another process writes there.
          CannotWrite: the disk is full, say; earlier checkpoints are whole.
        """
        checks.whole_number("step", step, least=0)
        given.check_arrays(tree)
        _check_extra(extra)
        if not self._writes:
            self._lock.enter_context(one_writer(self.folder))
            self._writes = True
        step, last = int(step), self.latest()
        if last is not None and step <= last:
            raise ValueError(
                f"step is {step}, but {self.folder} holds checkpoint {last} already; "
                "expected a later step. Give that, or another folder."
            )
        given.check_kept(tree, "a checkpoint")
        leaves = [_as_of_jax(leaf) for leaf in _to_list(tree)]
        record = {
            "format": FORMAT,
            "step": step,
            "run": self._run,
            "structure": structure(tree),
            "digests": [_digest(leaf) for leaf in leaves],
            "extra": extra or {},
        }
        kept = "No checkpoint was there before."
        if last is not None:
            kept = f"Checkpoints up to {last} are whole; go on from there."
        part = self.folder / f"{step}{files.PART}"
        with files.writing(self.folder / str(step), kept=kept):
            _leader_does(self._remove_parts)
            if leaves:
                with _arrays_of() as (arrays, args):
                    arrays.save(part / ARRAYS, args=args.StandardSave(leaves))
            _leader_does(functools.partial(self._commit, part, record))

    def _commit(self, part: Path, record: dict[str, Any]) -> None:
        """Seals what was written, gives it its name, and removes what is too old."""
        part.mkdir(parents=True, exist_ok=True)
        written = sorted(path for path in part.rglob("*") if path.is_file())
        digests = {p.relative_to(part).as_posix(): digest.of_file(p) for p in written}
        record = digest.sealed({**record, "files": digests})
        (part / RECORD).write_text(json.dumps(record), encoding="utf-8")
        part.rename(self.folder / str(record["step"]))
        for old in self.steps()[: -self._keep]:
            # In one move, so that no half of it looks like a checkpoint.
            old_part = self.folder / f"{old}{files.PART}"
            (self.folder / str(old)).rename(old_part)
            shutil.rmtree(old_part, ignore_errors=True)

    def _remove_parts(self) -> None:
        """Removes what killed processes or a full disk have left."""
        for path in self.folder.glob(f"*{files.PART}"):
            shutil.rmtree(path, ignore_errors=True)

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
        record = self._read_record(step)
        given.check_arrays(like)
        problems = differences(record["structure"], structure(like))
        if problems:
            raise CheckpointMismatch(
                f"checkpoint {step} in {self.folder} does not fit what it is restored "
                "into:\n  "
                + "\n  ".join(problems)
                + "\nRestore it with the model, learner and optimiser it was saved with."
            )
        arrays = self._read_arrays(step, record["files"], _to_list(like))
        self._check_arrays(step, record["digests"], arrays, trees.leaf_paths(like))
        return _from_list(arrays, like), record["extra"]

    def _read_record(self, step: int) -> dict[str, Any]:
        path = self.folder / str(step) / RECORD
        if not path.is_file():
            raise ValueError(
                f"{path} is missing: it was deleted, or an earlier version of metalearn "
                "wrote this checkpoint, without digests. Put it back, or restore it with "
                f"that version. {self._remedy(step)}"
            )
        try:
            record = files.read_json(path)
        except (ValueError, OSError) as error:
            raise self._unreadable(step, error) from error
        digest.check_seal(record, where=path, remedy=self._remedy(step))
        if record["format"] != FORMAT:
            raise ValueError(
                f"{path} has format {record['format']}; expected {FORMAT}. Use the version "
                "of metalearn that wrote it."
            )
        for name, there, here in (
            ("step", record["step"], step),
            ("run", record["run"], self._run or record["run"]),
        ):
            if there != here:
                raise CheckpointMismatch(
                    f"{self.folder / str(step)} is a checkpoint of {name} {there}, "
                    f"expected {here}: this folder, or files beside it, have been moved or "
                    "changed. Put them back."
                )
        return record

    def _read_arrays(self, step: int, digests: dict[str, str], like: list) -> list:
        """The arrays, from files that are known to be whole before orbax parses them."""
        folder = self.folder / str(step)
        try:
            for name, written in digests.items():
                if digest.of_file(folder / name) != written:
                    raise digest.damaged(
                        folder / name,
                        "its contents differ from their digest",
                        self._remedy(step),
                    )
            if not like:
                return []
            target = [_abstract(leaf) for leaf in like]
            with _arrays_of() as (arrays, args):
                return arrays.restore(folder / ARRAYS, args=args.StandardRestore(target))
        except digest.Damaged:
            raise
        except Exception as error:  # whatever orbax and its storage layers raise
            raise self._unreadable(step, error) from error

    def _check_arrays(
        self, step: int, digests: list[str | None], arrays: list, paths: list[str]
    ) -> None:
        changed = [
            path
            for path, written, leaf in zip(paths, digests, arrays, strict=True)
            if written is not None and written != _digest(leaf)
        ]
        if changed:
            named = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
            raise digest.damaged(
                self.folder / str(step) / "arrays",
                f"{named} differ from their digests",
                self._remedy(step),
            )

    def _unreadable(self, step: int, error: Exception) -> ValueError:
        return ValueError(
            f"checkpoint {step} in {self.folder} cannot be read "
            f"({type(error).__name__}: {error}). {self._remedy(step)}"
        )

    def _remedy(self, step: int) -> str:
        """What to do about a checkpoint that cannot be used."""
        # The first of several processes holds the lock for all of them.
        other = lock.holder(self.folder) if mesh.leads() else None
        if other is not None:
            # It may have been replaced while it was read, and is not ours to delete.
            return f"In use by {other}; try again."
        earlier = [s for s in self.steps() if s < step]
        remedy = f"to go on from {max(earlier)}" if earlier else "to start afresh"
        return f"Delete {self.folder / str(step)} {remedy}."

    def close(self) -> None:
        """Releases the lock, which the next `save` takes again."""
        self._writes = False
        self._lock.close()


@contextlib.contextmanager
def _arrays_of() -> Iterator[tuple[Any, Any]]:
    """Orbax's writer and reader of a list of arrays, and the module of its arguments."""
    import orbax.checkpoint as ocp

    # What its threads report, pages of it, comes as an exception as well.
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as arrays:
            yield arrays, ocp.args
    finally:
        log.disabled = before


def _leader_does(act: Callable[[], None]) -> None:
    """Calls a function in the process that writes files; for all of them to call."""
    error = None
    if mesh.leads():
        try:
            act()
        except Exception as caught:  # any kind: the other processes wait
            error = caught
    mesh.all_succeed(error)


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder in the process that writes; for all of them to call.

    Raises:
      FolderInUse: another process holds it.
      RuntimeError: the first of several processes could not take it.
    """
    with contextlib.ExitStack() as stack:
        _leader_does(lambda: stack.enter_context(lock.held(folder)))
        yield


def _check_extra(extra: Any) -> None:
    """Raises a `TypeError` unless JSON can say it, before arrays are written."""
    try:
        if extra is None or (isinstance(extra, dict) and json.dumps(extra)):
            return
        reason = f"it is a {type(extra).__name__}"
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    raise TypeError(
        f"extra cannot be written as JSON ({reason}); expected a dictionary of numbers, "
        "text, lists and dictionaries. Give arrays of NumPy as array.tolist()."
    )


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


def _as_of_jax(leaf: Any) -> Any:
    """An array of NumPy in the dtype in which it will be restored."""
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return leaf
    leaf = np.asarray(leaf)
    return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype.newbyteorder("=")))


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
    leaf = _as_of_jax(leaf)
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)
