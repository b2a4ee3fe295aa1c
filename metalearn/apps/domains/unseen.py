"""Classification in a domain that training has not seen: domain generalisation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from metalearn import models
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.domains import batches, pictures
from metalearn.apps.fits import check_learner
from metalearn.apps.learners import Learner
from metalearn.core import cost, losses
from metalearn.core.linen import from_linen
from metalearn.core.model import Model
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.domains import ANGLES, DomainImages, load_domains, validation_rows
from metalearn.data.images.folder import check_size
from metalearn.data.images.limits import limits_of
from metalearn.training.judgement import Metric

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainData:
    """Images in several domains, and which are for what.

    Attributes:
      set: The images.
      rows: Numbers of the images of each part.
    """

    set: DomainImages
    rows: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnseenDomain:
    """Classification in one domain from images of the others.

    A training task is a batch of as many images of each source domain. One of these is held
    out of the support set as the query set, another one in each task. Validation is on
    images of the source domains that were held back, and never on the target. Each target
    image is judged once, in tasks of some fifty that count for the same.

    Attributes:
      dataset: Name of the set, whose files are in `--data-dir` or in a folder "mnist" or
        "pacs64" there; "own" is a folder or zip of DOMAIN/CLASS/image of yours.
      target: Name of the domain of the test, which training does not see: an angle of
        rotated-mnist, or a folder.
      angles: Angles of rotated-mnist, in degrees.
      image_size: Side to which images of files are cut and resized; all have one size
        already if None.
      validation_share: Share of the images of each class and source domain for validation.
      split_number: Number of the split, the seed of its draw.
      per_domain: Images of each source domain in a training task.
      unlabelled: Target images in a training task, without their labels, for learners of a
        target domain. These images are judged as well, so such a run is transductive.
      eval_queries: Images of a validation or test task, at most.
      mirror: Whether training mirrors half of the images.
      width: Channels of the convolutions.
      norm: Kind of normalisation layers.
      downsample: Way in which the network halves the sides: strided convolution or
        max-pooling.
    """

    kind: ClassVar[str] = "domains"
    metric: ClassVar[str] = "query/accuracy"
    measures: ClassVar[Mapping[str, Metric]] = {}
    light: ClassVar[bool] = False
    dataset: Literal["rotated-mnist", "pacs", "own"] = "rotated-mnist"
    target: str = "75"
    angles: tuple[int, ...] = ANGLES
    image_size: int | None = None
    validation_share: float = 0.2
    split_number: int = 1
    per_domain: int = 32
    unlabelled: int | None = None
    eval_queries: int = 50
    mirror: bool = False
    width: int = 32
    norm: Literal["batch", "group", "layer", "none"] = "batch"
    downsample: Literal["stride", "pool"] = "stride"

    @property
    def batches(self) -> str | tuple[str, ...]:
        """What the tasks offer to learners, see `metalearn.algorithms.record.Record`."""
        return "domains" if self.unlabelled is None else ("domains", "target")

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""
        found = {"angles": "app.dataset rotated-mnist"}
        if self.dataset == "rotated-mnist":
            found = {"image_size": "app.dataset pacs or own"}
        if learner.record.batches != "target":
            found["unlabelled"] = "a learner of a target domain, such as dann"
        return found

    def check(self, learner: Learner) -> None:
        """Refuses settings that do not go together.

        Raises:
          ValueError: the learner needs another network or examples of the target, or a
            number is out of range; the message names the remedy.
        """
        # Of the smallest data: two classes, two sources beside the one that is held out.
        small = {"image_shape": (28, 28, 1), "num_classes": 2, "sources": "abc"}
        check_learner(
            self,
            learner,
            small,
            "a network with one logit for each class",
            policy=None if self.norm == "batch" else "app.norm batch",
            networks=("model", "encoder"),
        )
        if self.norm == "batch" and getattr(learner, "norm", "running") == "support":
            raise ValueError(
                "learner.norm is 'support', but a target domain comes without a support "
                "set. Choose 'running'."
            )
        if self.image_size is not None:
            check_size(self.image_size, limits_of())
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"app.validation_share is {self.validation_share}; expected a share above "
                "0 and below 1."
            )
        if self.dataset == "rotated-mnist":
            turns = {angle % 360 for angle in self.angles}
            if len(self.angles) < 3 or len(turns) < len(self.angles):
                raise ValueError(
                    f"app.angles is {self.angles}; expected three or more, each once: the "
                    "target and two sources."
                )
            self._check_target(tuple(map(str, self.angles)))

    def _check_target(self, names: tuple[str, ...]) -> None:
        if self.target not in names:
            raise ValueError(
                f"app.target is {self.target!r}, which is no domain of {self.dataset}; "
                f"expected one of {', '.join(names)}."
            )
        if len(names) < 3:
            raise ValueError(
                f"{self.dataset} has the domains {', '.join(names)}; expected three or "
                "more: the target, and two sources, one of which is held out of each task."
            )

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> DomainData:
        """The images, with their split.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: the target is no domain, or see `metalearn.data.domains`.
        """
        del parts
        found = load_domains(
            self.dataset, data_dir, angles=self.angles, image_size=self.image_size
        )
        self._check_target(found.domain_names)
        held = validation_rows(found, self.validation_share, seed=self.split_number)
        target = found.domains == found.domain(self.target)
        masks = {"train": ~target & ~held, "validation": ~target & held, "test": target}
        rows = {part: np.flatnonzero(mask) for part, mask in masks.items()}
        for part in ("validation", "test"):
            if len(rows[part]) <= self.eval_queries:
                raise ValueError(
                    f"{found.name} has {len(rows[part])} images for {part}; expected more "
                    f"than app.eval_queries {self.eval_queries}, for two tasks or more. "
                    "Lower --app.eval-queries."
                )
        return DomainData(set=found, rows=rows)

    def describe(self, data: DomainData) -> DataRecord:
        """Description of the images."""
        found, digest = data.set, data.set.digest
        sources = [name for name in found.domain_names if name != self.target]
        numbers = {part: len(rows) for part, rows in data.rows.items()}
        seen = "" if self.unlabelled is None else ", seen without labels (transductive)"
        return {
            "name": found.name,
            "about": (
                f"{len(found.class_names)} classes; sources {', '.join(sources)}: train "
                f"{numbers['train']:,}, validation {numbers['validation']:,} images; "
                f"target {self.target}: {numbers['test']:,}{seen}"
            ),
            "image_shape": list(found.images.shape[1:]),
            "num_classes": len(found.class_names),
            "class_names": list(found.class_names),
            "sources": sources,
            "parts": {part: {"sha256": digest} for part in PARTS},
        }

    def tasks(self, data: DomainData, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        found, rows = data.set, data.rows[part]
        if part == "train":
            # All for training; those of the sources and the target for validation and test.
            cost.check_bytes(
                f"{len(found.images):,} images, which are on the device twice,",
                2 * found.images.nbytes,
                "Choose a smaller --app.image-size.",
                cost.memory(),
            )
            return batches.held_out_batches(
                found,
                rows,
                per_domain=self.per_domain,
                mirror=self.mirror,
                target=None if self.unlabelled is None else data.rows["test"],
                unlabelled=self.unlabelled or 0,
                name=f"{found.name} without {self._without()}",
            )
        domain = f"target {self.target}" if part == "test" else "sources"
        # One image of each source, as an example of what training has seen.
        train = data.rows["train"]
        shown = train[np.unique(found.domains[train], return_index=True)[1]]
        return batches.images_in_order(
            found,
            rows,
            shown,
            per_task=self.eval_queries,
            name=f"{found.name} {part}, {domain}",
        )

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""
        num = len(record["sources"]) - 1

        def examples(rows: int) -> Examples:
            x = jnp.zeros((rows, *record["image_shape"]), jnp.float32)
            return Examples.of(x, jnp.zeros((rows,), jnp.int32))

        ids = jnp.arange(num + 1, dtype=jnp.int32)
        info = {"domains": ids[:-1], "held_out": ids[-1]}
        if self.unlabelled is not None:
            info["target"] = examples(self.unlabelled).x
        return Task(
            support=examples(num * self.per_domain),
            query=examples(self.per_domain),
            info=info,
        )

    def _without(self) -> str:
        """What training does not see."""
        labels = "labels of " if self.unlabelled is not None else ""
        return f"{labels}{self.target}"

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        del learner, evaluating
        num = record["num_classes"]
        return {
            "model": self._network(num),
            "encoder": self._network(None),
            "loss_fn": losses.cross_entropy,
            "num_ways": num,
        }

    def _network(self, num_outputs: int | None) -> Model:
        network = models.Conv4(
            num_outputs=num_outputs,
            width=self.width,
            norm=self.norm,
            downsample=self.downsample,
        )
        return from_linen(network)

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of target images and their predictions."""
        task = predictor.task(0)
        logits = predictor.after(task, task.query.x)
        pictures.unseen(
            path,
            np.asarray(task.support.x),
            record["sources"],
            task.query,
            logits,
            record["class_names"],
            title=f"{record['name']}, target {self.target} ({predictor.learner})",
        )
