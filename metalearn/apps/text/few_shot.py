"""Few-shot classification of short texts: intents, relations, headlines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from metalearn.algorithms.record import parameters
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.learners import Learner
from metalearn.apps.ways import check_ways, head_offers
from metalearn.core import losses
from metalearn.core.cost import in_bytes
from metalearn.core.linen import from_linen
from metalearn.core.model import Model
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.few_shot import few_shot
from metalearn.data.text import TextSet, hashed_texts, load_texts, word_vectors
from metalearn.data.text.hashing import MOST_BUCKETS
from metalearn.models.residual import ResidualMLP
from metalearn.training.judgement import Metric

PARTS = ("train", "validation", "test")
_MOST_BYTES = 4 * 2**30  # of the features of one part
_DIMS = {"hashed": 1024, "wordllama": 256}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Featured:
    """Features of one part of a set, as `few_shot` reads them.

    Attributes:
      images: Features, float32 `[I, D]`.
      labels: Class of each text, int32 `[I]`.
      class_names: Name of each class.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """A set of texts with features.

    Attributes:
      texts: The texts.
      features: Function `texts -> float32 [I, D]` that was fitted to the training texts;
        it makes features of any others too.
      parts: Features of the parts that were asked for.
    """

    texts: TextSet
    features: Any
    parts: dict[str, Featured]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotText:
    """Few-shot classification of short texts over fixed vectors of them.

    The encoder begins as the identity, so a learner that compares embeddings starts as the
    nearest centroid of the vectors.

    Attributes:
      dataset: Name of the set, whose files are in `--data-dir` or in a folder of that name
        there; "own" are texts of your own in full.jsonl and few_shot_folds.json.
      fold: Fold of the classes; the first of the set if None.
      features: Kind of vectors: hashed n-grams of words and characters, for any language,
        or means of the token vectors of the package wordllama (extra `text`), for English.
        Both are fitted to the texts of meta-training.
      dim: Length of the vectors; 1024 hashed or 256 of wordllama if None.
      max_characters: Longest text that is accepted.
      drop_repeated: Whether a text that a class has twice is left out the second time.
      ways: Classes of a training task.
      shots: Support examples of a class in training.
      queries: Query examples of a class in training.
      eval_ways: Classes of a validation or test task; as in training if None.
      eval_shots: Support examples of a class at validation and test; as in training if
        None.
      eval_queries: Query examples of a class at validation and test.
      widths: Hidden units of each residual block of the network; none for the vectors as
        they are.
      dropout: Share of hidden units that are dropped in training.
    """

    kind: ClassVar[str] = "text"
    metric: ClassVar[str] = "query/accuracy"
    measures: ClassVar[Mapping[str, Metric]] = {}
    # A task of 15 ways takes milliseconds, for vectors are long.
    light: ClassVar[bool] = False
    dataset: Literal["banking77", "hwu64", "liu54", "huffpost41", "fewrel", "own"] = (
        "banking77"
    )
    fold: str | None = None
    features: Literal["hashed", "wordllama"] = "hashed"
    dim: int | None = None
    max_characters: int = 2000
    drop_repeated: bool = True
    ways: int = 5
    shots: int = 1
    queries: int = 5
    eval_ways: int | None = None
    eval_shots: int | None = None
    eval_queries: int = 15
    widths: tuple[int, ...] = (256,)
    dropout: float = 0.5

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
        if {"model", "encoder"}.isdisjoint(parameters(learner.record.build)):
            reader = "learners of a model or an encoder"
            return {"widths": reader, "dropout": reader}
        if "mlp" in learner.record.networks:
            return {"dropout": "learners without layers of their own"}
        return {} if self.widths else {"dropout": "app.widths of one block or more"}

    def check(self, learner: Learner) -> None:
        """Refuses settings that do not go together.

        Raises:
          ValueError: settings exclude one another; the message names the setting and the
            remedy.
        """
        check_ways(self, learner)
        if self.widths and min(self.widths) < 1:
            raise ValueError(
                f"app.widths is {self.widths}; expected hidden units of residual blocks, "
                "each 1 or more, or none."
            )
        if self.dropout >= 1:
            raise ValueError(f"app.dropout is {self.dropout}; expected a share below 1.")
        longest = MOST_BUCKETS if self.features == "hashed" else _DIMS["wordllama"]
        if self.dim is not None and not 2 <= self.dim <= longest:
            raise ValueError(
                f"app.dim is {self.dim}; expected a length of {self.features} vectors from "
                f"2 to {longest}."
            )
        learner.refuse_policy("networks with batch norm")
        networks = learner.record.networks
        if networks and "mlp" not in networks:
            raise ValueError(
                f"{learner.name} needs a network that vectors of texts do not have here; "
                "expected a learner of any network, such as protonet or maml."
            )

    def load(self, data_dir: str | None, parts: tuple[str, ...] = PARTS) -> Texts:
        """The set and the vectors of these parts.

        Raises:
          FileNotFoundError: a file is missing.
          MissingPackage: wordllama is not installed.
          ValueError: see `metalearn.data.text.load_texts`; or vectors would take too much
            memory.
        """
        texts = self.texts(data_dir)
        dim = _DIMS[self.features] if self.dim is None else self.dim
        most = max(len(texts.parts[part].texts) for part in ("train", *parts))
        if 4 * dim * most > _MOST_BYTES:
            raise ValueError(
                f"vectors of length {dim} of {most:,} texts take "
                f"{in_bytes(4 * dim * most)}; expected at most {in_bytes(_MOST_BYTES)}. "
                "Lower app.dim."
            )
        make: Callable[..., Any] = hashed_texts
        if self.features == "wordllama":
            make = word_vectors
        features = make(texts.parts["train"].texts, dim=dim)
        found = {
            part: Featured(
                images=features(texts.parts[part].texts),
                labels=texts.parts[part].labels,
                class_names=texts.parts[part].class_names,
            )
            for part in parts
        }
        return Texts(texts=texts, features=features, parts=found)

    def texts(self, data_dir: str | None) -> TextSet:
        """The texts alone; see `metalearn.data.text.load_texts`."""
        return load_texts(
            self.dataset,
            data_dir,
            fold=self.fold,
            max_characters=self.max_characters,
            drop_repeated=self.drop_repeated,
        )

    def describe(self, data: Texts) -> DataRecord:
        """Description of the texts and of their vectors."""
        texts = data.texts
        return {
            "name": texts.name,
            "fold": texts.fold,
            "num_features": data.features.num_features,
            # Of the vectors by their settings: their last digits differ among machines.
            "features": data.features.about,
            "num_classes": texts.parts["train"].num_classes,
            "texts": dict(texts.info),
            "parts": {
                part: {
                    "classes": texts.parts[part].num_classes,
                    "images": len(texts.parts[part].texts),
                    "rotations": False,
                    "sha256": texts.parts[part].digest[:16],
                }
                for part in data.parts
            },
        }

    def tasks(self, data: Texts, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        training = part == "train"
        ways = self.ways if training else self.test_ways
        shots = self.shots if training else self.test_shots
        return few_shot(
            data.parts[part],
            num_ways=ways,
            num_support=shots,
            num_query=self.queries if training else self.eval_queries,
            # The usual mistakes with images are none of vectors.
            check_images=False,
            name=f"{data.texts.name} {data.texts.fold} {part} {ways}-way {shots}-shot",
        )

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""

        def examples(per_class: int) -> Examples:
            num = self.ways * per_class
            x = jnp.zeros((num, record["num_features"]))
            return Examples.of(x, jnp.zeros((num,), jnp.int32))

        info = {"class_ids": jnp.zeros((self.ways,), jnp.int32)}
        return Task(support=examples(self.shots), query=examples(self.queries), info=info)

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        return {
            "model": self._network(
                learner, self.ways if learner.record.fixed_head else None
            ),
            "encoder": self._network(learner, None),
            "loss_fn": losses.cross_entropy,
            "num_classes": record.get("num_classes"),
            **head_offers(self, learner, evaluating=evaluating),
        }

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes nothing, because vectors of texts have no picture."""

    def _network(self, learner: Learner, num_outputs: int | None) -> Model:
        own = learner.record.networks.get("mlp")
        if own is not None:
            return from_linen(own(num_outputs, widths=self.widths))
        return from_linen(ResidualMLP(num_outputs, self.widths, self.dropout))
