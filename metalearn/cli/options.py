"""Options of each command, and the recipe that options of an evaluation ask for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from metalearn import runs
from metalearn.apps import Recipe
from metalearn.apps.records import changed
from metalearn.core.errors import reading
from metalearn.core.optional import require
from metalearn.data.images.limits import within


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """Largest images and files that are read, see `metalearn.data.images.limits`.

    Attributes:
      max_pixels: Pixels of one image; 64 Mi if not given.
      max_bytes: Bytes of all images together once they are decoded; 8 GiB if not given.
      max_file_bytes: Bytes of one image file; 64 MiB if not given.
      max_files: Files of one folder or archive; 2 Mi if not given.
    """

    max_pixels: int | None = None
    max_bytes: int | None = None
    max_file_bytes: int | None = None
    max_files: int | None = None

    def around(self) -> contextlib.AbstractContextManager[None]:
        """The limits as those of all images that are read inside."""
        names = [field.name for field in dataclasses.fields(LimitOptions)]
        return within(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Lists recipes and learners.

    Attributes:
      json: Prints JSON.
    """

    json: bool = False


@dataclasses.dataclass(frozen=True)
class TrainOptions(LimitOptions):
    """Folder, data, seed and devices of a run.

    Attributes:
      out: Run folder; runs/RECIPE-seedN if not given.
      data_dir: Folder of original archives, for data sets that need one.
      seed: Seed of initialisation and training tasks.
      seeds: Several seeds, such as 0-4 or 0,2,5: each is trained in its own folder
        OUT-seedN, one after another, and a table compares them. Runs that exist already
        go on.
      resume: Resumes the run in the folder. Options that are not given are those of the
        run. The result is the same as without the interruption, or the same up to rounding
        on another number of devices.
      devices: Number of devices, over all processes, that share the tasks of a step. The
        default is one accelerator, or as many cores of the CPU as the tasks need; with
        several processes the default is all devices.
      processes: Number of processes that train together; start the command once for each.
      process: Number of this process, from 0; the first process writes the run folder.
      coordinator: Address HOST:PORT at which the others reach the first process.
    """

    out: str | None = None
    data_dir: str | None = None
    seed: int = 0
    seeds: str | None = None
    resume: bool = False
    devices: int | None = None
    processes: int = 1
    process: int = 0
    coordinator: str | None = None


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(LimitOptions):
    """Evaluates the best variables of a run on meta-test classes.

    Attributes:
      run: Run folder.
      dataset: Data set to test on; that of training if None.
      data_dir: Folder of original archives.
      split: Split of the classes.
      image_size: Side that images are resized to, for sets that can.
      channels: Number of channels, 1 for grey or 3 for colour, for sets that can convert.
      tasks: Number of test tasks; that of the recipe if None.
      state: State of a test of ratings: warm, user, item or both.
      ways: Classes of a task.
      shots: Support examples of a class.
      queries: Query examples of a class.
      steps: Inner steps, 0 for none; those of the recipe if None.
      norm_policy: Statistics that batch norm uses: "batch" is transductive, "support"
        is not; as in training if None.
      seed: Seed of the test tasks, independent of the seed of training.
      json: Prints JSON alone to stdout.
    """

    run: str
    dataset: str | None = None
    data_dir: str | None = None
    split: str | None = None
    image_size: int | None = None
    channels: int | None = None
    tasks: int | None = None
    state: str | None = None
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None
    steps: int | None = None
    norm_policy: str | None = None
    seed: int = 0
    json: bool = False


@dataclasses.dataclass(frozen=True)
class CompareOptions(LimitOptions):
    """Compares runs on the same meta-test tasks, each with the first.

    Attributes:
      runs: Run folders, two or more.
      dataset: Data set to test on; that of training if None.
      data_dir: Folder of original archives.
      split: Split of the classes.
      image_size: Side that images are resized to, for sets that can.
      channels: Number of channels, 1 for grey or 3 for colour, for sets that can convert.
      tasks: Number of test tasks; that of the first run's recipe if None.
      state: State of a test of ratings: warm, user, item or both.
      ways: Classes of a task.
      shots: Support examples of a class.
      queries: Query examples of a class.
      seed: Seed of the test tasks.
      json: Prints JSON alone to stdout.
    """

    runs: tuple[str, ...]
    dataset: str | None = None
    data_dir: str | None = None
    split: str | None = None
    image_size: int | None = None
    channels: int | None = None
    tasks: int | None = None
    state: str | None = None
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None
    seed: int = 0
    json: bool = False


@dataclasses.dataclass(frozen=True)
class PredictOptions(LimitOptions):
    """Classifies one's own images or texts by a few examples.

    Attributes:
      run: Run folder.
      support: Folder or zip of examples, class/image.png; of texts a .csv file with the
        columns text and category, or a .jsonl file of "sentence" and "label".
      images: Images to classify: files, or folders of images.
      texts: Texts to classify, each in quotation marks, for a run on texts.
      texts_in: File whose lines are further texts to classify.
      data_dir: Folder of the texts of training; that of the run if not given.
      invert: Whether to swap light and dark. The default swaps dark drawings on light
        paper for runs on light strokes, such as glyphs and omniglot.
      out: File of a picture, such as picture.png; none is drawn if None.
      json: Prints JSON alone to stdout.
    """

    run: str
    support: str = ""
    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    texts_in: str | None = None
    data_dir: str | None = None
    invert: Literal["auto", "yes", "no"] = "auto"
    out: str | None = None
    json: bool = False


