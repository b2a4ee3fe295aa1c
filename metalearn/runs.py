"""A run folder: what was asked for, how training went, what it reached.

config.json         recipe, every setting, seed, data, versions, device
metrics.jsonl       rows of training and validation
checkpoints/        state to go on from, and the best variables by validation
results.json        accuracy on meta-test classes
learning_curve.png  training and validation against steps
episode.png         one meta-test task before and after adaptation
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from metalearn import environment, plots
from metalearn.checkpoint import Checkpoints, read_json
from metalearn.evaluation import Evaluation, evaluate
from metalearn.fit import FitResult, Validation, fit
from metalearn.model import Variables
from metalearn.recipes import KINDS, Recipe
from metalearn.recipes.base import Record
from metalearn.sinks import Sink, json_lines, rewrite

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder and what its `config.json` says.

    Attributes:
      folder: Where it is.
      name: Name of the recipe.
      recipe: Settings.
      seed: Of training: initialisation and tasks.
      record: Of the training data, from `Recipe.describe_data`.
      data_dir: Where the data came from, if it was given.
    """

    folder: Path
    name: str
    recipe: Recipe
    seed: int
    record: Record
    data_dir: str | None = None

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
    """What `config.json` of a folder says; None if there is no such file.

    Raises:
      ValueError: it is damaged or of another kind of file.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not the configuration of a run of this version (format {FORMAT})."
        )
    return config


def check_folder(
    folder: Path, *, name: str, recipe: Recipe, seed: int, resume: bool
) -> None:
    """Refuses a folder that training would mix up, before anything is computed.

    Raises:
      ValueError: the folder holds something and `resume` is not asked for, or it holds
        a run with other settings; lists every difference.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a run needs a folder. Give another --out.")
    # A .part is what a process killed while writing leaves behind.
    if not folder.is_dir() or all(p.suffix == ".part" for p in folder.iterdir()):
        return
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
    if lines := _differences(_identity_of(config), wanted):
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
    record: Record,
    data_dir: str | None = None,
) -> Run:
    """Creates a run folder, or opens the one that `check_folder` let pass.

    Raises:
      ValueError: the run there was trained on other data.
    """
    run = Run(
        folder=folder, name=name, recipe=recipe, seed=seed, record=record, data_dir=data_dir
    )
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
        "kind": recipe.kind,
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
      FileNotFoundError: there is no run.
      ValueError: it is damaged, or written by an incompatible version.

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
    return Run(
        folder=folder,
        name=config["recipe"],
        recipe=KINDS[config["kind"]].from_settings(config["settings"]),
        seed=config["seed"],
        record=config["data"],
        data_dir=config.get("data_dir"),
    )


def train(
    run: Run,
    data: Any,
    *,
    sinks: Sequence[Sink] = (),
    progress: bool | None = None,
) -> FitResult:
    """Trains, or goes on from the latest checkpoint, exactly as if never interrupted."""
    recipe, checkpoints = run.recipe, run.checkpoints()
    # Rows after the latest checkpoint will be written again.
    rewrite(run.metrics_path, _restore(run, checkpoints)[1].get("history", []))
    validation = Validation(
        tasks=recipe.tasks(data, "validation"),
        learner=recipe.evaluation_learner(run.record),
        num_tasks=recipe.validation_tasks,
        every=recipe.validate_every,
        metric=recipe.metric,
        patience=recipe.patience,
    )
    try:
        return fit(
            recipe.trainer(run.record),
            recipe.tasks(data, "train"),
            num_steps=recipe.steps,
            tasks_per_step=recipe.tasks_per_step,
            key=jax.random.key(run.seed),
            validation=validation,
            log_every=recipe.log_every,
            sinks=(json_lines(run.metrics_path), *sinks),
            progress=progress,
            checkpoints=checkpoints,
            checkpoint_every=recipe.checkpoint_every,
            resume=True,
        )
    finally:
        checkpoints.close()


def checkpoint_step(run: Run) -> int | None:
    """Step of the latest checkpoint; None if there is none."""
    checkpoints = run.checkpoints()
    step = checkpoints.latest()
    checkpoints.close()
    return step


