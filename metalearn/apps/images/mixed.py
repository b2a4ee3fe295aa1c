"""Few-shot classification of images from several sets at once."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

from metalearn import data as image_data
from metalearn import tasks as task_samplers
from metalearn.algorithms.record import parameters
from metalearn.apps.base import DataRecord
from metalearn.apps.images.few_shot import ALL_PARTS, FewShotImages, names_of
from metalearn.apps.learners import Learner
from metalearn.core.task import Task, TaskSampler
from metalearn.data.images.archives import IMAGE_SUFFIXES
from metalearn.data.images.image_sets import ImageClasses, ImageDataset

SIZE = 28


@dataclasses.dataclass(frozen=True)
class ImageSets:
    """Several image sets with images of one shape.

    Attributes:
      sets: Image sets by name, in the order of `info["family"]`.
    """

    sets: dict[str, ImageDataset]

    @property
    def name(self) -> str:
        return "+".join(self.sets)

    def part(self, name: str) -> list[ImageClasses]:
        """One part of every set; see `ImageDataset.part`."""
        return [data.part(name) for data in self.sets.values()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixedImages(FewShotImages):
    """Few-shot classification where every task is drawn from one of several image sets.

    The tasks resemble Plain-Multi (Yao et al. 2019) and, with more than one style,
    Art-Multi (Yao et al. 2020). The classes of meta-training, validation and test are
    disjoint within each set, and over all sets by what they are; see `shared_classes`.

    Attributes:
      dataset: Names of the sets, NAME or NAME:SPLIT, joined by "+". "glyphs" needs no data.
        Any other name is a folder in the data folder (`--data-dir`). The folder "omniglot"
        holds the Omniglot archives; other folders hold `class/image` files or one zip of
        such files, with a splits.json.
      image_size: Side that images of folders are resized to; 28 if None.
      train_classes: Classes of each set that meta-training sees; all if None.
      channels: Number of channels, 1 or None; in both cases all images become grey.
      styles: Styles of a task, drawn uniformly: "original", "blurred", "edges",
        "inverted".
      shared_classes: Action for classes that one set trains on (or validates) and another
        one tests, by name, character or script: "refuse" them, "leave_out" of the earlier
        part, or "keep" them if that is meant; see `metalearn.data.disjoint`.
    """

    kind: ClassVar[str] = "mixed_images"
    dataset: str = "omniglot:lake+glyphs+cifar_fs:cifar_fs+tiny_imagenet80"
    channels: Literal[1] | None = None
    styles: tuple[str, ...] = ("original",)
    shared_classes: Literal["refuse", "leave_out", "keep"] = "refuse"
    width: int = 16
    downsample: Literal["stride", "pool"] = "stride"

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""
        idle = super().unread(learner)
        return {**idle, "split": "no mixture; give NAME:SPLIT in app.dataset"}

    def check(self, learner: Learner) -> None:
        """Refuses settings that do not go together.

        Raises:
          ValueError: settings exclude one another; the message names the setting and the
            remedy.
        """
        super().check(learner)
        if not learner.record.fixed_head and "num_classes" in parameters(
            learner.record.build
        ):
            raise ValueError(
                f"{learner.name} trains one classifier of all classes, which a mixture of "
                "sets does not have. Choose a learner of tasks."
            )
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

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ALL_PARTS) -> ImageSets:
        """The sets with these parts, without the classes that `shared_classes` leaves out.

        Raises:
          FileNotFoundError: a set is not there.
          ValueError: sets differ in shape, lack a part, or share classes.
        """
        found = {
            name: (split, *self._source(name, data_dir)) for name, split in self.families()
        }  # a missing set is named before any set is prepared
        sets = {}
        for name, (split, source, options) in found.items():
            if split is not None:
                options = {**options, "split": split}
            # All parts, because what one set tests decides what another one trains on.
            sets[name] = image_data.load(source, **options)
            for part in parts:
                sets[name].part(part)
        shared = self.shared_classes
        if shared == "refuse" and len(parts) == 1:
            shared = "keep"  # of one part nothing can be in another
        sets = image_data.disjoint(sets, shared=shared, at_least=self.test_ways)
        unused = {part: None for part in ALL_PARTS if part not in parts}
        sets = {
            # Fewer classes afterwards, so that `train_classes` is their number.
            name: self._reduced(dataclasses.replace(data, **unused))
            for name, data in sets.items()
        }
        shapes = {name: data.image_shape for name, data in sets.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(
                f"the sets have images of shapes {shapes}; expected one. The built-in "
                f"sets have sides of {SIZE}: leave image_size out (and use shrink)."
            )
        return ImageSets(sets)

    def _source(self, name: str, data_dir: str | None) -> tuple[str, dict[str, Any]]:
        """Name and options of a set for `data.load`."""
        if name == "glyphs":
            return name, {}
        wanted = f"{name!r} of dataset={self.dataset!r}"
        without = "+".join(w for w in self.dataset.split("+") if w.split(":")[0] != name)
        remedy = f"leave it out: --app.dataset {without or 'glyphs'}"
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

    def describe(self, data: ImageSets) -> DataRecord:
        """Description of the sets."""
        describe = super().describe
        records = {
            name: {**describe(found), "left_out": dict(found.info.get("left_out", {}))}
            for name, found in data.sets.items()
        }
        return {
            "name": data.name,
            "image_shape": next(iter(records.values()))["image_shape"],
            "parts": {
                part: _together(part, list(records.values()))
                for part in ALL_PARTS
                if all(part in record["parts"] for record in records.values())
            },
            "sets": records,
        }

    def tasks(self, data: ImageSets, part: str) -> TaskSampler:
        """Tasks of one of the sets each."""
        each = super().tasks
        tasks = task_samplers.mixture([each(found, part) for found in data.sets.values()])
        if self.styles == ("original",):
            return tasks
        return task_samplers.styled(tasks, self.styles)

    def _class_names(self, data: ImageSets, task: Task) -> list[str]:
        # `class_ids` count within the set that the task was drawn from.
        return names_of(data.part("test")[int(task.info["family"])], task)


def _together(part: str, records: list[DataRecord]) -> DataRecord:
    """Description of one part of all sets together."""
    parts = [record["parts"][part] for record in records]
    left_out = sum(len(record["left_out"].get(part, ())) for record in records)
    digests = "".join(found["sha256"] for found in parts)
    return {
        "classes": sum(found["classes"] for found in parts),
        "images": sum(found["images"] for found in parts),
        "rotations": False,  # counted in the records of the sets
        "sha256": hashlib.sha256(digests.encode()).hexdigest()[:16],
        # Classes that are in a later part of another set.
        **({"left_out": left_out} if left_out else {}),
    }
