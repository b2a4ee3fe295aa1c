"""Few-shot image classification."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from metalearn import data as image_data
from metalearn import models
from metalearn import tasks as task_samplers
from metalearn.algorithms.record import parameters
from metalearn.apps import plots
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.learners import Learner
from metalearn.apps.ways import check_ways, head_offers
from metalearn.core import losses
from metalearn.core.linen import from_linen
from metalearn.core.model import Model
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.few_shot import few_shot
from metalearn.training.judgement import Metric

ALL_PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotImages:
    """Few-shot image classification with a convolutional network.

    Attributes:
      dataset: Name of the set: a name of `metalearn data list`, "folder:PATH" or
        "tfds:NAME".
      split: Split of the classes, for sets that have several.
      image_size: Side that images are resized to, for sets that can.
      shrink: Divisor of the sides; each new pixel is the mean of a square of old pixels.
      train_classes: Classes that meta-training sees, before rotations; all if None.
      channels: Number of channels, 1 for grey or 3 for colour, for sets that can convert.
      ambiguous_styles: Styles, as many as ways. A support set shows each class in another
        style, and queries are labelled by class or by style, see
        `metalearn.tasks.ambiguous`.
      augment: Whether meta-training sees photographs shifted by up to an eighth of their
        side and half of them mirrored, see `metalearn.tasks.augmented`.
      distort: Strength of the random affine maps by which meta-training turns, stretches,
        slants and shifts images, below 0.5, see `metalearn.tasks.distorted`; for drawn
        characters.
      ways: Classes of a training task.
      shots: Support examples of a class in training.
      queries: Query examples of a class in training; reptile trains on support and query
        together.
      eval_ways: Classes of a validation or test task; as in training if None.
      eval_shots: Support examples of a class at validation and test; as in training if
        None.
      eval_queries: Query examples of a class at validation and test.
      model: Kind of network.
      width: Channels of the first block; in resnet12 they double from block to block.
      norm: Kind of normalisation layers. "renorm" trains by the running averages that it
        uses at test: relation networks and SNAIL gained points on tasks of five classes.
      downsample: Way in which conv4 halves the sides: strided convolution or max-pooling.
      last_relu: Whether the last block of conv4 has its ReLU; features that are compared by
        their directions are better without.
      embedding: Length of the features of an image, for learners that embed a task.
    """

    kind: ClassVar[str] = "images"
    metric: ClassVar[str] = "query/accuracy"
    measures: ClassVar[Mapping[str, Metric]] = {}
    light: ClassVar[bool] = False
    dataset: str = "glyphs"
    split: str | None = None
    image_size: int | None = None
    shrink: int = 1
    train_classes: int | None = None
    channels: Literal[1, 3] | None = None
    ambiguous_styles: tuple[str, ...] = ()
    augment: bool = False
    distort: float = 0.0
    ways: int = 5
    shots: int = 1
    queries: int = 1
    eval_ways: int | None = None
    eval_shots: int | None = None
    eval_queries: int = 15
    model: Literal["conv4", "resnet12"] = "conv4"
    width: int = 64
    norm: Literal["batch", "renorm", "group", "layer", "none"] = "batch"
    downsample: Literal["stride", "pool"] = "pool"
    last_relu: bool = True
    embedding: int = 32

    @property
    def test_ways(self) -> int:
        """Classes of a validation or test task."""
        return self.ways if self.eval_ways is None else self.eval_ways

    @property
    def test_shots(self) -> int:
        """Support examples of a class in a validation or test task."""
        return self.shots if self.eval_shots is None else self.eval_shots

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""
        idle = {}
        if self.model != "conv4":
            idle["downsample"] = idle["last_relu"] = "app.model conv4"
        elif "conv4" in learner.record.networks:
            idle["last_relu"] = "learners whose network is plain"
        if not embeds(learner):
            idle["embedding"] = "learners that embed a task"
        return idle

    def check(self, learner: Learner) -> None:
        """Refuses settings that do not go together.

        Raises:
          ValueError: settings exclude one another; the message names the setting and the
            remedy.
        """
        check_ways(self, learner)
        if self.model != "conv4" and "conv4" in learner.record.networks:
            raise ValueError(
                f"model is {self.model!r} with {learner.name}, whose layers only conv4 "
                "has here. Leave it at conv4."
            )
        self._check_norm(learner)
        if self.distort >= 0.5:
            raise ValueError(
                f"app.distort is {self.distort}; expected below 0.5, beyond which an image "
                "can fold to a line."
            )
        self._check_styles()

    def _check_norm(self, learner: Learner) -> None:
        if self.norm == "renorm":
            policy = getattr(learner, "norm", "running")
            if policy in ("support", "batch"):
                raise ValueError(
                    f"app.norm is 'renorm', whose layers train by running averages, and "
                    f"learner.norm is {policy!r}, which normalises by the batch at hand. "
                    "Choose the policy 'running', or --app.norm batch."
                )
        elif self.norm != "batch":
            learner.refuse_policy("app.norm batch")

    def _check_styles(self) -> None:
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

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ALL_PARTS) -> Any:
        """The data set with these parts."""
        options = {
            "split": self.split,
            "image_size": self.image_size,
            "channels": self.channels,
        }
        options = {name: value for name, value in options.items() if value is not None}
        # An option that was not given is left out, because not every set has it.
        data = image_data.load(self.dataset, data_dir=data_dir, parts=parts, **options)
        return self._reduced(data)

    def _reduced(self, data: image_data.ImageDataset) -> image_data.ImageDataset:
        """The set with the images and classes reduced by `shrink` and `train_classes`."""
        if self.shrink != 1:
            data = image_data.shrunk(data, self.shrink)
        if self.train_classes is not None and data.train is not None:
            data = image_data.fewer_classes(data, self.train_classes)
        return data

    def describe(self, data: Any) -> DataRecord:
        """Description of the data."""
        train = data.parts.get("train")
        turns = 4 if train is not None and train.rotations else 1
        return {
            "name": data.name,
            "image_shape": list(data.image_shape),
            # Joint classifiers tell rotations apart, so each counts as a class.
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
        """Tasks of "train", "validation" or "test"."""
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
        if training and self.augment:
            tasks = task_samplers.augmented(tasks, shift=data.image_shape[0] // 8)
        if training and self.distort:
            tasks = task_samplers.distorted(tasks, self.distort)
        if not self.ambiguous_styles:
            return tasks
        return task_samplers.ambiguous(tasks, self.ambiguous_styles)

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""

        def examples(per_class: int) -> Examples:
            num = self.ways * per_class
            x = jnp.zeros((num, *record["image_shape"]))
            return Examples.of(x, jnp.zeros((num,), jnp.int32))

        info = {"class_ids": jnp.zeros((self.ways,), jnp.int32)}
        return Task(support=examples(self.shots), query=examples(self.queries), info=info)

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        fixed = learner.record.fixed_head
        found = {
            "model": self._network(learner, self.ways if fixed else None),
            "encoder": self._network(learner, None),
            "loss_fn": losses.cross_entropy,
            "num_classes": record.get("num_classes"),
            **head_offers(self, learner, evaluating=evaluating),
        }
        if embeds(learner):
            embedding = models.Conv4(
                self.embedding, width=self.width, norm="none", downsample="stride"
            )
            found["features"] = from_linen(embedding)
        return found

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of one meta-test task before and after adaptation."""
        task = predictor.task(0)
        plots.image_episode(
            path,
            task,
            predictor.before(task, task.query.x),
            predictor.after(task, task.query.x),
            title=f"One meta-test task of {data.name} ({predictor.learner})",
            names=self._class_names(data, task),
        )

    def _class_names(self, data: Any, task: Task) -> list[str]:
        return names_of(data.part("test"), task)

    def _network(self, learner: Learner, num_outputs: int | None) -> Model:
        if self.model == "resnet12":
            widths = tuple(self.width * 2**i for i in range(4))
            network = models.ResNet12(
                num_outputs, widths=widths, global_pool=True, drop_rate=0, norm=self.norm
            )
        else:
            kind = learner.record.networks.get("conv4", models.Conv4)
            plain = {"last_relu": self.last_relu} if kind is models.Conv4 else {}
            network = kind(
                num_outputs,
                width=self.width,
                norm=self.norm,
                downsample=self.downsample,
                **plain,
            )
        return from_linen(network)


def embeds(learner: Learner) -> bool:
    """Whether the learner sees an image as a vector, from which it embeds a task."""
    return "features" in parameters(learner.record.build)


def names_of(classes: Any, task: Task) -> list[str]:
    """Names of the classes of a task."""
    # Rotation r of class c has the id `c + r * classes`; the name is that of c.
    ids = [int(c) % classes.num_classes for c in task.info["class_ids"]]
    return [classes.class_names[i] for i in ids]


def _fingerprint(classes: Any) -> str:
    digest = hashlib.sha256(memoryview(classes.images).cast("B"))
    digest.update(classes.labels.tobytes())
    return digest.hexdigest()[:16]
