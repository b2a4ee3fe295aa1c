"""Few-shot classification of feature vectors that a network made before."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from metalearn import models
from metalearn.algorithms.context import leo
from metalearn.apps import options
from metalearn.apps.base import MAML_FAMILY, Recipe, Record
from metalearn.apps.learners import gradient_learner
from metalearn.core import losses
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Variables, from_linen
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.few_shot import few_shot

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureRecipe(Recipe):
    """Few-shot classification on fixed features, as LEO's protocol has it.

    `--data-dir` is an .npz file with `train`, `validation` and `test`, floats `[I, D]`, and
    `train_labels`, ..., ints `[I]`; classes of the three are different. `python -m
    benchmarks features RUN` makes one from a finished run of protonet.

    Attributes:
      algorithm: "leo", or a learner that adapts a linear classifier.
      ways: Classes of a task.
      shots: Support examples of a class.
      queries: Query examples of a class in training.
      eval_queries: Query examples of a class at validation and test.
      widths: Hidden layers of the classifier; leo has its own networks.
    """

    kind: ClassVar[str] = "features"
    metric: ClassVar[str] = "query/accuracy"
    light: ClassVar[bool] = True
    algorithm: Literal["leo", *MAML_FAMILY] = "leo"
    ways: int = 5
    shots: int = 1
    queries: int = 5
    eval_queries: int = 15
    widths: tuple[int, ...] = ()

    def unread(self) -> dict[str, str]:
        idle = super().unread()
        if self.algorithm == "leo":
            idle["widths"] = "algorithm " + ", ".join(MAML_FAMILY)
            idle.pop("options")
        return idle

    def load_data(self, data_dir: str | None, parts: tuple[str, ...] = PARTS) -> Any:
        """The arrays of the file.

        Raises:
          ValueError: there is no such file, it is none of arrays, or arrays are missing or
            of wrong shapes.
        """
        if data_dir is None or not Path(data_dir).is_file():
            raise ValueError(
                f"data_dir is {data_dir!r}; expected an .npz file of features. Make one "
                "with: python -m benchmarks features RUN --out FILE.npz"
            )
        if not zipfile.is_zipfile(data_dir):
            raise ValueError(
                f"{data_dir} is no .npz file; expected what np.savez writes. Make one "
                "with: python -m benchmarks features RUN --out FILE.npz"
            )
        with np.load(data_dir, allow_pickle=False) as stored:
            missing = {n for p in parts for n in (p, f"{p}_labels")} - set(stored.files)
            if missing:
                raise ValueError(
                    f"{data_dir} has no {', '.join(sorted(missing))}; it has "
                    f"{', '.join(stored.files)}."
                )
            found = {part: (stored[part], stored[f"{part}_labels"]) for part in parts}
        shapes = {part: features.shape for part, (features, _) in found.items()}
        if any(len(s) != 2 for s in shapes.values()) or (
            len({s[1] for s in shapes.values()}) > 1
        ):
            raise ValueError(
                f"{data_dir} has features of shapes {shapes}; expected [I, D] with one D."
            )
        return found

    def describe_data(self, data: Any) -> Record:
        return {
            "name": "features",
            "num_features": next(iter(data.values()))[0].shape[1],
            "parts": {
                part: {
                    "classes": len(np.unique(labels)),
                    "images": len(labels),
                    "rotations": False,
                    "sha256": hashlib.sha256(features.tobytes()).hexdigest()[:16],
                }
                for part, (features, labels) in data.items()
            },
        }

    def tasks(self, data: Any, part: str) -> TaskSampler:
        queries = self.queries if part == "train" else self.eval_queries
        return few_shot(
            *data[part],
            num_ways=self.ways,
            num_support=self.shots,
            num_query=queries,
            name=f"features {part} {self.ways}-way {self.shots}-shot",
        )

    def example(self, record: Record) -> Task:
        def examples(per_class: int) -> Examples:
            num = self.ways * per_class
            x = jnp.zeros((num, record["num_features"]))
            return Examples.of(x, jnp.zeros((num,), jnp.int32))

        info = {"class_ids": jnp.zeros((self.ways,), jnp.int32)}
        return Task(support=examples(self.shots), query=examples(self.queries), info=info)

    def learner(self, record: Record) -> MetaLearner:
        return self._build(evaluating=False)

    def evaluation_learner(
        self, record: Record, *, steps: int | None = None
    ) -> MetaLearner:
        return self._build(evaluating=True, steps=steps)

    def draw_episode(
        self, path: Path, record: Record, data: Any, variables: Variables
    ) -> None:
        """Features have no picture."""

    def _build(self, *, evaluating: bool, steps: int | None = None) -> MetaLearner:
        if self.algorithm == "leo":
            found = options.parse(self.options, [leo])
            return leo(self.ways, task_chunk=self.task_chunk, **found)
        network = from_linen(models.MLP(self.ways, widths=self.widths))
        return gradient_learner(
            self, network, losses.cross_entropy, evaluating=evaluating, steps=steps
        )
