"""Classification by a small network, which may learn from a large one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from metalearn import models
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.distillation import pictures
from metalearn.apps.fits import check_learner
from metalearn.apps.labels import batches
from metalearn.apps.learners import Learner
from metalearn.core import losses, metrics
from metalearn.core.linen import from_linen
from metalearn.core.model import Model
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.distillation import PARTS, QuizSet, load_quiz_set
from metalearn.data.noisy import Labelled
from metalearn.data.text.hashing import MOST_BUCKETS
from metalearn.training.judgement import Metric

TEXTS = ("banking77", "hwu64", "own-texts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Classification by a small student, beside a large teacher.

    A task is a batch. In training its support set is what the student learns from, and its
    query set is the quiz; or both are of one pool, for baselines that learn from all they
    are given. A test task is a batch of test examples, each of which is judged once. The
    model that is judged is the student, which does not adapt.

    Attributes:
      dataset: Name of the set, whose files are in `--data-dir` or in a folder of that name
        there; "own" are arrays of yours in examples.npz, "own-texts" are texts of yours in
        full.jsonl.
      dim: Length of the hashed vectors of texts.
      quiz_share: Share of each class for the quiz.
      validation_share: Share of each class for validation.
      test_share: Share of each class for the test.
      split_number: Number of the split, the seed of the draw.
      pool: Examples that training draws from: "apart", support sets of the training
        examples and query sets of the quiz; "mixed", both sets from all of them; "train",
        both from the training examples alone.
      batch: Examples of a support set.
      quiz_batch: Examples of a query set.
      eval_batch: Most examples of a validation or test task; tasks differ by one at most.
      student: Units of each hidden layer of the student; none for a linear one.
      network: Network of the teacher: "mlp", or "lenet" for images.
      teacher: Units of each hidden layer of a teacher that is an MLP.
      width: Channels of the first convolution of a teacher that is a LeNet.
      hidden: Units of the hidden layer of a teacher that is a LeNet.
    """

    kind: ClassVar[str] = "distillation"
    batches: ClassVar[str] = "quiz"
    metric: ClassVar[str] = "query/accuracy"
    light: ClassVar[bool] = False
    measures: ClassVar[Mapping[str, Metric]] = {
        "query/macro_accuracy": metrics.macro_accuracy
    }
    dataset: Literal["mnist", "banking77", "hwu64", "own", "own-texts"] = "mnist"
    dim: int = 1024
    quiz_share: float = 0.1
    validation_share: float = 0.2
    test_share: float = 0.3
    split_number: int = 1
    pool: Literal["apart", "mixed", "train"] = "apart"
    batch: int = 64
    quiz_batch: int = 64
    eval_batch: int = 100
    student: tuple[int, ...] = (8,)
    network: Literal["mlp", "lenet"] = "mlp"
    teacher: tuple[int, ...] = (128,)
    width: int = 8
    hidden: int = 128

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""
        of_teacher = ("network", "teacher", "width", "hidden")
        idle = dict.fromkeys(of_teacher, "learners with a teacher")
        if learner.record.batches == self.batches:
            own = {"mlp": ("teacher",), "lenet": ("width", "hidden")}[self.network]
            idle = {
                "teacher": "app.network mlp",
                "width": "app.network lenet",
                "hidden": "app.network lenet",
            }
            idle = {name: reader for name, reader in idle.items() if name not in own}
        if self.dataset not in TEXTS:
            idle["dim"] = "sets of texts, such as banking77"
        return idle

    def check(self, learner: Learner) -> None:
        """Refuses settings that do not go together.

        Raises:
          ValueError: the learner is none of any model and any loss, or a number is out of
            range; the message names the remedy.
        """
        shares = {
            name: getattr(self, f"{name}_share") for name in ("quiz", "validation", "test")
        }
        if sum(shares.values()) >= 1:
            told = ", ".join(f"app.{name}_share is {v}" for name, v in shares.items())
            raise ValueError(
                f"{told}; expected a sum below 1, or nothing is left to train on."
            )
        for name in ("student", "teacher"):
            widths = getattr(self, name)
            if widths and min(widths) < 1:
                raise ValueError(
                    f"app.{name} is {widths}; expected units of hidden layers, each 1 or "
                    "more, or none."
                )
        if not 2 <= self.dim <= MOST_BUCKETS:
            raise ValueError(
                f"app.dim is {self.dim}; expected a length from 2 to {MOST_BUCKETS}."
            )
        if self.network == "lenet" and self.dataset in TEXTS:
            raise ValueError(
                f"app.network is 'lenet', which reads images, and {self.dataset} has "
                "texts; expected mlp."
            )
        small = {"input_shape": [8, 8, 1], "class_names": ["a", "b"]}
        check_learner(self, learner, small, "a student", policy="networks with batch norm")

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> QuizSet:
        """The set, divided.

        Raises:
          FileNotFoundError: a file is missing.
          TypeError, ValueError: the contents do not fit; see `metalearn.data.distillation`.
        """
        del parts
        data = load_quiz_set(
            self.dataset,
            data_dir,
            quiz=self.quiz_share,
            validation=self.validation_share,
            test=self.test_share,
            seed=self.split_number,
            dim=self.dim,
        )
        shape = data.parts["train"].images.shape
        if self.network == "lenet" and len(shape) != 4:
            raise ValueError(
                f"app.network is 'lenet', which reads images [I, H, W, C], and the inputs "
                f"of {data.name} are {list(shape)}; expected mlp."
            )
        return data

    def describe(self, data: QuizSet) -> DataRecord:
        """Description of the set."""
        sizes = {part: len(data.parts[part]) for part in PARTS}
        return {
            "name": data.name,
            "about": (
                f"{data.num_classes} classes, {sizes['train']:,} training examples, "
                f"{sizes['quiz']:,} for the quiz, {sizes['validation']:,} for validation, "
                f"{sizes['test']:,} for the test"
            ),
            "input_shape": list(data.parts["train"].images.shape[1:]),
            "class_names": list(data.class_names),
            "inputs": dict(data.inputs),
            # By another fit of the vectors of texts, the same text is another input.
            "vocabulary": str(data.inputs.get("weights", "")),
            "parts": {
                part: {"images": sizes[part], "sha256": data.digest(part)} for part in PARTS
            },
        }

    def tasks(self, data: QuizSet, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        train, quiz = data.parts["train"], data.parts["quiz"]
        if part == "train":
            both = Labelled(
                images=np.concatenate([train.images, quiz.images]),
                labels=np.concatenate([train.labels, quiz.labels]),
            )
            support = both if self.pool == "mixed" else train
            return batches.training(
                support,
                quiz if self.pool == "apart" else support,
                num_support=self.batch,
                num_query=self.quiz_batch,
                name=f"{data.name} training",
            )
        return batches.judging(
            train,
            data.parts[part],
            num_support=1,
            num_query=self.eval_batch,
            name=f"{data.name} {part}",
        )

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""

        def examples(num: int) -> Examples:
            x = jnp.zeros((num, *record["input_shape"]), jnp.float32)
            return Examples.of(x, jnp.zeros((num,), jnp.int32))

        return Task(
            support=examples(self.batch),
            query=examples(self.quiz_batch),
            info={"task": jnp.zeros((), jnp.int32)},
        )

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        del learner, evaluating
        num = len(record["class_names"])
        return {
            "model": from_linen(models.MLP(num, self.student)),
            "teacher": self.teacher_of(record),
            "loss_fn": losses.cross_entropy,
        }

    def teacher_of(self, record: DataRecord) -> Model:
        """Network of the teacher."""
        num = len(record["class_names"])
        if self.network == "lenet":
            return from_linen(models.LeNet(num, self.width, self.hidden))
        return from_linen(models.MLP(num, self.teacher))

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of what students, and teachers if any, take each class for."""
        task = predictor.task(0)
        outputs = {"student": predictor.after(task, task.query.x)}
        state = predictor.variables.state
        if isinstance(state, dict) and "teacher" in state:
            outputs["teacher"] = pictures.of_teacher(
                self.teacher_of(record), state, task.query.x
            )
        title = f"Test examples of {record['name']} ({predictor.learner})"
        pictures.taken_for(path, task.query, outputs, record["class_names"], title=title)
