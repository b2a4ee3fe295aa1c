"""The folder of a run, which is created once and compared before training is resumed.

config.json         recipe, every setting, seed, data, versions, device
metrics.jsonl       rows of training and validation
checkpoints/        state to resume from, and the best variables by validation
results.json        accuracy on meta-test classes
learning_curve.png  training and validation against steps
episode.png         one meta-test task before and after adaptation
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from metalearn.apps import Recipe, recipe_of
from metalearn.apps.base import DataRecord
from metalearn.runs import environment
from metalearn.training.checkpoint import Checkpoints, read_json

FORMAT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder and the contents of its `config.json`.

    Attributes:
      folder: Path of the run.
      name: Name of the recipe.
      recipe: Settings of the run.
      seed: Seed of training, for initialisation and tasks.
      record: Description of the training data, from `Application.describe`.
    """

    folder: Path
    name: str
    recipe: Recipe
    seed: int
    record: DataRecord

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
        return Checkpoints(self.folder / "checkpoints")


def stored_config(folder: Path) -> dict[str, Any] | None:
    """Contents of the `config.json` of a folder; None if there is no such file.

    Raises:
      ValueError: the file is damaged or is not the configuration of a run.
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
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a run needs a folder. Give another --out.")
    # A process that is killed while it writes leaves a .part behind.
    if not folder.is_dir() or all(p.suffix == ".part" for p in folder.iterdir()):
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
    wanted = _identity(name, recipe, seed)
    if lines := _differences(_identity(*_read(folder, config)), wanted):
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
      ValueError: the run in the folder was trained on other data.
    """
    run = Run(folder=folder, name=name, recipe=recipe, seed=seed, record=record)
    config = stored_config(folder)
    if config is not None:
        if lines := _differences(_contents(config["data"]), _contents(record)):
            raise ValueError(
                f"{folder} holds a run on other data:\n  "
                + "\n  ".join(lines)
                + "\nGive it the data it began with, or start a new run."
            )
        return run
    folder.mkdir(parents=True, exist_ok=True)
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
    write_json(folder / "config.json", config)
    return run


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
    return Run(folder=folder, name=name, recipe=recipe, seed=seed, record=record)


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


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A reader sees the old file or the new one, and never half of one.
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _identity(name: str, recipe: Recipe, seed: int) -> dict[str, Any]:
    return {"recipe": name, "seed": seed, **_flat(recipe.settings())}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"app.ways": 5}` for `{"app": {"ways": 5}}`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _contents(record: DataRecord) -> dict[str, Any]:
    """The facts by which two data sets are the same, wherever their files are."""
    contents = {k: record[k] for k in ("image_shape", "num_classes") if k in record}
    for part, numbers in record.get("parts", {}).items():
        contents |= {f"{part} {name}": value for name, value in numbers.items()}
    return contents


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    missing = "(nothing)"
    return [
        f"{name}: the run has {stored.get(name, missing)}, asked for "
        f"{wanted.get(name, missing)}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name, missing) != wanted.get(name, missing)
    ]
