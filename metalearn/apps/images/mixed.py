"""Few-shot classification of images from several sets at once."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

from metalearn import data as image_data
from metalearn import models
from metalearn import tasks as task_samplers
from metalearn.apps.base import Record
from metalearn.apps.images.recipe import ALGORITHMS, ALL_PARTS, ImageRecipe, names_of
from metalearn.apps.learners import gradient_learner
from metalearn.core import losses
from metalearn.core.learner import MetaLearner
from metalearn.core.model import from_linen
from metalearn.core.task import Task, TaskSampler
from metalearn.data.images.archives import IMAGE_SUFFIXES
from metalearn.data.images.image_sets import ImageClasses, ImageDataset

STRUCTURED = ("hsml", "mumomaml")
SIZE = 28


@dataclasses.dataclass(frozen=True)
class MixedImages:
    """Several image sets with images of one shape.

    Attributes:
      sets: By name; the order is that of `info["family"]`.
    """

    sets: dict[str, ImageDataset]

    @property
    def name(self) -> str:
        return "+".join(self.sets)

    def part(self, name: str) -> list[ImageClasses]:
        """One part of every set; see `ImageDataset.part`."""
        return [data.part(name) for data in self.sets.values()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedImageRecipe(ImageRecipe):
    """Few-shot classification where every task is drawn from one of several image sets.

    In the manner of Plain-Multi (Yao et al. 2019) and, with more than one style, Art-Multi
    (Yao et al. 2020). The classes of meta-training, validation and test are disjoint
    within each set.

    Attributes:
      algorithm: The learner.
      dataset: The sets, NAME or NAME:SPLIT joined by "+". "glyphs" needs no data;
        "omniglot" and any other name are folders in the data folder (`--data-dir`): the
        Omniglot archives, or `class/image` files, or one zip of such, with a splits.json.
      image_size: Side that images of folders are resized to; 28 if None.
      train_classes: Classes of each set that meta-training sees; all if None.
      channels: 1 or None: all images become grey.
      styles: What a task looks like, drawn uniformly: "original", "blurred", "edges",
        "inverted".
      embedding: hsml, mumomaml: length of the features of an image, from which the task
        is embedded.
    """

    kind: ClassVar[str] = "mixed_images"
    algorithm: Literal[*(a for a in ALGORITHMS if a != "fine_tune"), *STRUCTURED] = "maml"
    dataset: str = "omniglot:lake+glyphs+cifar_fs:cifar_fs+tiny_imagenet80"
    channels: Literal[1] | None = None
    styles: tuple[str, ...] = ("original",)
    width: int = 16
    downsample: Literal["stride", "pool"] = "stride"
    embedding: int = 32

    def unread(self) -> dict[str, str]:
        idle = super().unread()
        idle["split"] = "no mixture; give NAME:SPLIT in dataset"
        if self.algorithm not in STRUCTURED:
            idle["embedding"] = f"algorithm {', '.join(STRUCTURED)}"
        return idle

    def check(self) -> None:
        super().check()
        names = [name for name, _ in self.families()]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(
                f"dataset is {self.dataset!r}; expected different names of image sets "
                "joined by '+', such as omniglot:lake+glyphs."
            )
        if not self.styles or not set(self.styles) <= set(task_samplers.STYLES):
            raise ValueError(
                f"styles is {self.styles}; expected some of "
                f"{', '.join(task_samplers.STYLES)}."
            )

    def families(self) -> list[tuple[str, str | None]]:
        """Name and split of each set."""
        pairs = (word.partition(":") for word in self.dataset.split("+"))
        return [(name, split or None) for name, _, split in pairs]

    def load_data(
        self, data_dir: str | None, parts: tuple[str, ...] = ALL_PARTS
    ) -> MixedImages:
        found = {
            name: (split, *self._source(name, data_dir)) for name, split in self.families()
        }  # a missing one is named before any is prepared
        sets = {}
        for name, (split, source, options) in found.items():
            if split is not None:
                options = {**options, "split": split}
            loaded = image_data.load(source, parts=parts, **options)
            sets[name] = self._reduced(loaded)
        shapes = {name: data.image_shape for name, data in sets.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"the sets have images of shapes {shapes}; expected one. The built-in "
                f"sets have sides of {SIZE}: leave image_size out (and use shrink)."
            )
        return MixedImages(sets)

    def _source(self, name: str, data_dir: str | None) -> tuple[str, dict[str, Any]]:
        """What `data.load` takes for a set."""
        if name == "glyphs":
            return name, {}
        wanted = f"{name!r} of dataset={self.dataset!r}"
        without = "+".join(w for w in self.dataset.split("+") if w.split(":")[0] != name)
        remedy = f"leave it out: --dataset {without or 'glyphs'}"
        if data_dir is None:
            raise FileNotFoundError(
                f"{wanted} is a folder of images, but no data folder was given. Give "
                f"--data-dir DIR, which holds the folder {name}, or {remedy}"
            )
        folder = Path(data_dir) / name
        if not folder.is_dir():
            there = sorted(p.name for p in Path(data_dir).glob("*") if p.is_dir())
            raise FileNotFoundError(
                f"{wanted} is not in {data_dir}, which holds "
                f"{', '.join(there) or 'no folder'}. Put it there, or {remedy}"
            )
        if name == "omniglot":
            return name, {"data_dir": str(folder)}
        zips = sorted(folder.glob("*.zip"))
        loose = any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.glob("*/*"))
        if len(zips) > 1 and not loose:
            raise ValueError(
                f"{folder} holds the archives {[p.name for p in zips]}; expected one, or "
                "class/image files."
            )
        path = zips[0] if zips and not loose else folder
        return f"folder:{path}", {
            "image_size": self.image_size or SIZE,
            "channels": self.channels or 1,
        }

    def describe_data(self, data: MixedImages) -> Record:
        describe = super().describe_data
        records = {name: describe(found) for name, found in data.sets.items()}
        return {
            "name": data.name,
            "image_shape": next(iter(records.values()))["image_shape"],
            "parts": {
                part: _together([record["parts"][part] for record in records.values()])
                for part in ALL_PARTS
                if all(part in record["parts"] for record in records.values())
            },
            "sets": records,
        }

    def tasks(self, data: MixedImages, part: str) -> TaskSampler:
        each = super().tasks
        tasks = task_samplers.mixture([each(found, part) for found in data.sets.values()])
        if self.styles == ("original",):
            return tasks
        return task_samplers.styled(tasks, self.styles)

    def _class_names(self, data: MixedImages, task: Task) -> list[str]:
        return names_of(data.part("test")[int(task.info["family"])], task)

    def _build(
        self, record: Record, *, evaluating: bool, steps: int | None = None
    ) -> MetaLearner:
        if self.algorithm not in STRUCTURED:
            return super()._build(record, evaluating=evaluating, steps=steps)
        return gradient_learner(
            self,
            self._network(self.ways),
            losses.cross_entropy,
            evaluating=evaluating,
            steps=steps,
            norm=self.norm_policy if self.norm == "batch" else None,
            fewer_ways=evaluating and self.test_ways < self.ways,
            features=from_linen(
                models.Conv4(
                    self.embedding, width=self.width, norm="none", downsample="stride"
                )
            ),
            num_ways=self.ways,
        )


def _together(parts: list[Record]) -> Record:
    """What is remembered of one part of all sets."""
    digests = "".join(part["sha256"] for part in parts)
    return {
        "classes": sum(part["classes"] for part in parts),
        "images": sum(part["images"] for part in parts),
        "rotations": False,  # counted in the records of the sets
        "sha256": hashlib.sha256(digests.encode()).hexdigest()[:16],
    }
