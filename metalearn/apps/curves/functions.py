"""Few-shot regression of sine waves and other functions, without data, in minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from metalearn import models
from metalearn.algorithms.record import parameters
from metalearn.apps import plots
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.learners import Learner
from metalearn.apps.made import refuse_folder
from metalearn.core import losses
from metalearn.core.linen import from_linen
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.tasks import families, function_families, sinusoid
from metalearn.training.judgement import Metric


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Few-shot regression of functions of one variable.

    Attributes:
      functions: Kind of functions: "sinusoid" (Finn et al. 2017, section 5.1), or
        "families", which are sines, lines, quadratics and cubics (Yao et al. 2019, section
        5.1).
      shots: Support points in training.
      queries: Query points in training; reptile trains on support and query together.
      eval_shots: Support points at validation and test; as in training if None.
      eval_queries: Query points at validation and test.
      widths: Sizes of the hidden layers of the network.
    """

    kind: ClassVar[str] = "sinusoid"
    metric: ClassVar[str] = "query/loss"
    measures: ClassVar[Mapping[str, Metric]] = {}
    light: ClassVar[bool] = True
    functions: Literal["sinusoid", "families"] = "sinusoid"
    shots: int = 10
    queries: int = 10
    eval_shots: int | None = None
    eval_queries: int = 100
    widths: tuple[int, ...] = (40, 40)

    @property
    def test_shots(self) -> int:
        """Support points at validation and test."""
        return self.shots if self.eval_shots is None else self.eval_shots

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect: none."""
        del learner
        return {}

    def check(self, learner: Learner) -> None:
        """Refuses a learner of classes.

        Raises:
          ValueError: the learner classifies; the message names the learner and the remedy.
        """
        taken = parameters(learner.record.build)
        if "model" not in taken or "loss_fn" not in taken:
            raise ValueError(
                f"{learner.name} classifies and does not regress curves; expected a "
                "learner of a model and a loss, such as maml."
            )
        learner.refuse_policy("networks with batch norm")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(
                f"app.widths is {self.widths}; expected units of hidden layers, each 1 or "
                "more, such as (40, 40)."
            )

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> None:
        """Loads nothing, because functions are made on the fly.

        Raises:
          ValueError: a folder was given.
        """
        del parts
        refuse_folder(data_dir, "functions are made on the fly")

    def describe(self, data: Any) -> DataRecord:
        """Name of the functions."""
        del data
        return {"name": self.functions}

    def tasks(self, data: Any, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        del data
        make = {"sinusoid": sinusoid, "families": function_families}[self.functions]
        if part == "train":
            return make(self.shots, self.queries)
        return make(self.test_shots, self.eval_queries)

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""
        del record

        def examples(num: int) -> Examples:
            return Examples.of(jnp.zeros((num, 1)), jnp.zeros((num, 1)))

        return Task(support=examples(self.shots), query=examples(self.queries))

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        del record, evaluating
        # Some learners need layers of their own, such as CAVIA's context.
        network = learner.record.networks.get("mlp", models.MLP)(1, widths=self.widths)
        return {"model": from_linen(network), "loss_fn": losses.mse}

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of three test tasks before and after adaptation."""
        x = jnp.linspace(-5, 5, 200)[:, None]
        panels = []
        for number in range(3):
            task = predictor.task(number)
            before, after = predictor.before(task, x), predictor.after(task, x)
            panels.append((task, curve(task, x), before, after))
        title = f"Three test tasks ({predictor.learner}, {self.test_shots} points)"
        plots.curve_episodes(path, x, panels, title=title)


def curve(task: Task, x: jax.Array) -> jax.Array:
    """The function that a task was drawn from, at points `[P, 1]`."""
    if "family" in task.info:
        return families.curve(task.info["family"], task.info["coefficients"], x)
    return task.info["amplitude"] * jnp.sin(x - task.info["phase"])
