"""Predictions of a run for images of the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.apps import FewShotImages, Recipe
from metalearn.apps.images.own import OwnImages, read_own
from metalearn.apps.records import changed
from metalearn.core.learner import describe
from metalearn.core.task import Examples
from metalearn.runs.folder import Run, load
from metalearn.runs.run import best
from metalearn.training import prediction as adapted


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePredictions:
    """Classes of images, by the examples of a support folder.

    Attributes:
      images: The support set and the images, as the learner saw them.
      probabilities: Probability of each class, float32 `[Q, W]`.
      classes: Most probable class of each image, int `[Q]`, an index into
        `images.class_names`.
      learner: Name of the learner.
      transductive: Whether the prediction of one image depended on the others.
    """

    images: OwnImages
    probabilities: np.ndarray
    classes: np.ndarray
    learner: str
    transductive: bool

    def rows(self) -> list[dict[str, Any]]:
        """For each image its file, class, probability, and the probabilities of all."""
        names = self.images.class_names
        return [
            {
                "file": file,
                "class": names[best],
                "probability": float(row[best]),
                "probabilities": {n: float(p) for n, p in zip(names, row, strict=True)},
            }
            for file, best, row in zip(
                self.images.files, self.classes, self.probabilities, strict=True
            )
        ]


def predict(
    run: Run | str | Path,
    *,
    support: str | Path,
    images: Sequence[str | Path],
    invert: str = "auto",
) -> ImagePredictions:
    """Classifies images by the examples of a folder, with the best variables of a run.

    Args:
      run: Run on images, or its folder.
      support: Folder or zip with a folder of images for each class. A metric learner takes
        any number of classes, and a learner with a fixed head at most those of a training
        task. Classes may have different numbers of images.
      images: Image files, or folders or zips of images.
      invert: Whether to swap light and dark, see `metalearn.apps.images.own`.

    Returns:
      An `ImagePredictions`.

    Raises:
      FileNotFoundError: a path or the run does not exist, or the run has no checkpoint.
      ValueError: the run is not on images, images cannot be used, or there are more classes
        than the learner takes.

    Example:
      >>> run = runs.load("runs/glyphs-maml-seed0")
      >>> found = runs.predict(run, support="letters", images=["a.png"])
      >>> found.rows()[0]["class"]
    """
    run = run if isinstance(run, Run) else load(run)
    app = run.recipe.app
    if not isinstance(app, FewShotImages):
        raise ValueError(
            f"{run.folder} is a run of kind {app.kind!r}; expected one on images, such as "
            "that of glyphs-maml. For other inputs use ml.predict in Python."
        )
    found = read_own(app, run.record, support=support, images=images, invert=invert)
    recipe = for_ways(run.recipe, len(found.class_names), support)
    learner = recipe.build_judged(run.record)
    variables, _ = best(run)
    examples = Examples.of(_floats(found.support), found.labels)
    result = adapted.predict(learner, variables, examples, _floats(found.queries))
    ways = len(found.class_names)
    return ImagePredictions(
        images=found,
        # A fixed head has the logits of training; those without support have 0.
        probabilities=result.probabilities[:, :ways],
        classes=result.classes,
        learner=str(describe(learner).get("name", run.recipe.learner.name)),
        transductive=result.transductive,
    )


def for_ways(recipe: Recipe, ways: int, support: str | Path) -> Recipe:
    """The recipe for tasks of as many classes as a support folder has.

    Raises:
      ValueError: the learner does not take so many classes.
    """
    app = recipe.app
    if recipe.learner.record.fixed_head and ways > app.ways:
        raise ValueError(
            f"the support {support} has {ways} classes, but the head of "
            f"{recipe.learner.name} is trained for {app.ways}. Give {app.ways} classes or "
            f"fewer, train with --app.ways {ways}, or use a learner that takes any number, "
            "such as a metric one."
        )
    return changed(recipe, "app.eval_ways", ways)


def _floats(images: np.ndarray) -> np.ndarray:
    """Bytes as the samplers give them to a learner, in 0..1."""
    return images.astype(np.float32) / 255
