"""Predictions of a run for images or texts of the user."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metalearn.apps import FewShotImages, Recipe
from metalearn.apps.images.own import OwnImages, read_own
from metalearn.apps.records import changed
from metalearn.apps.text import FewShotText
from metalearn.apps.text import own as own_texts
from metalearn.core.learner import describe
from metalearn.core.task import Examples
from metalearn.runs.folder import Run, load, stored_data_dir
from metalearn.runs.run import best
from metalearn.training import prediction as adapted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Classes of inputs of the user, by a few examples.

    Attributes:
      probabilities: Probability of each class, float32 `[Q, W]`.
      classes: Most probable class of each input, int `[Q]`, an index into the names of the
        classes.
      learner: Name of the learner.
      transductive: Whether the prediction of one input depended on the others.
    """

    probabilities: np.ndarray
    classes: np.ndarray
    learner: str
    transductive: bool

    def _rows(
        self, kind: str, inputs: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, Any]]:
        return [
            {
                kind: given,
                "class": names[best],
                "probability": float(row[best]),
                "probabilities": {n: float(p) for n, p in zip(names, row, strict=True)},
            }
            for given, best, row in zip(
                inputs, self.classes, self.probabilities, strict=True
            )
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePredictions(Predictions):
    """Classes of images, by the examples of a support folder.

    Attributes:
      images: The support set and the images, as the learner saw them, with the names of the
        classes. The other attributes are those of `Predictions`.
    """

    images: OwnImages

    def rows(self) -> list[dict[str, Any]]:
        """For each image its file, class, probability, and the probabilities of all."""
        return self._rows("file", self.images.files, self.images.class_names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPredictions(Predictions):
    """Classes of texts, by labelled examples.

    Attributes:
      texts: The examples and the texts, with their vectors and the names of the classes.
        The other attributes are those of `Predictions`.
    """

    texts: own_texts.OwnTexts

    def rows(self) -> list[dict[str, Any]]:
        """For each text its class, probability, and the probabilities of all."""
        return self._rows("text", self.texts.texts, self.texts.class_names)


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
            "that of glyphs-maml. Of a run on texts use predict_texts or --texts, and for "
            "other inputs ml.predict in Python."
        )
    found = read_own(app, run.record, support=support, images=images, invert=invert)
    examples = Examples.of(_floats(found.support), found.labels)
    answers = _answers(run, examples, _floats(found.queries), found.class_names, support)
    return ImagePredictions(images=found, **answers)


def predict_texts(
    run: Run | str | Path,
    *,
    support: str | Path,
    texts: Sequence[str],
    data_dir: str | None = None,
) -> TextPredictions:
    """Classifies texts by labelled examples, with the best variables of a run.

    Args:
      run: Run on texts, or its folder.
      support: File of examples, `.csv` with the columns text and category, or `.jsonl` with
        an object of "sentence" and "label" in each line. Classes may have different numbers
        of examples; a learner with a fixed head takes at most those of a training task.
      texts: Texts to classify.
      data_dir: Folder of the texts of training, to which the vectors are fitted; that of
        the run if None.

    Returns:
      A `TextPredictions`.

    Raises:
      FileNotFoundError: a file or the run does not exist, or the run has no checkpoint.
      TypeError: `texts` is no list of texts.
      ValueError: the run is not on texts, texts cannot be used, or there are more classes
        than the learner takes.

    Example:
      >>> found = runs.predict_texts(
      ...     "runs/text-protonet-seed0", support="intents.csv", texts=["where is my card?"]
      ... )
      >>> found.rows()[0]["class"]
    """
    run = run if isinstance(run, Run) else load(run)
    app = run.recipe.app
    if not isinstance(app, FewShotText):
        raise ValueError(
            f"{run.folder} is a run of kind {app.kind!r}; expected one on texts, such as "
            "that of text-protonet. Of a run on images use predict or --images."
        )
    if data_dir is None and (data_dir := stored_data_dir(run.folder)) is None:
        raise FileNotFoundError(
            f"the folder of the texts that {run.folder} was trained on is not there; its "
            "vectors are fitted to them. Give --data-dir, where they are now."
        )
    found = own_texts.read_own(
        app, run.record, support=support, texts=texts, data_dir=data_dir
    )
    examples = Examples.of(found.support, found.labels)
    answers = _answers(run, examples, found.queries, found.class_names, support)
    return TextPredictions(texts=found, **answers)


def _answers(
    run: Run,
    examples: Examples,
    queries: np.ndarray,
    names: Sequence[str],
    support: str | Path,
) -> dict[str, Any]:
    """What the best variables of a run say of queries, as fields of predictions."""
    recipe = for_ways(run.recipe, len(names), support)
    learner = recipe.build_judged(run.record)
    variables, _ = best(run)
    result = adapted.predict(learner, variables, examples, queries)
    return {
        # A fixed head has the logits of training; those without support have 0.
        "probabilities": result.probabilities[:, : len(names)],
        "classes": result.classes,
        "learner": str(describe(learner).get("name", run.recipe.learner.name)),
        "transductive": result.transductive,
    }


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
