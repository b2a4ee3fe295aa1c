"""Classification of images from labels of which many are wrong, or from a long tail."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from metalearn import models
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.fits import check_learner
from metalearn.apps.labels import batches, pictures
from metalearn.apps.labels.balance import adjusted_loss, balanced_loss
from metalearn.apps.learners import Learner
from metalearn.core import losses, metrics
from metalearn.core.linen import from_linen
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import LossFn
from metalearn.data.noisy import (
    Labelled,
    NoisySet,
    check_set,
    flipped,
    load_labelled,
    load_own,
    long_tail,
    split_of,
)
from metalearn.training.judgement import Metric

Pool = Literal["apart", "mixed", "right", "clean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyLabels:
    """Classification of images where training labels are wrong or classes are rare.

    A task is a batch. In training its support set is noisy and its query set is clean, or
    both are of one pool for baselines that learn from all they are given. A test task is a
    batch of test images, each of which is judged once; labels there are right. The model
    does not adapt to it.

    Attributes:
      dataset: Name of the set, whose files are in `--data-dir` or in a folder of that name
        there; "own" are images of yours in labels.npz, or in the folders train, clean,
        validation and test.
      classes: Names of the classes, such as 9,4, the frequent one first; all if empty.
      flips: Share of the training labels that are made wrong, in 0..1; 0.4 if None, and
        none for images of your own. With the kind "background" it is the share of the
        classes but the first.
      flip_kind: Kind of wrong labels: "uniform", any other class; "pair", the next class;
        "background", the first class.
      imbalance: Ratio of the largest class of training to the smallest; the classes in
        between lie on an exponential curve.
      clean_per_class: Training images of each class whose label is surely right.
      validation_share: Share of each class for validation, with right labels.
      test_share: Share of each class for the test.
      split_number: Number of the split and of what is made wrong, the seed of the draws.
      pool: Images that training draws from: "apart", noisy support and clean query sets;
        "mixed", both sets from noisy and clean images together; "right", both from those
        whose label is right, which nobody knows in earnest; "clean", both from the clean
        ones alone.
      balance: Way to make up for rare classes in the loss: "weights" by class, or "logits"
        to which the logarithm of the share of the class is added.
      beta: Beta of the effective numbers behind the weights, from 0 to below 1.
      batch: Images of a support set.
      clean_batch: Images of a query set.
      eval_batch: Most images of a validation or test task; tasks differ by one at most.
      network: Network: "mlp" with one hidden layer, "lenet", or "conv4" with batch norm.
      width: Channels of the first convolution.
      hidden: Units of the hidden layer.
      channels: Channels of images in folders of your own: 3 for colour, 1 for grey.
    """

    kind: ClassVar[str] = "labels"
    batches: ClassVar[str] = "clean"
    metric: ClassVar[str] = "query/accuracy"
    light: ClassVar[bool] = False
    measures: ClassVar[Mapping[str, Metric]] = {
        "query/macro_accuracy": metrics.macro_accuracy
    }
    dataset: Literal["mnist", "cifar-fs", "own"] = "mnist"
    classes: tuple[str, ...] = ()
    flips: float | None = None
    flip_kind: Literal["uniform", "pair", "background"] = "uniform"
    imbalance: float = 1.0
    clean_per_class: int = 100
    validation_share: float = 0.1
    test_share: float = 0.3
    split_number: int = 1
    pool: Pool = "apart"
    balance: Literal["none", "weights", "logits"] = "none"
    beta: float = 0.999
    batch: int = 100
    clean_batch: int = 100
    eval_batch: int = 100
    network: Literal["mlp", "lenet", "conv4"] = "mlp"
    width: int = 8
    hidden: int = 256
    channels: int = 3

    @property
    def share(self) -> float:
        """Share of the training labels that can be wrong and are made so."""
        if self.flips is None:
            return 0.0 if self.dataset == "own" else 0.4
        return self.flips

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""
        del learner
        idle: dict[str, str] = {}
        if self.dataset == "own":
            made = ("classes", "clean_per_class", "validation_share", "test_share")
            idle |= dict.fromkeys(made, "sets that are divided here, such as mnist")
        else:
            idle["channels"] = "app.dataset own"
        if not self.share:
            idle["flip_kind"] = "app.flips above 0"
        if self.balance != "weights":
            idle["beta"] = "app.balance weights"
        if self.network == "mlp":
            idle["width"] = "app.network lenet or conv4"
        if self.network == "conv4":
            idle["hidden"] = "app.network lenet or mlp"
        return idle

    def check(self, learner: Learner) -> None:
        """Refuses settings that do not go together.

        Raises:
          ValueError: the learner is none of any model and any loss, or a number is out of
            range; the message names the remedy.
        """
        if not 0 <= self.share <= 1:
            raise ValueError(f"app.flips is {self.flips}; expected a share in 0..1.")
        if self.imbalance < 1:
            raise ValueError(
                f"app.imbalance is {self.imbalance}; expected the ratio of the largest "
                "class to the smallest, 1 or more."
            )
        if not 0 <= self.beta < 1:
            raise ValueError(f"app.beta is {self.beta}; expected 0 or more, below 1.")
        if self.channels not in (1, 3):
            raise ValueError(f"app.channels is {self.channels}; expected 1 or 3.")
        if len(self.classes) == 1:
            raise ValueError(
                f"app.classes is {self.classes}; expected two classes or more, or none for "
                "all."
            )
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"app.validation_share is {self.validation_share} and app.test_share is "
                f"{self.test_share}; expected a sum below 1, or nothing is left to train "
                "on."
            )
        if self.balance != "none" and self.pool == "apart":
            raise ValueError(
                f"app.balance is {self.balance!r} with app.pool 'apart', where noisy and "
                "clean batches have other shares of the classes; expected app.pool mixed, "
                "right or clean."
            )
        if learner.record.batches == self.batches and self.pool != "apart":
            raise ValueError(
                f"app.pool is {self.pool!r} with {learner.name}, whose query sets have to "
                "be clean and apart from the support sets; expected app.pool apart."
            )
        small = {"image_shape": [28, 28, 1], "class_names": ["a", "b"], "counts": [1, 1]}
        policy = None if self.network == "conv4" else "app.network conv4"
        check_learner(self, learner, small, "batches of labels", policy=policy)

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> NoisySet:
        """The set, divided and with wrong labels.

        Raises:
          FileNotFoundError: a file is missing.
          TypeError, ValueError: the contents do not fit; see `metalearn.data.noisy`.
        """
        del parts
        if self.dataset == "own":
            data = load_own(data_dir, channels=self.channels)
        else:
            images, labels, names = load_labelled(
                self.dataset, data_dir, classes=self.classes
            )
            data = split_of(
                images,
                labels,
                class_names=names,
                clean_per_class=self.clean_per_class,
                validation=self.validation_share,
                test=self.test_share,
                seed=self.split_number,
                name=self.dataset,
            )
        return check_set(dataclasses.replace(data, train=self._corrupted(data)))

    def _corrupted(self, data: NoisySet) -> Labelled:
        """The training images that stay, with labels made wrong."""
        train, num = data.train, data.num_classes
        if self.imbalance > 1:
            kept = long_tail(
                train.labels, num, imbalance=self.imbalance, seed=self.split_number
            )
            train = train.rows(kept)
        if not self.share:
            return train
        given = flipped(
            train.labels,
            num,
            share=self.share,
            kind=self.flip_kind,
            seed=self.split_number,
        )
        truth = train.labels if train.truth is None else train.truth
        return dataclasses.replace(train, labels=given, truth=truth)

    def describe(self, data: NoisySet) -> DataRecord:
        """Description of the set."""
        train, drawn = data.train, self._pool(data)
        told = "the share of wrong labels is not known"
        if train.truth is not None:
            told = f"{(train.truth != train.labels).mean():.1%} of the labels wrong"
        counts = np.bincount(train.labels, minlength=data.num_classes)
        sizes = f"{counts.max():,} to {counts.min():,} a class"
        return {
            "name": data.name,
            "about": (
                f"{len(train):,} noisy training images ({sizes}, {told}), "
                f"{len(data.clean):,} clean, {len(data.validation):,} for validation, "
                f"{len(data.test):,} for the test"
            ),
            "image_shape": list(train.images.shape[1:]),
            "class_names": list(data.class_names),
            # By the labels as given, for nobody knows others.
            "counts": np.bincount(drawn.labels, minlength=data.num_classes).tolist(),
            "parts": {
                part: {"images": len(getattr(data, part)), "sha256": data.digest(part)}
                for part in ("train", "validation", "test")
            },
        }

    def _pool(self, data: NoisySet) -> Labelled:
        """Images that training draws support sets from."""
        train, clean = data.train, data.clean
        if self.pool == "clean":
            return clean
        if self.pool == "apart":
            return train
        if self.pool == "right":
            if train.truth is None:
                raise ValueError(
                    f"app.pool is 'right', but which labels of {data.name} are right is "
                    "not known; expected train_truth in labels.npz, or another pool."
                )
            train = train.rows(np.flatnonzero(train.truth == train.labels))
        return Labelled(
            images=np.concatenate([train.images, clean.images]),
            labels=np.concatenate([train.labels, clean.labels]),
        )

    def tasks(self, data: NoisySet, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        if part == "train":
            support = self._pool(data)
            return batches.training(
                support,
                data.clean if self.pool == "apart" else support,
                num_support=self.batch,
                num_query=self.clean_batch,
                name=f"{data.name} training",
            )
        return batches.judging(
            data.clean,
            getattr(data, part),
            num_support=self.clean_batch,
            num_query=self.eval_batch,
            name=f"{data.name} {part}",
        )

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""

        def examples(num: int) -> Examples:
            x = jnp.zeros((num, *record["image_shape"]), jnp.float32)
            return Examples.of(x, jnp.zeros((num,), jnp.int32))

        return Task(
            support=examples(self.batch),
            query=examples(self.clean_batch),
            info={"task": jnp.zeros((), jnp.int32)},
        )

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        del learner
        num = len(record["class_names"])
        network = {
            "lenet": lambda: models.LeNet(num, self.width, self.hidden),
            "conv4": lambda: models.Conv4(num, self.width),
            "mlp": lambda: models.MLP(num, (self.hidden,)),
        }[self.network]()
        # What training adds to the loss is no part of the judgement.
        loss_fn = losses.cross_entropy if evaluating else self._loss(record)
        return {"model": from_linen(network), "loss_fn": loss_fn}

    def _loss(self, record: DataRecord) -> LossFn:
        if self.balance == "weights":
            return balanced_loss(record["counts"], beta=self.beta)
        if self.balance == "logits":
            return adjusted_loss(record["counts"])
        return losses.cross_entropy

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of losses and weights of training examples."""
        model = self.offers(None, record, evaluating=True)["model"]  # pyrefly: ignore
        found = pictures.training_examples(
            data, model, predictor, batch=self.batch, clean_batch=self.clean_batch
        )
        title = f"Training examples of {record['name']} ({predictor.learner})"
        pictures.losses_and_weights(path, found, title=title)
