"""A recipe: every choice of a training run as one typed record, made of records.

    Recipe(app=FewShotImages(ways=5), learner=learners.MAML(inner_opt=sgd(0.4)), steps=1500)

An `Application` exports the data, network, loss, metric and picture of its field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
import numpy as np
import optax

from metalearn.apps import learners, memory
from metalearn.apps.built import built_learner, built_once
from metalearn.apps.learners import Learner
from metalearn.apps.optimisers import Optimiser, Outer, OwnOuter
from metalearn.apps.records import check_type, check_values, from_json, hints, to_json
from metalearn.core.keys import of_seed
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables
from metalearn.core.task import Task, TaskSampler
from metalearn.training.judgement import Metric
from metalearn.training.trainer import MetaTrainer, TrainState, meta_trainer

DataRecord = dict[str, Any]
"""Description of the data of a run: plain JSON values."""


DEFAULT_OUTER = Outer()


class Predictor(NamedTuple):
    """Tasks and predictions for a picture of meta-test tasks.

    Attributes:
      task: Function `number -> Task` that gives the tasks of `evaluate` with seed 0.
      before: Function `(task, x) -> outputs` before adaptation; the result is `None` if the
        learner has no such outputs.
      after: Function `(task, x) -> outputs` after adaptation.
      learner: Title of the learner.
      variables: Variables of the learner.
    """

    task: Callable[[int], Task]
    before: Callable[[Task, Any], np.ndarray | None]
    after: Callable[[Task, Any], np.ndarray]
    learner: str
    variables: Variables


class Application(Protocol):
    """A field of application: a frozen record of settings with these methods.

    Attributes:
      kind: Name in run folders.
      metric: Metric by which validation decides, such as "query/accuracy".
      measures: Metrics beside loss and accuracy, as `evaluate` takes them.
      light: Whether tasks take microseconds, so that sharing them among the cores of a CPU
        makes them slower.
      batches: See `metalearn.algorithms.record.Record`; may be left out.
      ordered: Function `(learner, data, record) -> record` that adds to the description
        what the learner plans its tasks by, or a stand-in if there are no data; may be
        left out.
    """

    kind: ClassVar[str]
    metric: ClassVar[str]
    light: ClassVar[bool]

    @property
    def measures(self) -> Mapping[str, Metric]: ...  # may be an attribute of the class

    def check(self, learner: Learner) -> None:
        """Raises a `ValueError` for settings that exclude one another."""

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""

    def load(self, data_dir: str | None, parts: tuple[str, ...]) -> Any:
        """The data set with these parts; `None` if tasks are made on the fly."""

    def describe(self, data: Any) -> DataRecord:
        """Description of the data that suffices to build the learner again."""

    def tasks(self, data: Any, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner: `model`, `loss_fn`, `num_ways`..."""

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of meta-test tasks before and after adaptation, if any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a training run.

    Attributes:
      app: Field of application: data, network, loss, picture.
      learner: Settings of the learner.
      outer: Outer optimiser.
      eval_steps: Inner steps at validation and test; as in training if None.
      steps: Number of outer steps.
      tasks_per_step: Tasks of one outer step.
      validate_every: Steps between validations, which choose the variables to keep.
      validate_start: Whether the variables before the first step are a choice too.
      validation_tasks: Tasks of one validation.
      patience: Validations without improvement until training stops; no limit if None.
      test_tasks: Tasks of the final evaluation.
      checkpoint_every: Steps between checkpoints.
      log_every: Steps between rows of metrics.jsonl.
      nonfinite: Action at an update that is not finite: "stop" the training, or "skip" and
        count the update.
    """

    app: Application
    learner: Learner
    outer: Outer | OwnOuter = DEFAULT_OUTER
    eval_steps: int | None = None
    steps: int = 1500
    tasks_per_step: int = 16
    validate_every: int = 500
    validate_start: bool = False
    validation_tasks: int = 200
    patience: int | None = None
    test_tasks: int = 600
    checkpoint_every: int = 500
    log_every: int = 100
    nonfinite: Literal["stop", "skip"] = "stop"

    def describe(self, data: Any) -> DataRecord:
        """Description of the data, with what the learner plans its tasks by.

        Raises:
          TypeError, ValueError: see `check_builds`, which comes before any computation.
        """
        record = self.app.describe(data)
        if hasattr(self.app, "ordered"):
            self.check_builds(record)
        return self.ordered(data, record)

    def ordered(self, data: Any, record: DataRecord) -> DataRecord:
        """A description with what the learner plans tasks by; of no data, a stand-in."""
        own = getattr(self.app, "ordered", None)
        return record if own is None else own(self.learner, data, record)

    def build(self, record: DataRecord) -> MetaLearner:
        """The learner with the settings of training."""
        return built_learner((self.learner, self.app), record, evaluating=False)

    def build_judged(self, record: DataRecord, *, steps: int | None = None) -> MetaLearner:
        """The learner with the settings of evaluation, for the same variables.

        Args:
          record: Description of the training data, from `describe`.
          steps: Inner steps in place of those of the recipe; 0 means before adaptation.
        """
        steps = self.eval_steps if steps is None else steps
        return built_learner((self.learner, self.app), record, evaluating=True, steps=steps)

    def outer_opt(self) -> optax.GradientTransformation:
        """The outer optimiser with its schedule and clipping."""
        return self.outer.build(self.steps)

    @built_once
    def trainer(self, record: DataRecord) -> MetaTrainer:
        """Learner and outer optimiser together."""
        return meta_trainer(self.build(record), self.outer_opt())

    @built_once
    def state_like(self, record: DataRecord) -> TrainState:
        """Shapes and dtypes of the training state, to restore a checkpoint into."""
        # Shapes only: a network is not initialised to find out what a checkpoint holds.
        example = jax.eval_shape(lambda: self.app.example(record))
        return jax.eval_shape(self.trainer(record).init, of_seed(0), example)

    def check_builds(self, record: DataRecord) -> None:
        """Builds the learner as trained and as judged, by shapes alone.

        Raises:
          TypeError: a constructor makes no `MetaLearner`.
          ValueError: the learner refuses its settings, or cannot plan a step of so many
            tasks, or memory is too small for them.
        """
        record = self.ordered(None, record)
        task = jax.eval_shape(lambda: self.app.example(record))
        remedy = (
            "Lower --tasks-per-step, or the size of a task (--app.shots, --app.queries)."
        )
        what = f"a step of {self.tasks_per_step:,} tasks"
        memory.check_fits(what, task, remedy, copies=self.tasks_per_step)
        state = self.state_like(record)
        what = f"{self.learner.name} and its outer optimiser"
        memory.check_fits(what, state, "Choose a smaller network or other settings of it.")

        def predict(variables: Variables, task: Task) -> Any:
            learner, key = self.build_judged(record), of_seed(0)
            adapted = learner.adapt(variables, task.support, key=key)
            return learner.predict(adapted, task.query.x, key=key)

        jax.eval_shape(predict, state.variables, task)
        if (plan := self.build(record).plan) is not None:
            drawn = lambda variables: plan(variables, self.tasks_per_step, key=of_seed(0))
            jax.eval_shape(drawn, state.variables)

    def predictor(self, record: DataRecord, variables: Variables, data: Any) -> Predictor:
        """Predictions on meta-test tasks, for a picture."""
        sampler = self.app.tasks(data, "test")

        def task(number: int) -> Task:
            # The key that `evaluate` gives to it, so the picture shows a judged task.
            key = jax.random.split(jax.random.fold_in(of_seed(0), number), 3)[0]
            return jax.jit(sampler.sample)(sampler.data, key)

        def predict(learner: MetaLearner) -> Callable[[Task, Any], np.ndarray]:
            @jax.jit
            def run(variables, support, x):
                k_adapt, k_predict = jax.random.split(of_seed(0))
                adapted = learner.adapt(variables, support, key=k_adapt)
                return learner.predict(adapted, x, key=k_predict)

            return lambda task, x: np.asarray(run(variables, task.support, x))

        before: Callable[[Task, Any], np.ndarray | None] = lambda task, x: None
        if self.learner.record.start:
            before = predict(self.build_judged(record, steps=0))
        after = predict(self.build_judged(record))
        return Predictor(task, before, after, self.learner.record.title, variables)

    def check(self) -> None:
        """Refuses values out of range and settings without effect.

        Raises:
          ValueError: a setting is wrong; the message names the field, the value and the
            remedy.
        """
        self._check_kinds()
        check_values(self.app, "app.")
        check_values(self.outer, "outer.")
        self._check_numbers()
        self._check_learner()
        if self.eval_steps is not None:
            self.learner.steps(self.eval_steps)
            if getattr(self.learner, "eval_steps", None) is not None:
                raise ValueError(
                    f"eval_steps={self.eval_steps} and learner.eval_steps="
                    f"{self.learner.eval_steps} say the same thing twice. Leave one out."
                )
            trained = getattr(self.learner, "num_steps", None)
            # Every inner step has its own averages, so further steps would have none.
            if self._per_step() and trained != self.eval_steps:
                raise ValueError(
                    f"eval_steps={self.eval_steps} with learner.norm='per_step', which "
                    f"keeps statistics for num_steps={trained}. Leave it out."
                )
        _refuse_idle(self.outer, self.outer.unread(), "outer.")
        self._check_batches()
        _refuse_idle(self.app, self.app.unread(self.learner), "app.")
        self.app.check(self.learner)

    def _check_numbers(self) -> None:
        """The settings of the recipe itself."""
        parts = ("app", "learner", "outer")
        values = {name: v for name, v in vars(self).items() if name not in parts}
        kinds = hints(type(self))
        numbers = dataclasses.make_dataclass("Numbers", [(n, kinds[n]) for n in values])
        least = {"validation_tasks": 2, "test_tasks": 2, "eval_steps": 0}
        check_values(numbers(**values), least=least)

    def _check_learner(self) -> None:
        """Checks words and the inner optimiser here, and ranges by the constructor."""
        kinds = hints(type(self.learner))
        for field in dataclasses.fields(self.learner):
            value, name = getattr(self.learner, field.name), f"learner.{field.name}"
            if isinstance(value, Optimiser):
                check_values(value, f"{name}.")
                _refuse_idle(value, value.unread(), f"{name}.")
            else:
                check_type(name, value, kinds[field.name])
        self.learner.check_builds()
        before = getattr(self.learner, "pretrain_steps", 0)
        if before and before >= self.steps:
            raise ValueError(
                f"learner.pretrain_steps is {before} and steps is {self.steps}; expected "
                "fewer than steps, or no episode would ever be trained on. Lower "
                "--learner.pretrain-steps, or raise --steps."
            )

    def _check_batches(self) -> None:
        """A second level means something only where the query set is what it is about."""
        needs, has = self.learner.record.batches, getattr(self.app, "batches", "")
        if needs and needs not in ((has,) if isinstance(has, str) else has):
            what = {
                "clean": "whose query set has clean labels",
                "domains": "whose query set has another domain",
                "target": "with unlabelled images of a target domain beside them",
                "quiz": "whose query set is a quiz for the student of a teacher",
                "planned": "of areas and users that it chooses",
                "episodes": "whose examples are episodes that it plays",
            }[needs]
            raise ValueError(
                f"{self.learner.name} trains on tasks {what}, which those of "
                f"{self.app.kind!r} are not. Choose another learner, or a recipe "
                "that has this one (metalearn list)."
            )

    def _check_kinds(self) -> None:
        """The three parts are records of the kinds that belong together."""
        if not hasattr(self.app, "kind") or not dataclasses.is_dataclass(self.app):
            raise ValueError(
                f"app is a {type(self.app).__name__}; expected an application such as "
                "FewShotImages(...)."
            )
        if not isinstance(self.learner, Learner):
            raise ValueError(
                f"learner is a {type(self.learner).__name__}; expected settings such as "
                "learners.MAML(inner_opt=sgd(0.1))."
            )
        wanted = learners.own_outer(self.learner.record) or Outer
        if not isinstance(self.outer, wanted):
            raise ValueError(
                f"outer is a {type(self.outer).__name__}, which does not belong to "
                f"{self.learner.name}; expected {wanted.__name__}(...)."
            )

    def _per_step(self) -> bool:
        return getattr(self.learner, "norm", None) == "per_step"

    def settings(self) -> DataRecord:
        """All fields as JSON values."""
        found = to_json(dataclasses.replace(self))
        app = {"kind": self.app.kind, **found["app"]}
        return {**found, "app": app, "learner": learners.as_json(self.learner)}

    @classmethod
    def from_settings(
        cls, settings: DataRecord, kinds: dict[str, type[Application]]
    ) -> Recipe:
        """The inverse of `settings`.

        Args:
          settings: Result of `settings`.
          kinds: Applications by their kinds.

        Raises:
          ValueError: the settings have a field that this version does not know.
        """
        rest = dict(settings)
        app = dict(rest.pop("app"))
        learner = learners.read_json(rest.pop("learner"))
        outer, kind = rest.pop("outer"), learners.own_outer(learner.record) or Outer
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(rest.keys() - known):
            raise ValueError(
                f"the run has settings {unknown} that this version of metalearn does not "
                "know. Use the version that wrote it (see versions in config.json)."
            )
        made = from_json(kinds[app.pop("kind")], app)
        return cls(app=made, learner=learner, outer=from_json(kind, outer), **rest)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A named recipe.

    Attributes:
      description: Description in one line.
      recipe: Settings of the run.
      expectation: Result and duration, if measured.
    """

    description: str
    recipe: Recipe
    expectation: str = ""


def _refuse_idle(record: Any, readers: dict[str, str], prefix: str) -> None:
    for field in dataclasses.fields(record):
        reader, value = readers.get(field.name), getattr(record, field.name)
        if reader is not None and value != field.default:
            raise ValueError(
                f"{prefix}{field.name}={value!r} has no effect with the other settings: it "
                f"is read by {reader}. Leave it at {field.default!r}, or choose settings "
                "that read it."
            )
