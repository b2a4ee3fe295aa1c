"""Feature vectors of a data set, from the encoder of a finished run of protonet."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metalearn import runs
from metalearn.apps.images import FewShotImages
from metalearn.core.model import Variables
from metalearn.data.images.image_sets import ImageDataset, only_classes, spread_classes
from metalearn.runs import folder as run_folder


@dataclasses.dataclass(frozen=True)
class Features:
    """Writes what the `features-*` recipes read: `[I, D]` and labels of every part.

    Attributes:
      run: Run folder of a recipe whose learner needs an encoder, such as protonet.
      out: Where to write, an .npz file.
      data_dir: Folder of the original archives, where the data set needs them.
      centre: Whether the mean of the training features is taken from all. A memory that is
        read by cosines needs it: behind a ReLU all features look alike.
      unseen: Whether the training classes written are those that the run left out by
        `--app.train-classes`, in place of those that it was trained on. Features of classes
        that an encoder has seen lie closer together than those of new classes.
    """

    run: str
    out: str = "features.npz"
    data_dir: str | None = None
    centre: bool = False
    unseen: bool = False

    def run_benchmark(self) -> None:
        if not Path(self.run).is_dir():
            raise SystemExit(
                f"--run is {self.run}, where no folder is; expected that of a finished run."
            )
        run = run_folder.load(Path(self.run))
        learner = run.recipe.learner
        variables, _ = runs.best(run)
        offers = run.recipe.app.offers(learner, run.record, evaluating=True)
        network, task = offers.get("encoder"), run.recipe.app.example(run.record)
        images = isinstance(run.recipe.app, FewShotImages)
        if not images or not is_encoder(network, variables, task.support.x):
            raise SystemExit(
                f"{self.run} is a run of {learner.name}, whose variables are not those of "
                "an encoder of images alone; expected one of protonet, or of another "
                "learner that has nothing beside its encoder."
            )

        @jax.jit
        def encode(variables: Variables, images: Any) -> Any:
            x = images.astype(jnp.float32) / 255
            return network.apply(variables, x, train=False)[0]

        data = _images(run.recipe.app, self.data_dir, self.unseen)
        arrays = {}
        for part, classes in data.parts.items():
            turns = 4 if classes.rotations else 1
            found, labels = [], []
            for turn in range(turns):
                images = np.rot90(classes.images, turn, axes=(1, 2))
                for batch in range(0, len(images), 1000):
                    found.append(
                        np.asarray(encode(variables, images[batch : batch + 1000]))
                    )
                labels.append(classes.labels + turn * classes.num_classes)
            features = np.concatenate(found)
            arrays[part], arrays[f"{part}_labels"] = features, np.concatenate(labels)
            print(f"{part}: {features.shape}")
        if self.centre:
            middle = arrays["train"].mean(0)
            arrays |= {part: arrays[part] - middle for part in data.parts}
        # One scale for all, that of training, as LEO's features have about unit length.
        scale = np.sqrt(np.mean(np.sum(arrays["train"] ** 2, -1)))
        for part in data.parts:
            arrays[part] = (arrays[part] / scale).astype(np.float32)
        np.savez(self.out, **arrays)
        print(f"wrote {self.out}")


def _images(app: FewShotImages, data_dir: str | None, unseen: bool) -> ImageDataset:
    """The images to encode; of training, those of all classes but the run's if `unseen`."""
    parts = ("train", "validation", "test")
    if not unseen:
        return app.load(data_dir, parts)
    data = dataclasses.replace(app, train_classes=None).load(data_dir, parts)
    train = data.part("train")
    total = train.num_classes
    kept = total if app.train_classes is None else app.train_classes
    others = np.setdiff1d(np.arange(total), spread_classes(total, kept))
    if not len(others):
        raise SystemExit(
            f"unseen is True, and the run was trained on all {total} classes; expected a "
            "run with --app.train-classes below that."
        )
    return dataclasses.replace(data, train=only_classes(train, others))


def is_encoder(network: Any, variables: Variables, x: Any) -> bool:
    """Whether the variables are those of the network, by their names and shapes."""
    if network is None:
        return False
    wanted = jax.eval_shape(network.init, jax.random.key(0), x)
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
    return shapes(wanted) == shapes(variables)
