"""Functions on a run: train, evaluate, report, draw."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from metalearn.apps import Recipe, plots
from metalearn.apps.base import DataRecord
from metalearn.core import files, mesh
from metalearn.core.keys import of_seed
from metalearn.core.learner import describe
from metalearn.core.model import Variables
from metalearn.core.task import Tasks
from metalearn.data.images.image_sets import ImageDataset
from metalearn.data.images.shared import Shared, shared_classes
from metalearn.runs import environment
from metalearn.runs.folder import Run, stored_data_dir
from metalearn.tasks import in_order
from metalearn.training.checkpoint import Checkpoints, one_writer
from metalearn.training.evaluation import Evaluation, evaluate
from metalearn.training.fit import FitResult, Validation, fit
from metalearn.training.sinks import Sink, json_lines, rewrite


def train(
    run: Run,
    data: Any,
    *,
    sinks: Sequence[Sink] = (),
    progress: bool | None = None,
) -> FitResult:
    """Trains, or resumes from the latest checkpoint as if never interrupted.

    Raises:
      FolderInUse: another process trains there.
      CannotWrite: the disk is full, say; the checkpoints written before are whole.
    """
    with one_writer(run.folder), contextlib.closing(run.checkpoints()) as checkpoints:
        return _train(run, data, checkpoints, sinks, progress)


def _train(
    run: Run,
    data: Any,
    checkpoints: Checkpoints,
    sinks: Sequence[Sink],
    progress: bool | None,
) -> FitResult:
    recipe = run.recipe
    # Rows after the latest checkpoint are removed, because they will be written again.
    history = _restore(run, checkpoints)[2].get("history", [])
    if mesh.leads():
        rewrite(run.metrics_path, history)
    validation_tasks, num = judged_tasks(
        recipe, data, "validation", recipe.validation_tasks
    )
    validation = Validation(
        tasks=validation_tasks,
        learner=recipe.build_judged(run.record),
        num_tasks=num,
        every=recipe.validate_every,
        start=recipe.validate_start,
        metrics=recipe.app.measures,
        metric=recipe.app.metric,
        patience=recipe.patience,
    )
    return fit(
        recipe.trainer(run.record),
        recipe.app.tasks(data, "train"),
        num_steps=recipe.steps,
        tasks_per_step=recipe.tasks_per_step,
        key=of_seed(run.seed),
        validation=validation,
        log_every=recipe.log_every,
        sinks=(json_lines(run.metrics_path), *sinks),
        progress=progress,
        checkpoints=checkpoints,
        checkpoint_every=recipe.checkpoint_every,
        nonfinite=recipe.nonfinite,
        resume=True,
    )


def checkpoint_step(run: Run) -> int | None:
    """Step of the latest checkpoint; None if there is none."""
    return run.checkpoints().latest()


def best(run: Run) -> tuple[Variables, dict[str, Any]]:
    """The best variables by validation, and the progress of the run.

    The progress has the entries `step`, `best_step`, `finished` and `training_seconds`.

    Raises:
      FileNotFoundError: the run has no checkpoint yet.
      ValueError: the checkpoint is of another learner than `config.json` says.
    """
    step, tree, extra = _restore(run, run.checkpoints())
    if step is None:
        raise FileNotFoundError(
            f"{run.folder} has no checkpoint yet. Go on training it with --resume."
        )
    _check_learner(run, extra["identity"]["learner"])
    # A run that lost patience is finished before its last step.
    done = step >= run.recipe.steps or extra["stopped"]
    return tree["best"], {
        "step": step,
        "best_step": extra["best_step"],
        "finished": done,
        "training_seconds": round(extra["seconds"], 1),
    }


def _check_learner(run: Run, trained: dict[str, Any]) -> None:
    """Refuses weights of another learner, which may fit in shape and mean another thing."""
    said = describe(run.recipe.build(run.record))
    if said != trained:
        differ = sorted(k for k in said.keys() | trained if said.get(k) != trained.get(k))
        pairs = [
            f"{k}: trained with {trained.get(k)}, config.json says {said.get(k)}"
            for k in differ
        ]
        raise ValueError(
            f"{run.config_path} was changed after training:\n  "
            + "\n  ".join(pairs)
            + "\nRestore the file, or train the run again in another folder."
        )


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

    The test tasks depend on `seed` and not on the seed of training, so that runs can be
    compared task by task.

    Args:
      run: Run whose learner to use.
      variables: Variables from `best`.
      data: Data with a test part, possibly another set than that of training.
      recipe: Recipe of the run with other evaluation settings; that of the run if None.
      seed: Seed of the test tasks.
      progress: Whether to draw a progress bar; `None` decides by the terminal.
    """
    recipe = recipe or run.recipe
    tasks, num = judged_tasks(recipe, data, "test", recipe.test_tasks, seed=seed)
    return evaluate(
        recipe.build_judged(run.record),
        variables,
        tasks,
        num_tasks=num,
        key=of_seed(seed),
        metrics=recipe.app.measures,
        progress=progress,
    )


def judged_tasks(
    recipe: Recipe, data: Any, part: str, num: int, *, seed: int = 0
) -> tuple[Tasks, int]:
    """Tasks of a validation or a test, and how many of them there are at most.

    Where there are so many tasks and no more, such as users, each comes once: an interval
    over users that were drawn several times would be too narrow.

    Args:
      recipe: Recipe with the evaluation settings.
      data: Data with that part.
      part: Part of the data, "validation" or "test".
      num: Number of tasks that are asked for.
      seed: Seed of the tasks that come once.
    """
    tasks = recipe.app.tasks(data, part)
    different = getattr(tasks.sample, "num_tasks", None)
    if different is None:
        return tasks, num
    if different < 2:
        raise ValueError(
            f"{tasks.name} has {different} task; expected 2 or more, for an interval. Give "
            f"the {part} more data, by a share of it (see --help for --app), or make its "
            "tasks smaller."
        )
    return in_order(tasks, seed=seed), min(num, different)