def best(run: Run) -> tuple[Variables, dict[str, Any]]:
    """The best variables by validation, and `{"step": ..., "best_step": ...}`.

    Raises:
      FileNotFoundError: the run has no checkpoint yet.
    """
    checkpoints = run.checkpoints()
    tree, extra = _restore(run, checkpoints)
    step = checkpoints.latest()
    checkpoints.close()
    if tree is None:
        raise FileNotFoundError(
            f"{run.folder} has no checkpoint yet. Go on training it with --resume."
        )
    done = step >= run.recipe.steps or extra["stopped"]
    return tree["best"], {
        "step": step,
        "best_step": extra["best_step"],
        "finished": done,
        "training_seconds": round(extra["seconds"], 1),
    }


def judge(
    run: Run,
    variables: Variables,
    data: Any,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Evaluation:
    """Evaluates on meta-test classes.

    The test tasks depend on `seed` only, not on the seed of training, so that runs can
    be compared task by task.

    Args:
      run: Whose learner to use.
      variables: From `best`.
      data: With a test part; may be of another set than the run was trained on.
      recipe: That of the run with other evaluation settings.
      seed: Of the test tasks.
      progress: Whether to draw a progress bar; `None` decides by the terminal.
    """
    recipe = recipe or run.recipe
    return evaluate(
        recipe.evaluation_learner(run.record),
        variables,
        recipe.tasks(data, "test"),
        num_tasks=recipe.test_tasks,
        key=jax.random.key(seed),
        progress=progress,
    )


def results(
    run: Run,
    evaluation: Evaluation,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    record: Record | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Everything that a reported number has to carry, as JSON values.

    Args:
      run: The run that was evaluated.
      evaluation: From `judge`.
      recipe: As given to `judge`.
      seed: As given to `judge`.
      record: Of the test data; that of the run if None.
      seconds: How long it took.
    """
    recipe = recipe or run.recipe
    settings = {
        name: getattr(recipe, name)
        for name in ("test_ways", "test_shots", "eval_queries", "eval_inner_steps")
        if hasattr(recipe, name)
    }
    return {
        "recipe": run.name,
        "training_seed": run.seed,
        "test_seed": seed,
        **settings,
        **evaluation.summary(),
        **best(run)[1],
        "evaluation_seconds": seconds and round(seconds, 1),
        "training_data": run.record,
        "test_data": record or run.record,
        "versions": environment.versions(),
        "device": environment.device(),
    }


def draw(run: Run, data: Any, trained: FitResult) -> list[Path]:
    """Writes the learning curve and one meta-test task; returns their paths."""
    curve, episode = run.folder / "learning_curve.png", run.folder / "episode.png"
    plots.learning_curve(curve, trained.history, f"{run.name}, seed {run.seed}")
    run.recipe.draw_episode(episode, run.record, data, trained.variables)
    return [curve, episode]


def check_images(run: Run, record: Record) -> None:
    """Refuses images of another size or colour than the run was trained on.

    Raises:
      ValueError: names both and the options that convert.
    """
    trained, given = run.record.get("image_shape"), record.get("image_shape")
    if trained == given:
        return

    def words(shape: list[int]) -> str:
        return f"{shape[0]}x{shape[1]} {'grey' if shape[2] == 1 else 'colour'}"

    raise ValueError(
        f"the run was trained on {words(trained)} images, but {record['name']!r} holds "
        f"{words(given)} images. Where the data set can convert (folder:PATH), add "
        f"--image-size {trained[0]} --channels {trained[2]}."
    )


def same_test_data(run: Run, record: Record) -> bool:
    """Whether the test images are those that were there when training began."""
    return _test_part(run.record) == _test_part(record)


def _test_part(record: Record) -> Any:
    return record.get("parts", {}).get("test")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _restore(run: Run, checkpoints: Checkpoints) -> tuple[Any, dict[str, Any]]:
    step = checkpoints.latest()
    if step is None:
        return None, {}
    state = run.recipe.state_like(run.record)
    return checkpoints.restore(step, like={"state": state, "best": state.variables})


def _identity(name: str, recipe: Recipe, seed: int) -> dict[str, Any]:
    return {
        "recipe": name,
        "kind": recipe.kind,
        "seed": seed,
        **recipe.settings(),
    }


def _identity_of(config: dict[str, Any]) -> dict[str, Any]:
    names = ("recipe", "kind", "seed")
    return {**{name: config[name] for name in names}, **config["settings"]}


def _contents(record: Record) -> dict[str, Any]:
    """What makes two data sets the same, wherever they lie and however described."""
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


__all__ = [
    "Run",
    "best",
    "check_folder",
    "check_images",
    "checkpoint_step",
    "judge",
    "load",
    "start",
    "train",
]
