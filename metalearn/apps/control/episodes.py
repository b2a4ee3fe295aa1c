"""Control of small environments, which are played on the device: no data are needed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from metalearn import environments, policies
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.learners import Learner
from metalearn.apps.made import refuse_folder
from metalearn.core import checks, metrics
from metalearn.core.task import Task, TaskSampler
from metalearn.training.judgement import Metric

WORLDS = {
    "navigation": environments.navigation,
    "corner-point": environments.corner_point,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes:
    """Control: a task is the parameters of an environment, an example is an episode.

    Attributes:
      environment: Environment: "navigation" (Finn et al. 2017, section 5.3) to a goal that
        is not seen, or "corner-point" (Rothfuss et al. 2019) with rewards near four
        corners alone.
      horizon: Most steps of an episode.
      episodes: Episodes that a task is adapted by, in each inner step.
      queries: Episodes after adaptation in training.
      eval_episodes: Episodes to adapt by at validation and test; as in training if None.
      eval_queries: Episodes after adaptation at validation and test.
      widths: Sizes of the hidden layers of the policy.
      std: Standard deviation of actions that training starts from, above 0; moves are at
        most 0.1 or 0.2.
    """

    kind: ClassVar[str] = "control"
    batches: ClassVar[str] = "episodes"
    metric: ClassVar[str] = "query/return"
    measures: ClassVar[Mapping[str, Metric]] = {"query/return": metrics.mean_return}
    light: ClassVar[bool] = False
    environment: Literal["navigation", "corner-point"] = "navigation"
    horizon: int = 100
    episodes: int = 20
    queries: int = 20
    eval_episodes: int | None = None
    eval_queries: int = 20
    widths: tuple[int, ...] = (64, 64)
    std: float = 0.4

    @property
    def test_episodes(self) -> int:
        """Episodes that a task is adapted by at validation and test."""
        return self.episodes if self.eval_episodes is None else self.eval_episodes

    @property
    def world(self) -> environments.Environment:
        """The environment."""
        return WORLDS[self.environment](horizon=self.horizon)

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect: none."""
        del learner
        return {}

    def check(self, learner: Learner) -> None:
        """Refuses learners of examples that are given.

        Raises:
          ValueError: the learner plays no episodes, or a setting is out of range.
        """
        if learner.record.batches != self.batches:
            raise ValueError(
                f"{learner.name} learns from examples and plays no episodes; expected a "
                "learner by reward, such as maml_rl."
            )
        if self.widths and min(self.widths) < 1:
            raise ValueError(
                f"app.widths is {self.widths}; expected sizes of hidden layers, each 1 or "
                "more, such as (64, 64)."
            )
        checks.number("app.std", self.std, positive=True)

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> None:
        """Loads nothing, because episodes are played.

        Raises:
          ValueError: a folder was given.
        """
        del parts
        refuse_folder(data_dir, "episodes are played on the device")

    def describe(self, data: Any) -> DataRecord:
        """Name of the environment."""
        del data
        return {"name": self.world.name}

    def tasks(self, data: Any, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test", which are of one distribution."""
        del data
        training = part == "train"
        return environments.episodes(
            self.world,
            num_support=self.episodes if training else self.test_episodes,
            num_query=self.queries if training else self.eval_queries,
        )

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""
        del record
        sampler = self.tasks(None, "train")
        task = jax.eval_shape(sampler.sample, sampler.data, jax.random.key(0))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), task)

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        del learner, record, evaluating
        return {"environment": self.world, "policy": self._policy()}

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes nothing: an `Evaluation` has returns and no trajectories."""

    def _policy(self) -> policies.Policy:
        return policies.gaussian_policy(self.widths, log_std=math.log(self.std))