def results(
    run: Run,
    evaluation: Evaluation,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    record: DataRecord | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """The result with all facts that a reported number needs, as JSON values.

    Args:
      run: The run that was evaluated.
      evaluation: Result of `judge`.
      recipe: Recipe that was given to `judge`.
      seed: Seed that was given to `judge`.
      record: Description of the test data; that of the run if None.
      seconds: Duration of the evaluation; unknown if None.
    """
    recipe = recipe or run.recipe
    names = ("test_ways", "test_shots", "eval_queries")
    settings = {
        name: getattr(recipe.app, name) for name in names if hasattr(recipe.app, name)
    }
    steps = recipe.eval_steps
    settings["eval_steps"] = (
        getattr(recipe.learner, "eval_steps", None) if steps is None else steps
    )
    settings["norm"] = getattr(recipe.learner, "norm", None)
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
    """Writes the pictures of the learning curve and of test tasks; returns their paths."""
    curve, episode = run.folder / "learning_curve.png", run.folder / "episode.png"
    kept = "The checkpoints and results of the run are whole."
    with files.writing(curve, kept=kept):
        plots.learning_curve(curve, trained.history, f"{run.name}, seed {run.seed}")
    # On the host, because the picture is drawn without the mesh of training.
    variables = jax.device_get(trained.variables)
    predictor = run.recipe.predictor(run.record, variables, data)
    with files.writing(episode, kept=kept):
        run.recipe.app.draw(episode, run.record, data, predictor)
    return [path for path in (curve, episode) if path.is_file()]


def check_images(run: Run, record: DataRecord) -> None:
    """Refuses images of another size or colour than those of training, other classes of
    one persistent model, and other codes.

    Raises:
      ValueError: the images differ (the message names both kinds and the options that
        convert), or codes of categories mean something else.
    """
    if run.record.get("vocabulary") != record.get("vocabulary"):
        raise ValueError(
            f"the columns of users and items of {record['name']!r} have other values than "
            "when the run was trained, so that its embeddings would be those of others. "
            "Evaluate on the tables of training, to which users, items and ratings may be "
            "added, but no new values; or train again."
        )
    names = [found.get("class_names") for found in (run.record, record)]
    if names[0] != names[1]:
        raise ValueError(
            f"the run was trained on the classes {names[0]}, and {record['name']!r} has "
            f"{names[1]}: a logit would be that of another class. Give the classes of "
            "training, by their names and in their order; or train again."
        )
    trained, given = run.record.get("image_shape"), record.get("image_shape")
    # Features and curves have no shape of images on either side.
    if trained == given:
        return

    def words(shape: list[int]) -> str:
        return f"{shape[0]}x{shape[1]} {'grey' if shape[2] == 1 else 'colour'}"

    raise ValueError(
        f"the run was trained on {words(trained)} images, but {record['name']!r} holds "
        f"{words(given)} images. Where the data set can convert (folder:PATH), add "
        f"--image-size {trained[0]} --channels {trained[2]}."
    )


def same_test_data(run: Run, record: DataRecord) -> bool:
    """Whether the test images are the same as when training began."""
    return _test_part(run.record) == _test_part(record)


def trained_on(run: Run, data: ImageDataset | Mapping[str, ImageDataset]) -> list[Shared]:
    """Test classes of other data that the run was trained on under any name.

    Args:
      run: A run on images, or on a mixture of image sets.
      data: The other data: a set, or the sets of a mixture by name.

    Returns:
      One entry for each kind of class, see `ml.data.shared_classes`.

    Raises:
      OSError, ValueError, ImportError: the training data cannot be read where the run
        found it.
    """
    known = run.recipe.app.load(stored_data_dir(run.folder), ("train",))
    seen = {
        f"{name}, as the run saw it": dataclasses.replace(one, validation=None, test=None)
        for name, one in _sets(known).items()
    }
    tested = {
        name: dataclasses.replace(one, train=None, validation=None)
        for name, one in _sets(data).items()
    }
    return shared_classes(seen | tested)


def _sets(data: ImageDataset | Mapping[str, ImageDataset]) -> dict[str, ImageDataset]:
    if not isinstance(data, (ImageDataset, Mapping)):
        raise ValueError(f"a {type(data).__name__} is no set of images")
    return {data.name: data} if isinstance(data, ImageDataset) else dict(data)


def _test_part(record: DataRecord) -> Any:
    return record.get("parts", {}).get("test")


def _restore(run: Run, checkpoints: Checkpoints) -> tuple[int | None, Any, dict[str, Any]]:
    """Step, arrays and notes of the latest checkpoint; None and nothing without one."""
    # The checkpoint is read into these shapes, so no array is made before.
    state = run.recipe.state_like(run.record)
    like = {"state": state, "best": state.variables}
    while (step := checkpoints.latest()) is not None:
        try:
            return step, *checkpoints.restore(step, like=like)
        except (ValueError, FileNotFoundError):
            # A run that goes on may have put a later one in its place meanwhile.
            if checkpoints.latest() == step:
                raise
    return None, None, {}
