"""Few-shot regression of sine waves and other functions: no data, done in minutes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from metalearn import models
from metalearn.apps import plots
from metalearn.apps.base import GRADIENT_BASED, Recipe, Record
from metalearn.apps.learners import gradient_learner
from metalearn.core import losses
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables, from_linen
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.tasks import families, function_families, sinusoid


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinusoidRecipe(Recipe):
    """Few-shot regression of functions of one variable.

    Attributes:
      functions: "sinusoid" (Finn et al. 2017, section 5.1), or "families": sines, lines,
        quadratics and cubics (Yao et al. 2019, section 5.1).
      algorithm: The learner.
      shots: Support points in training.
      queries: Query points in training; reptile trains on both together.
      eval_shots: Support points at validation and test; as in training if None.
      eval_queries: Query points there.
      widths: Hidden layers of the network.
    """

    kind: ClassVar[str] = "sinusoid"
    metric: ClassVar[str] = "query/loss"
    light: ClassVar[bool] = True
    algorithm: Literal[*GRADIENT_BASED, "no_adaptation"] = "maml"
    functions: Literal["sinusoid", "families"] = "sinusoid"
    shots: int = 10
    queries: int = 10
    eval_shots: int | None = None
    eval_queries: int = 100
    widths: tuple[int, ...] = (40, 40)

    @property
    def test_shots(self) -> int:
        return self.shots if self.eval_shots is None else self.eval_shots

    def load_data(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> None:
        del parts
        if data_dir is not None:
            raise ValueError(
                f"data_dir={str(data_dir)!r} was given, but functions are made on the "
                "fly. Leave it out."
            )

    def describe_data(self, data: Any) -> Record:
        del data
        return {"name": self.functions}

    def tasks(self, data: Any, part: str) -> TaskSampler:
        del data
        make = {"sinusoid": sinusoid, "families": function_families}[self.functions]
        if part == "train":
            return make(self.shots, self.queries)
        return make(self.test_shots, self.eval_queries)

    def example(self, record: Record) -> Task:
        del record

        def examples(num: int) -> Examples:
            return Examples.of(jnp.zeros((num, 1)), jnp.zeros((num, 1)))

        return Task(support=examples(self.shots), query=examples(self.queries))

    def learner(self, record: Record) -> MetaLearner:
        del record
        return self._build(evaluating=False)

    def evaluation_learner(
        self, record: Record, *, steps: int | None = None
    ) -> MetaLearner:
        del record
        return self._build(evaluating=True, steps=steps)

    def draw_episode(
        self, path: Path, record: Record, data: Any, variables: Variables
    ) -> None:
        x = jnp.linspace(-5, 5, 200)[:, None]
        panels = []
        for number in range(3):
            task = self.test_task(data, number)
            before = self.predict_before(record, variables, task, x)
            after = self.predict(record, variables, task, x)
            panels.append((task, curve(task, x), before, after))
        title = f"Three test tasks ({self.algorithm}, {self.test_shots} points)"
        plots.curve_episodes(path, x, panels, title=title)

    def _build(self, *, evaluating: bool, steps: int | None = None) -> MetaLearner:
        network = {
            "cavia": models.ContextMLP,
            "t_net": models.TNetMLP,
            "mt_net": models.TNetMLP,
            "warpgrad": models.WarpMLP,
        }.get(self.algorithm, models.MLP)(1, widths=self.widths)
        return gradient_learner(
            self, from_linen(network), losses.mse, evaluating=evaluating, steps=steps
        )


def curve(task: Task, x: jax.Array) -> jax.Array:
    """The function that a task was drawn from, at points `[P, 1]`."""
    if "family" in task.info:
        return families.curve(task.info["family"], task.info["coefficients"], x)
    return task.info["amplitude"] * jnp.sin(x - task.info["phase"])
