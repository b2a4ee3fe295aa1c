"""The folder of a run, which is created once and compared before training is resumed.

One process at a time trains in it (`.lock`); others may read. What is read again carries
a digest, so that a changed file is not taken for that of the run.

config.json         recipe, every setting, seed, data, versions, device
metrics.jsonl       rows of training and validation
checkpoints/        state to resume from, and the best variables by validation
results.json        accuracy on meta-test classes
learning_curve.png  training and validation against steps
episode.png         one meta-test task before and after adaptation
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from metalearn.apps import Recipe, recipe_of
from metalearn.apps.base import DataRecord
from metalearn.core import digest, files, lock, mesh
from metalearn.core.files import read_json
from metalearn.runs import environment
from metalearn.training.checkpoint import Checkpoints

FORMAT = 3
FREE = ("data_dir",)  # the data may be moved


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder and the contents of its `config.json`.

    Attributes:
      folder: Path of the run.
      name: Name of the recipe.
      recipe: Settings of the run.
      seed: Seed of training, for initialisation and tasks.
      record: Description of the training data, from `Application.describe`.
      digest: Digest of `config.json`, which every checkpoint carries.
    """

    folder: Path
    name: str
    recipe: Recipe
    seed: int
    record: DataRecord
    digest: str = ""

    @property
    def config_path(self) -> Path:
        return self.folder / "config.json"

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def results_path(self) -> Path:
        return self.folder / "results.json"

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "checkpoints", run=self.digest)


def stored_config(folder: Path) -> dict[str, Any] | None:
    """Contents of the `config.json` of a folder; None if there is no such file.

    Raises:
      ValueError: the file is damaged, or changed, or not the configuration of a run.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not the configuration of a run of this version (format {FORMAT}). "
            "Use the version of metalearn that wrote it, or train anew in another folder."
        )
    digest.check_seal(config, where=path, remedy=_RESTORE, free=FREE)
    return config


def stored_data_dir(folder: Path) -> str | None:
    """Folder with the data of a run; None if no folder was given or it does not exist."""
    data_dir = (stored_config(folder) or {}).get("data_dir")
    return data_dir if isinstance(data_dir, str) and Path(data_dir).is_dir() else None


def check_folder(
    folder: Path, *, name: str, recipe: Recipe, seed: int, resume: bool
) -> None:
    """Refuses a folder that training would mix up, before anything is computed.

    Raises:
      ValueError: the folder is not empty and `resume` is false, or the folder holds a run
        with other settings; the message lists every difference.
      FolderInUse: another process trains there.
    """
    files.check_name(folder, "--out")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a run needs a folder. Give another --out.")
    # The first of several processes holds the lock for all of them.
    if not jax.distributed.is_initialized() or mesh.leads():
        lock.refuse_if_in_use(folder)
    if not folder.is_dir() or all(map(_is_nothing, folder.iterdir())):
        return  # with `resume` as well, so that a script may always ask for it
    config = stored_config(folder)
    if not resume:
        what = "a run" if config else "files that are not a run"
        remedy = "go on with it by --resume, or give" if config else "give"
        raise ValueError(
            f"{folder} already holds {what}; {remedy} another folder with --out."
        )
    if config is None:
        raise ValueError(
            f"{folder} holds files but no config.json, so there is no run to resume. Give "
            "the folder of a run with --out."
        )
    _check_settings(folder, config, name, recipe, seed)


def _is_nothing(path: Path) -> bool:
    """Whether a file is no part of a run: a lock, or what a killed process left."""
    return path.name in lock.NAMES or path.suffix == files.PART


def _check_settings(
    folder: Path, config: dict[str, Any], name: str, recipe: Recipe, seed: int
) -> None:
    wanted = identity(name, recipe, seed)
    if lines := differences(identity(*_read(folder, config)), wanted):
        hint = ""
        if any(line.startswith("steps:") for line in lines):
            hint = (
                "\nA run cannot be made longer: its outer learning rate was scheduled "
                "over the number of steps."
            )
        raise ValueError(
            f"{folder} holds a run with other settings, which --resume cannot change:\n  "
            + "\n  ".join(lines)
            + f"{hint}\nRepeat its settings, or start a new run with another --out."
        )


def start(
    folder: Path,
    *,
    name: str,
    recipe: Recipe,
    seed: int,
    record: DataRecord,
    data_dir: str | None = None,
) -> Run:
    """Creates a run folder, or opens the one that `check_folder` let pass.

    Raises:
      ValueError: the run in the folder was trained on other data, or with other settings.
      FolderInUse: another process trains there.
      CannotWrite: the folder cannot be written.
    """
    # Another process may have begun a run there since `check_folder`.
    with lock.held(folder) if mesh.leads() else contextlib.nullcontext():
        config = stored_config(folder)
        if config is None:
            config = _begin(folder, name, recipe, seed, record, data_dir)
        else:
            _check_settings(folder, config, name, recipe, seed)
            _check_data(folder, config["data"], record)
            # What a record computes, such as an order of areas, may differ by device.
            record = config["data"]
    return Run(
        folder=folder,
        name=name,
        recipe=recipe,
        seed=seed,
        record=record,
        digest=config[digest.SEAL],
    )


def _check_data(folder: Path, stored: DataRecord, record: DataRecord) -> None:
    if lines := differences(_contents(stored), _contents(record)):
        raise ValueError(
            f"{folder} holds a run on other data:\n  "
            + "\n  ".join(lines)
            + "\nGive it the data it began with, or start a new run."
        )


def _begin(
    folder: Path,
    name: str,
    recipe: Recipe,
    seed: int,
    record: DataRecord,
    data_dir: str | None,
) -> dict[str, Any]:
    """Writes the `config.json` of a new run; returns its contents."""
    config = {
        "format": FORMAT,
        "recipe": name,
        "seed": seed,
        "settings": recipe.settings(),
        "data": record,
        "data_dir": data_dir and str(Path(data_dir).absolute()),
        "versions": environment.versions(),
        "device": environment.device(),
    }
    config = digest.sealed(config, free=FREE)
    files.write_text(folder / "config.json", _text(config))
    return config


def load(folder: str | Path) -> Run:
    """Opens a run folder.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: the run is damaged, or an incompatible version wrote the run.

    Example:
      >>> run = runs.load("runs/glyphs-maml-seed0")
      >>> variables = runs.best(run)
    """
    folder = Path(folder)
    config = stored_config(folder)
    if config is None:
        raise FileNotFoundError(
            f"{folder} holds no run (no config.json). Train one with: metalearn train "
            f"RECIPE --out {folder}"
        )
    name, recipe, seed = _read(folder, config)
    record = config.get("data")
    if not isinstance(record, dict):
        raise ValueError(_DAMAGED.format(folder / "config.json", "data is no dictionary"))
    return Run(
        folder=folder,
        name=name,
        recipe=recipe,
        seed=seed,
        record=record,
        digest=config[digest.SEAL],
    )


_RESTORE = (
    "Restore the file (data_dir alone may be changed), or train the run again in another "
    "folder."
)
_DAMAGED = (
    "{} cannot be read as a run: {}. Restore the file, use the version of metalearn that "
    "wrote it, or train the run again in another folder."
)


def _read(folder: Path, config: dict[str, Any]) -> tuple[str, Recipe, int]:
    """Name, recipe and seed of a configuration.

    Raises:
      ValueError: something is missing, unknown or of another type.
    """
    try:
        name, seed = config["recipe"], config["seed"]
        recipe = recipe_of(config["settings"])
        if not isinstance(name, str) or not isinstance(seed, int):
            raise TypeError("recipe is no word, or seed no number")
        return name, recipe, seed
    except KeyError as error:
        reason = f"{error} is missing or unknown"
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        reason = str(error)
    raise ValueError(_DAMAGED.format(folder / "config.json", reason))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file with the digest of its contents, in one move.

    Raises:
      CannotWrite: the disk is full, say.
    """
    files.write_text(path, _text(digest.sealed(value)), kept=_KEPT)


