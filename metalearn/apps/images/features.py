"""Few-shot classification of feature vectors that another network has made."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from metalearn import models
from metalearn.algorithms.record import parameters
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.learners import Learner
from metalearn.apps.ways import check_ways, head_offers
from metalearn.core import digest, losses
from metalearn.core.linen import from_linen
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.few_shot import few_shot
from metalearn.training.judgement import Metric

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotFeatures:
    """Few-shot classification on fixed features, by the protocol of LEO.

    `--data-dir` is an .npz file. It holds `train`, `validation` and `test`, floats `[I,
    D]`, and `train_labels`, `validation_labels` and `test_labels`, ints `[I]`. The classes
    of the three parts are different. `python -m benchmarks features RUN` makes such a file
    from a finished run of protonet.

    Attributes:
      ways: Classes of a training task.
      shots: Support examples of a class in training.
      queries: Query examples of a class in training.
      eval_ways: Classes of a validation or test task; as in training if None.
      eval_shots: Support examples of a class at validation and test; as in training if
        None.
      eval_queries: Query examples of a class at validation and test.
      widths: Sizes of the hidden layers of the classifier. For a learner of an encoder,
        hidden units of each residual block, which begins as the identity; none for the
        features as they are. Without effect for a learner that brings its own network.
    """

    kind: ClassVar[str] = "features"
    metric: ClassVar[str] = "query/accuracy"
    measures: ClassVar[Mapping[str, Metric]] = {}
    light: ClassVar[bool] = True
    ways: int = 5
    shots: int = 1
    queries: int = 5
    eval_ways: int | None = None
    eval_shots: int | None = None
    eval_queries: int = 15
    widths: tuple[int, ...] = ()

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
            return {"widths": "learners of a model or an encoder"}
        return {}

    def check(self, learner: Learner) -> None:
        """Refuses a learner for which there is no network here.

        Raises:
          ValueError: the settings do not fit; the message names the learner and the remedy.
        """
        check_ways(self, learner)
        if self.widths and min(self.widths) < 1:
            raise ValueError(
                f"app.widths is {self.widths}; expected units of hidden layers, each 1 or "
                "more, or none."
            )
        learner.refuse_policy("networks with batch norm")
        networks = learner.record.networks
        if networks and "mlp" not in networks:
            raise ValueError(
                f"{learner.name} needs a network that features do not have here; expected "
                "a learner of any network, such as maml or protonet."
            )

    def load(self, data_dir: str | None, parts: tuple[str, ...] = PARTS) -> Any:
        """The arrays of the file.

        Raises:
          ValueError: the file does not exist, is damaged or holds no arrays, or arrays are
            missing or have wrong shapes.
        """
        if data_dir is None or not Path(data_dir).is_file():
            raise ValueError(
                f"data_dir is {data_dir!r}; expected an .npz file of features. Make one "
                "with: python -m benchmarks features RUN --out FILE.npz"
            )
        if not zipfile.is_zipfile(data_dir):
            raise ValueError(
                f"{data_dir} is no .npz file; expected what np.savez writes. Make one "
                "with: python -m benchmarks features RUN --out FILE.npz"
            )
        found = _arrays(Path(data_dir), parts)
        shapes = {part: features.shape for part, (features, _) in found.items()}
        if any(len(s) != 2 for s in shapes.values()) or (
            len({s[1] for s in shapes.values()}) > 1
        ):
            raise ValueError(
                f"{data_dir} has features of shapes {shapes}; expected [I, D] with one D."
            )
        return found

    def describe(self, data: Any) -> DataRecord:
        """Description of the features."""
        return {
            "name": "features",
            "num_features": next(iter(data.values()))[0].shape[1],
            "num_classes": len(np.unique(data["train"][1])) if "train" in data else None,
            "parts": {
                part: {
                    "classes": len(np.unique(labels)),
                    "images": len(labels),
                    "rotations": False,
                    # A resumed run compares this, so it cannot go on with other features.
                    "sha256": digest.of_json(
                        [digest.of_array(features), digest.of_array(labels)]
                    )[:16],
                }
                for part, (features, labels) in data.items()
            },
        }

    def tasks(self, data: Any, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        training = part == "train"
        ways = self.ways if training else self.test_ways
        shots = self.shots if training else self.test_shots
        return few_shot(
            *data[part],
            num_ways=ways,
            num_support=shots,
            num_query=self.queries if training else self.eval_queries,
            name=f"features {part} {ways}-way {shots}-shot",
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
        own = learner.record.networks.get("mlp")
        encoder = models.ResidualMLP if own is None else own
        classifier = models.MLP if own is None else own
        return {
            "model": from_linen(
                classifier(
                    self.ways if learner.record.fixed_head else None, widths=self.widths
                )
            ),
            "encoder": from_linen(encoder(None, widths=self.widths)),
            "loss_fn": losses.cross_entropy,
            "num_classes": record.get("num_classes"),
            **head_offers(self, learner, evaluating=evaluating),
        }

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes nothing, because features have no picture."""


def _arrays(path: Path, parts: tuple[str, ...]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and labels of each part of an .npz file."""
    names = [name for part in parts for name in (part, f"{part}_labels")]
    try:
        with zipfile.ZipFile(path) as stored:
            there = [name.removesuffix(".npy") for name in stored.namelist()]
            # Whole, because only then the checksum of the archive is compared: where a
            # changed header asks for fewer numbers, `np.load` stops before its end.
            data = {n: stored.read(f"{n}.npy") for n in names if n in there}
        found = {name: _array(content) for name, content in data.items()}
    except Exception as error:  # zipfile, zlib and the parser of headers raise many kinds
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected what "
            "np.savez writes. Copy or make the file again."
        ) from error
    if missing := sorted(set(names) - set(found)):
        raise ValueError(f"{path} has no {', '.join(missing)}; it has {', '.join(there)}.")
    return {part: (found[part], found[f"{part}_labels"]) for part in parts}


def _array(content: bytes) -> np.ndarray:
    # Unpickling a file of somebody else could run any code.
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
