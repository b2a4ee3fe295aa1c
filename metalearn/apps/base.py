"""What all recipes share: the fields of adaptation, outer loop and judging, checked.

A recipe is a frozen record of every choice of a training run. Each field is read by
something: `unread` names those that the other choices make idle, and `check` refuses
them when they are set, so that no setting is silently without effect.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np
import optax

from metalearn.algorithms.gradient.alpha_maml import alpha_maml_optimiser
from metalearn.apps import options
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables
from metalearn.core.task import Task, TaskSampler
from metalearn.training.trainer import MetaTrainer, TrainState, meta_trainer

Record = dict[str, Any]
"""What a run remembers of its data: plain JSON values."""

MAML_FAMILY = ("maml", "fomaml", "anil", "boil", "meta_sgd")
# Those whose own settings are given as `options`: with a rate of their own, and those that
# take any inner optimiser.
RATED = ("maml_plus_plus", "alpha_maml", "meta_curvature", "cavia")
OPTIONED = (
    *RATED,
    *("hsml", "mumomaml", "imaml", "t_net", "mt_net", "warpgrad"),
    *("bmg", "sharp_maml", "es_maml"),
    *("platipus", "llama", "bmaml", "emaml"),
)
GRADIENT_BASED = (*MAML_FAMILY, *OPTIONED, "reptile", "fine_tune")
# Those that cannot be asked for a prediction after no inner step.
WITHOUT_START = (
    *("protonet", "imaml", "maml_plus_plus", "warpgrad"),
    *("bmg", "es_maml", "platipus", "llama", "bmaml", "emaml"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of adaptation, outer optimisation and judging.

    Attributes:
      algorithm: The learner.
      inner_rate: Learning rate of the inner loop, at the start where it is learned.
      inner_rate_low: meta_sgd: initial rates are drawn between this and inner_rate.
      inner_steps: Inner steps in training.
      eval_inner_steps: Inner steps at validation and test; as in training if None.
      inner_optimizer: "sgd" or "adam", for learners without a rate of their own.
      inner_b1: adam: decay of the first moment; Reptile's paper uses 0.
      inner_batch: reptile: examples of an inner step in training; all if None.
      eval_inner_batch: reptile: the same at validation and test.
      carry_opt_state: reptile: hands Adam's second moments on from step to step.
      options: Further arguments of the learner, each as "name=value", for example
        "tree=(4, 2, 1)" of hsml; alpha_maml: of its outer optimiser as well.
      task_chunk: Tasks handled at once, or "auto".
      outer_optimizer: "adam", or "sgd" as Reptile uses it.
      outer_rate: Its learning rate at the start.
      schedule: How the outer rate falls over the steps.
      halve_every: halving: steps between halvings.
      clip: Largest global norm of the meta-gradient; no clipping if None.
      steps: Outer steps.
      tasks_per_step: Tasks of one outer step.
      validate_every: Steps between validations, which decide what is kept.
      validation_tasks: Tasks of one validation.
      patience: Validations without improvement before stopping; never if None.
      test_tasks: Tasks of the final evaluation.
      checkpoint_every: Steps between checkpoints.
      log_every: Steps between rows of metrics.jsonl.
      nonfinite: "stop" at the first non-finite update, or "skip" and count it.
    """

    kind: ClassVar[str]
    metric: ClassVar[str]
    # Tasks of microseconds, which are slower when the cores of a CPU share them.
    light: ClassVar[bool] = False
    algorithm: str = "maml"
    inner_rate: float = 0.4
    inner_rate_low: float | None = None
    inner_steps: int = 1
    eval_inner_steps: int | None = None
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    inner_b1: float = 0.9
    inner_batch: int | None = None
    eval_inner_batch: int | None = None
    carry_opt_state: bool = False
    options: tuple[str, ...] = ()
    task_chunk: int | Literal["auto"] = "auto"
    outer_optimizer: Literal["adam", "sgd"] = "adam"
    outer_rate: float = 2e-3
    schedule: Literal["cosine", "constant", "linear", "halving"] = "cosine"
    halve_every: int = 2000
    clip: float | None = None
    steps: int = 1500
    tasks_per_step: int = 16
    validate_every: int = 500
    validation_tasks: int = 200
    patience: int | None = None
    test_tasks: int = 600
    checkpoint_every: int = 500
    log_every: int = 100
    nonfinite: Literal["stop", "skip"] = "stop"

    # What a kind of recipe adds.

    def load_data(self, data_dir: str | None, parts: tuple[str, ...]) -> Any:
        """The data set with these parts; None if tasks are made on the fly."""
        raise NotImplementedError

    def describe_data(self, data: Any) -> Record:
        """What the run remembers of the data; enough to build the learner again."""
        raise NotImplementedError

    def tasks(self, data: Any, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        raise NotImplementedError

    def example(self, record: Record) -> Task:
        """A training task of zeros, for shapes."""
        raise NotImplementedError

    def learner(self, record: Record) -> MetaLearner:
        """The learner as it is trained."""
        raise NotImplementedError

    def evaluation_learner(
        self, record: Record, *, steps: int | None = None
    ) -> MetaLearner:
        """The learner as it is judged, for the same variables.

        Args:
          record: From `describe_data` of the training data.
          steps: Inner steps in place of those of the recipe; 0: before adaptation.
        """
        raise NotImplementedError

    def draw_episode(
        self, path: Path, record: Record, data: Any, variables: Variables
    ) -> None:
        """Writes a picture of one meta-test task before and after adaptation."""
        raise NotImplementedError

    # What is built from the shared fields.

    def test_task(self, data: Any, number: int = 0) -> Task:
        """A task of those that `evaluate` sees with seed 0."""
        sampler = self.tasks(data, "test")
        key = jax.random.split(jax.random.fold_in(jax.random.key(0), number), 3)[0]
        return jax.jit(sampler.sample)(sampler.data, key)

    def predict(
        self, record: Record, variables: Variables, task: Task, x: Any, **options: Any
    ) -> np.ndarray:
        """Predictions for `x` after adapting to the support set of a task."""
        learner = self.evaluation_learner(record, **options)

        @jax.jit
        def run(variables, support, x):
            k_adapt, k_predict = jax.random.split(jax.random.key(0))
            adapted = learner.adapt(variables, support, key=k_adapt)
            return learner.predict(adapted, x, key=k_predict)

        return np.asarray(run(variables, task.support, x))

    def predict_before(
        self, record: Record, variables: Variables, task: Task, x: Any
    ) -> np.ndarray | None:
        """Predictions for `x` before adaptation; None if the learner has none."""
        if self.algorithm in WITHOUT_START:
            return None
        return self.predict(record, variables, task, x, steps=0)

    def trainer(self, record: Record) -> MetaTrainer:
        """Learner and outer optimiser together."""
        return meta_trainer(self.learner(record), self.outer_opt())

    def state_like(self, record: Record) -> TrainState:
        """Shapes and dtypes of the training state, to restore a checkpoint into."""
        example = jax.eval_shape(lambda: self.example(record))
        return jax.eval_shape(self.trainer(record).init, jax.random.key(0), example)

    def outer_opt(self) -> optax.GradientTransformation:
        """The outer optimiser with its schedule and clipping."""
        opt = self._alpha_maml_opt() if self.algorithm == "alpha_maml" else self._opt()
        if self.clip is None:
            return opt
        return optax.chain(optax.clip_by_global_norm(self.clip), opt)

    def _opt(self) -> optax.GradientTransformation:
        rate = {
            "constant": lambda: optax.constant_schedule(self.outer_rate),
            "cosine": lambda: optax.cosine_decay_schedule(self.outer_rate, self.steps),
            "linear": lambda: optax.linear_schedule(self.outer_rate, 0.0, self.steps),
            "halving": lambda: optax.exponential_decay(
                self.outer_rate, self.halve_every, 0.5, staircase=True
            ),
        }[self.schedule]()
        return {"adam": optax.adam, "sgd": optax.sgd}[self.outer_optimizer](rate)

    def _alpha_maml_opt(self) -> optax.GradientTransformation:
        direction = optax.scale_by_adam() if self.outer_optimizer == "adam" else None
        options = self.outer_options()
        return alpha_maml_optimiser(self.outer_rate, inner=direction, **options)

    def outer_makers(self) -> list[Callable[..., Any]]:
        """Outer optimisers that `options` speak of."""
        return [alpha_maml_optimiser] if self.algorithm == "alpha_maml" else []

    def outer_options(self) -> dict[str, Any]:
        """Those of `options` that are for the outer optimiser."""
        names = [name for maker in self.outer_makers() for name in options.arguments(maker)]
        pairs = [pair for pair in self.options if pair.partition("=")[0] in names]
        return options.parse(pairs, self.outer_makers())

    def unread(self) -> dict[str, str]:
        """Fields that these settings leave idle, and what would read each."""
        readers = {
            **dict.fromkeys(
                ("inner_rate", "inner_steps", "eval_inner_steps"), GRADIENT_BASED
            ),
            "inner_optimizer": tuple(
                a for a in GRADIENT_BASED if a not in ("meta_sgd", *RATED)
            ),
            "inner_rate_low": ("meta_sgd",),
            "inner_batch": ("reptile",),
            "eval_inner_batch": ("reptile",),
            "carry_opt_state": ("reptile",),
            "options": OPTIONED,
        }
        idle = {
            name: "algorithm " + ", ".join(algorithms)
            for name, algorithms in readers.items()
            if self.algorithm not in algorithms
        }
        if self.inner_optimizer != "adam" or "inner_optimizer" in idle:
            idle["inner_b1"] = "inner_optimizer adam"
        if self.schedule != "halving":
            idle["halve_every"] = "schedule halving"
        if self.algorithm == "alpha_maml":
            idle["schedule"] = "every other algorithm"
        return idle

    def check(self) -> None:
        """Refuses values out of range and settings without effect.

        Raises:
          ValueError: names the field, its value and the remedy.
        """
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            _check_value(field.name, getattr(self, field.name), hints[field.name])
        for name in ("validation_tasks", "test_tasks"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 2 or more.")
        for field in dataclasses.fields(self):
            reader = self.unread().get(field.name)
            value = getattr(self, field.name)
            if reader is not None and value != field.default:
                raise ValueError(
                    f"{field.name}={value!r} has no effect with algorithm="
                    f"{self.algorithm!r} and the other settings: it is read by {reader}. "
                    f"Leave it at {field.default!r}, or start from a recipe that reads it."
                )

    def settings(self) -> Record:
        """All fields as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_settings(cls, settings: Record) -> Recipe:
        """The inverse of `settings`.

        Raises:
          ValueError: there is a field that this version does not know.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(settings.keys() - known):
            raise ValueError(
                f"the run has settings {unknown} that this version of metalearn does not "
                "know. Use the version that wrote it (see versions in config.json)."
            )
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in settings.items()
            }
        )


@dataclasses.dataclass(frozen=True)
class Entry:
    """A named recipe.

    Attributes:
      description: One line.
      recipe: The settings.
      expectation: What it reached and how long it took, where measured.
    """

    description: str
    recipe: Recipe
    expectation: str = ""


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Membership of literals and the sign of numbers; the parser checks types."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    literals = [o for o in options if typing.get_origin(o) is Literal]
    choices = [choice for o in literals for choice in typing.get_args(o)]
    only_choices = choices and not {int, float} & set(options)
    unknown_word = isinstance(value, str) and str not in options
    if value is not None and value not in choices and (only_choices or unknown_word):
        listed = ", ".join(map(str, choices))
        raise ValueError(f"{name} is {value!r}; expected one of {listed}.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if int in options and not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}; expected an integer.")
    least = 0 if name in ("inner_steps", "eval_inner_steps") else 1
    if isinstance(value, int) and int in options and value < least:
        raise ValueError(f"{name} is {value}; expected {least} or more.")
    if float in options and not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}; expected a finite number, 0 or more.")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