@dataclasses.dataclass(frozen=True)
class DataListOptions:
    """Lists data sets.

    Attributes:
      json: Prints JSON.
    """

    json: bool = False


@dataclasses.dataclass(frozen=True)
class PrepareOptions(LimitOptions):
    """Builds the records of a data set.

    Attributes:
      name: Name in `metalearn data list`, or a folder or zip of images.
      data_dir: Folder of original archives, for data sets that need one.
      split: Split of the classes, for sets that have several.
      image_size: Side that images are resized to, for sets that can.
      channels: Number of channels, 1 for grey or 3 for colour, for sets that can convert.
      force: Builds again even if the records exist.
    """

    name: str
    data_dir: str | None = None
    split: str | None = None
    image_size: int | None = None
    channels: int | None = None
    force: bool = False


def parse(options: type, argv: Sequence[str], command: str) -> Any:
    """Reads the options of one command.

    Raises:
      SystemExit: --help was given, or an option is wrong; a message has been printed.
    """
    tyro = require("tyro", "to read the command line")

    return tyro.cli(
        options,
        args=list(argv),
        prog=f"metalearn {command}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
    )


def load_run(folder: str | Path) -> runs.Run:
    """Opens a run folder and checks its settings.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: the run is damaged or holds settings that nobody could have trained with.
    """
    with reading_run(folder):
        run = runs.load(folder)
    try:
        run.recipe.check()
        check_seed(run.seed)
    except ValueError as error:
        raise ValueError(
            f"{run.config_path} was damaged or changed: {error} Restore the file, or train "
            "the run again in another folder."
        ) from error
    return run


def reading_run(folder: str | Path) -> contextlib.AbstractContextManager[None]:
    """Names the run in errors that its files cause."""
    return reading(
        f"the run in {folder}",
        "Its files were damaged or changed: restore them, or train the run again in "
        "another folder.",
    )


@contextlib.contextmanager
def reading_data(recipe: Recipe, options: LimitOptions) -> Iterator[None]:
    """Reads data within the limits, and names the data set in errors that it causes."""
    name = getattr(recipe.app, "dataset", recipe.app.kind)
    remedy = (
        "Its files may be damaged, or none of the kind that the name says: fetch them "
        "again or, if they were prepared from originals, delete the prepared copy."
    )
    with options.around(), reading(f"the data set {name!r}", remedy):
        yield


def for_evaluation(recipe: Recipe, options: EvaluateOptions | CompareOptions) -> Recipe:
    """The recipe with the data and test tasks that the options ask for.

    Raises:
      ValueError: this application does not have one of the options.
    """
    asked = {
        "dataset": options.dataset,
        "split": options.split,
        "image_size": options.image_size,
        "channels": options.channels,
        "state": options.state,
        "eval_ways": options.ways,
        "eval_shots": options.shots,
        "eval_queries": options.queries,
    }
    # None means that the option was not given, and the recipe decides.
    asked = {name: value for name, value in asked.items() if value is not None}
    if options.dataset is not None:
        # Another set has other options, so the options of the training set are dropped.
        asked = {"split": None, "image_size": None, "channels": None, **asked}
    known = vars(recipe.app).keys()
    if unknown := [n for n in asked if n not in known and asked[n] is not None]:
        raise ValueError(
            f"a run of kind {recipe.app.kind!r} has no setting {', '.join(unknown)}. Leave "
            "the option out."
        )
    found = recipe
    for name, value in asked.items():
        if name in known:
            found = changed(found, f"app.{name}", value)
    if options.tasks is not None:
        found = dataclasses.replace(found, test_tasks=options.tasks)
    steps = getattr(options, "steps", None)
    if steps is not None:
        if getattr(found.learner, "eval_steps", None) is not None:
            found = changed(found, "learner.eval_steps", None)
        found = dataclasses.replace(found, eval_steps=steps)
    policy = getattr(options, "norm_policy", None)
    if policy is not None:
        found = _with_policy(found, policy)
    found.check()
    return found


def _with_policy(recipe: Recipe, policy: str) -> Recipe:
    if not hasattr(recipe.learner, "norm"):
        raise ValueError(
            f"{recipe.learner.name} has no policy of batch norm. Leave the option out."
        )
    found = changed(recipe, "learner.norm", policy)
    trained = getattr(recipe.learner, "norm", None)
    found.check()
    averages = ("running", "per_step")
    if policy != trained and (policy in averages or trained == "per_step"):
        raise ValueError(
            f"norm_policy {policy!r} was given to a run trained with {trained!r}: its "
            "averages are not those that would be read. Evaluate with support or batch, or "
            "leave the option out."
        )
    return found


def check_seed(seed: int) -> None:
    """Raises a `ValueError` unless `seed` is a seed that jax accepts."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected 0 or more, below 2**32.")
