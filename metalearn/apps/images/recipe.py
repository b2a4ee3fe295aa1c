"""Few-shot image classification."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from metalearn import data as image_data
from metalearn import models
from metalearn import tasks as task_samplers
from metalearn.algorithms.metric import protonet
from metalearn.apps import plots
from metalearn.apps.base import GRADIENT_BASED, Recipe, Record
from metalearn.apps.learners import gradient_learner
from metalearn.core import losses
from metalearn.core.learner import MetaLearner
from metalearn.core.model import Model, Variables, from_linen
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.few_shot import few_shot

ALL_PARTS = ("train", "validation", "test")
ALGORITHMS = (
    *(a for a in GRADIENT_BASED if a not in ("hsml", "mumomaml")),
    *("protonet", "no_adaptation"),
)
# Learners that need layers of their own in the network.
CONV4 = {
    "cavia": models.FilmConv4,
    "t_net": models.TNetConv4,
    "mt_net": models.TNetConv4,
    "warpgrad": models.WarpConv4,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """Few-shot image classification with a convolutional network.

    Attributes:
      algorithm: The learner.
      dataset: What `metalearn data list` shows, "folder:PATH" or "tfds:NAME".
      split: Which split of the classes, for sets that have several.
      image_size: Side that images are resized to, for sets that can.
      shrink: Sides are divided by this; a pixel becomes the mean of a square.
      train_classes: Classes that meta-training sees, before rotations; all if None.
      channels: 1 for grey, 3 for colour, for sets that can convert.
      ambiguous_styles: As many as ways: shows each class of a support set in one of them,
        and labels queries by class or by style; see `metalearn.tasks.ambiguous`.
      ways: Classes of a training task.
      shots: Support examples of a class in training.
      queries: Query examples of a class in training; reptile trains on both together.
      eval_ways: Classes of a validation or test task; as in training if None.
      eval_shots: Support examples of a class there; as in training if None.
      eval_queries: Query examples of a class there.
      model: The network.
      width: Channels of its first block; those of resnet12 double from block to block.
      norm: Normalisation layers.
      norm_policy: Which statistics batch norm uses; the learner's own default if None.
      downsample: conv4: halves the sides by strided convolution or max-pooling.
      scale: protonet: multiplies the squared distances.
    """

    kind: ClassVar[str] = "images"
    metric: ClassVar[str] = "query/accuracy"
    algorithm: Literal[*ALGORITHMS] = "maml"
    dataset: str = "glyphs"
    split: str | None = None
    image_size: int | None = None
    shrink: int = 1
    train_classes: int | None = None
    channels: Literal[1, 3] | None = None
    ambiguous_styles: tuple[str, ...] = ()
    ways: int = 5
    shots: int = 1
    queries: int = 1
    eval_ways: int | None = None
    eval_shots: int | None = None
    eval_queries: int = 15
    model: Literal["conv4", "resnet12"] = "conv4"
    width: int = 64
    norm: Literal["batch", "group", "layer", "none"] = "batch"
    norm_policy: Literal["support", "batch", "running", "per_step"] | None = None
    downsample: Literal["stride", "pool"] = "pool"
    scale: float = 1.0

    @property
    def test_ways(self) -> int:
        return self.ways if self.eval_ways is None else self.eval_ways

    @property
    def test_shots(self) -> int:
        return self.shots if self.eval_shots is None else self.eval_shots

    @property
    def has_fixed_head(self) -> bool:
        """Whether the number of logits is learned and cannot grow at test."""
        return self.algorithm not in ("protonet", "fine_tune")

    def unread(self) -> dict[str, str]:
        idle = super().unread()
        if self.algorithm != "protonet":
            idle["scale"] = "algorithm protonet"
        if self.norm != "batch":
            idle["norm_policy"] = "norm batch"
        if self.model != "conv4":
            idle["downsample"] = "model conv4"
        return idle

    def check(self) -> None:
        super().check()
        for name in ("ways", "test_ways"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 2 or more.")
        if self.has_fixed_head and self.test_ways > self.ways:
            raise ValueError(
                f"{self.test_ways}-way tasks need {self.test_ways} logits, but the head "
                f"of {self.algorithm} is trained with {self.ways}. Train with "
                f"--ways {self.test_ways}, or use protonet or fine_tune, which fit any "
                "number of ways."
            )
        if self.model != "conv4" and self.algorithm in CONV4:
            raise ValueError(
                f"model is {self.model!r} with {self.algorithm}, whose layers only conv4 "
                "has here. Leave it at conv4."
            )
        styles = self.ambiguous_styles
        if styles and not len(set(styles)) == len(styles) == self.ways == self.test_ways:
            raise ValueError(
                f"ambiguous_styles is {styles} for {self.ways}-way training and "
                f"{self.test_ways}-way test tasks; expected a different one for each class."
            )
        if unknown := set(styles) - set(task_samplers.STYLES):
            raise ValueError(
                f"ambiguous_styles has {sorted(unknown)}; expected some of "
                f"{', '.join(task_samplers.STYLES)}."
            )
        steps = self.eval_inner_steps
        if self.norm_policy == "per_step" and steps not in (None, self.inner_steps):
            raise ValueError(
                f"eval_inner_steps={steps} with norm_policy='per_step', which keeps "
                f"statistics for inner_steps={self.inner_steps}. Leave it out."
            )
        if self.algorithm == "protonet" and self.norm_policy not in (
            *(None, "running", "batch"),
        ):
            raise ValueError(
                f"norm_policy is {self.norm_policy!r}; protonet knows running and batch."
            )

    def load_data(self, data_dir: str | None, parts: tuple[str, ...] = ALL_PARTS) -> Any:
        options = {
            "split": self.split,
            "image_size": self.image_size,
            "channels": self.channels,
        }
        options = {name: value for name, value in options.items() if value is not None}
        data = image_data.load(self.dataset, data_dir=data_dir, parts=parts, **options)
        return self._reduced(data)

    def _reduced(self, data: image_data.ImageDataset) -> image_data.ImageDataset:
        """The set with smaller images and fewer classes, as asked."""
        if self.shrink != 1:
            data = image_data.shrunk(data, self.shrink)
        if self.train_classes is not None and data.train is not None:
            data = image_data.fewer_classes(data, self.train_classes)
        return data

    def describe_data(self, data: Any) -> Record:
        train = data.parts.get("train")
        turns = 4 if train is not None and train.rotations else 1
        return {
            "name": data.name,
            "image_shape": list(data.image_shape),
            "num_classes": None if train is None else train.num_classes * turns,
            "parts": {
                part: {
                    "classes": classes.num_classes,
                    "images": classes.num_images,
                    "rotations": bool(classes.rotations),
                    "sha256": _fingerprint(classes),
                }
                for part, classes in data.parts.items()
            },
            "protocol": str(data.info.get("protocol", "")),
            "source": str(data.info.get("source", "")),
        }

    def tasks(self, data: Any, part: str) -> TaskSampler:
        training = part == "train"
        ways = self.ways if training else self.test_ways
        shots = self.shots if training else self.test_shots
        tasks = few_shot(
            data.part(part),
            num_ways=ways,
            num_support=shots,
            num_query=self.queries if training else self.eval_queries,
            name=f"{data.name} {part} {ways}-way {shots}-shot",
        )
        if not self.ambiguous_styles:
            return tasks
        return task_samplers.ambiguous(tasks, self.ambiguous_styles)

    def example(self, record: Record) -> Task:
        def examples(per_class: int) -> Examples:
            num = self.ways * per_class
            x = jnp.zeros((num, *record["image_shape"]))
            return Examples.of(x, jnp.zeros((num,), jnp.int32))

        info = {"class_ids": jnp.zeros((self.ways,), jnp.int32)}
        return Task(support=examples(self.shots), query=examples(self.queries), info=info)

    def learner(self, record: Record) -> MetaLearner:
        return self._build(record, evaluating=False)

    def evaluation_learner(
        self, record: Record, *, steps: int | None = None
    ) -> MetaLearner:
        return self._build(record, evaluating=True, steps=steps)

    def draw_episode(
        self, path: Path, record: Record, data: Any, variables: Variables
    ) -> None:
        task = self.test_task(data)
        before = self.predict_before(record, variables, task, task.query.x)
        after = self.predict(record, variables, task, task.query.x)
        plots.image_episode(
            path,
            task,
            before,
            after,
            title=f"One meta-test task of {data.name} ({self.algorithm})",
            names=self._class_names(data, task),
        )

    def _class_names(self, data: Any, task: Task) -> list[str]:
        return names_of(data.part("test"), task)

    def _build(
        self, record: Record, *, evaluating: bool, steps: int | None = None
    ) -> MetaLearner:
        norm = self.norm_policy if self.norm == "batch" else None
        if self.algorithm == "protonet":
            return protonet(
                self._network(None),
                num_ways=max(self.ways, self.test_ways),
                scale=self.scale,
                task_chunk=self.task_chunk,
                **({} if norm is None else {"norm": norm}),
            )
        head = {}
        if self.algorithm == "fine_tune":
            head = {"num_classes": record["num_classes"], "num_ways": self.test_ways}
        return gradient_learner(
            self,
            self._network(self.ways if self.has_fixed_head else None),
            losses.cross_entropy,
            evaluating=evaluating,
            steps=steps,
            norm=norm,
            fewer_ways=evaluating and self.test_ways < self.ways,
            **head,
        )

    def _network(self, num_outputs: int | None) -> Model:
        if self.model == "resnet12":
            widths = tuple(self.width * 2**i for i in range(4))
            network = models.ResNet12(
                num_outputs, widths=widths, global_pool=True, drop_rate=0, norm=self.norm
            )
        else:
            network = CONV4.get(self.algorithm, models.Conv4)(
                num_outputs, width=self.width, norm=self.norm, downsample=self.downsample
            )
        return from_linen(network)


def names_of(classes: Any, task: Task) -> list[str]:
    """Names of the classes of a task."""
    ids = [int(c) % classes.num_classes for c in task.info["class_ids"]]
    return [classes.class_names[i] for i in ids]


def _fingerprint(classes: Any) -> str:
    digest = hashlib.sha256(memoryview(classes.images).cast("B"))
    digest.update(classes.labels.tobytes())
    return digest.hexdigest()[:16]
