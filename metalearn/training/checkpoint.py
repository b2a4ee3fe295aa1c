"""Checkpoints of any pytree of arrays: atomic, strict, and explicit about differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metalearn.core import checks, mesh, trees
from metalearn.core.optional import require
from metalearn.core.types import PyTree


class CheckpointMismatch(ValueError):
    """The stored arrays are not those that were asked for."""


class Checkpoints:
    """Numbered checkpoints in one folder, written through orbax.

    A checkpoint appears under its final name only when it is complete, so a process
    killed at any moment leaves the previous one usable.

    Args:
      folder: Folder that holds them; created when missing.
      keep: Number of the latest checkpoints that are kept.

    Example:
      >>> checkpoints = ml.Checkpoints("run/checkpoints")
      >>> checkpoints.save(100, state, {"seed": 0})
      >>> state, extra = checkpoints.restore(checkpoints.latest(), like=state)
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        ocp = require("orbax.checkpoint", "to save and restore checkpoints")

        checks.whole_number("keep", keep, least=1)
        self._ocp = ocp
        self.folder = Path(folder).absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{folder} is a file; expected a folder, or none yet.")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, `None` when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: PyTree, extra: dict[str, Any] | None = None) -> None:
        """Writes arrays and a JSON-able dictionary under the number `step`."""
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                arrays=args.StandardSave(_to_list(tree)),
                extra=args.JsonSave({"structure": structure(tree), **(extra or {})}),
            ),
            force=True,
        )
        self._manager.wait_until_finished()

    def restore(self, step: int, *, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The arrays of checkpoint `step` in the structure of `like`, and the extra.

        Raises:
          CheckpointMismatch: paths, shapes or dtypes differ; lists every difference.
          FileNotFoundError: there is no such checkpoint.
          ValueError: its files cannot be read.
        """
        if step is None or step not in self._manager.all_steps():
            raise FileNotFoundError(
                f"no checkpoint {step} in {self.folder}; there are "
                f"{sorted(self._manager.all_steps())}."
            )
        args = self._ocp.args
        extra = self._read(step, args.Composite(extra=args.JsonRestore()))
        extra = dict(extra["extra"])
        found = extra.pop("structure")
        problems = differences(found, structure(like))
        if problems:
            raise CheckpointMismatch(
                f"checkpoint {step} in {self.folder} does not fit what it is restored "
                "into:\n  "
                + "\n  ".join(problems)
                + "\nRestore it with the model, learner and optimiser it was saved with."
            )
        target = [_abstract(leaf) for leaf in _to_list(like)]
        stored = self._read(step, args.Composite(arrays=args.StandardRestore(target)))
        return _from_list(stored["arrays"], like), extra

    def _read(self, step: int, args: Any) -> Any:
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # whatever orbax and its storage layers raise
            earlier = [s for s in self._manager.all_steps() if s < step]
            remedy = f"to go on from {max(earlier)}" if earlier else "to start afresh"
            raise ValueError(
                f"checkpoint {step} in {self.folder} cannot be read "
                f"({type(error).__name__}: {error}). Delete {self.folder / str(step)} "
                f"{remedy}."
            ) from error

    def close(self) -> None:
        """Releases the manager's resources."""
        self._manager.close()


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


def read_json(path: str | Path) -> Any:
    """Parses a JSON file.

    Raises:
      FileNotFoundError: it is missing.
      ValueError: it is not JSON; names the file.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_list(tree: PyTree) -> list:
    # A plain list: orbax turns optimiser tuples and registered dataclasses into other
    # containers, and the strict structure is compared by us anyway.
    return [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(tree)]


def _from_list(leaves: list, like: PyTree) -> PyTree:
    kinds, treedef = jax.tree.flatten(like)
    restored = [
        jax.random.wrap_key_data(x, impl=jax.random.key_impl(kind)) if _is_key(kind) else x
        for x, kind in zip(leaves, kinds, strict=True)
    ]
    return jax.tree.unflatten(treedef, restored)


def _abstract(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = mesh.sharding()
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)