_KEPT = "The checkpoints of the run are whole; the same command with --resume goes on."


def _text(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def read_results(folder: str | Path) -> dict[str, Any]:
    """The results of a finished run, as `results.json` has them.

    Raises:
      FileNotFoundError: the run has none yet.
      ValueError: the file is damaged or was changed.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no results.json. Finish the run with: metalearn train "
            f"--resume --out {folder}"
        )
    found = read_json(path)
    remedy = f"Write it anew with: metalearn train --resume --out {folder}"
    digest.check_seal(found, where=path, remedy=remedy)
    del found[digest.SEAL]
    return found


def identity(name: str, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What a run is one of: name of the recipe, seed, and settings by dotted names."""
    return {"recipe": name, "seed": seed, **flat(recipe.settings())}


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"app.ways": 5}` for `{"app": {"ways": 5}}`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _contents(record: DataRecord) -> dict[str, Any]:
    """The facts by which two data sets are the same, wherever their files are."""
    # The number of classes is that of the part "train", which has a digest.
    contents = {k: record[k] for k in ("image_shape",) if k in record}
    for part, numbers in record.get("parts", {}).items():
        contents |= {f"{part} {name}": value for name, value in numbers.items()}
    return contents


def differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """A line for every name whose values are not the same."""
    missing = "(nothing)"
    return [
        f"{name}: the run has {stored.get(name, missing)}, asked for "
        f"{wanted.get(name, missing)}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name, missing) != wanted.get(name, missing)
    ]
