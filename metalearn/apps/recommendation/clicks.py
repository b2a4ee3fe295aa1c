"""Clicks on an item from the first few: the warm-up of items without a history."""

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
from metalearn.apps.learners import Learner
from metalearn.apps.recommendation import pictures
from metalearn.core import losses
from metalearn.core.linen import from_linen
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.ratings import (
    Ratings,
    check_shares,
    item_parts,
    load_ratings,
    other_clicks,
    without_unseen,
)
from metalearn.tasks import histories
from metalearn.training.judgement import Metric

PARTS = ("train", "validation", "test")
NEW = -1  # number of users and items that training does not see


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClickData:
    """Ratings as clicks, and which items are for what.

    Attributes:
      ratings: The ratings, without values that training does not see.
      item_part: Part of each item, int8 `[I]`.
      user: Number of the user of each rating, `NEW` without a rating in training, int32
        `[R]`.
      item: Number of the item likewise.
      num_users: Number of users in training.
      num_items: Number of items in training.
      digest: Digest of the files.
    """

    ratings: Ratings
    item_part: np.ndarray
    user: np.ndarray
    item: np.ndarray
    num_users: int
    num_items: int
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemClicks:
    """Clicks of known users on an item, from the first few.

    An item is a task, and a rating of `positive` or more is a click, as in Meta-Embedding
    (F. Pan et al., SIGIR 2019). Items of the test are new: the network does not know their
    vector. Each is judged once, on the same clicks whatever `eval_shots` is, and the
    support set of fewer is part of that of more.

    Meta-Embedding has two phases in one run. A falling rate falls over both, see
    `ml.meta_embedding`; `--outer.schedule constant` gives the generator the whole rate.

    Attributes:
      dataset: Name of the set, whose files are in `--data-dir` or in a folder of that name
        there; "own" are ratings.csv, users.csv and items.csv of yours.
      validation_items: Share of the items for validation.
      test_items: Share of the items for the test.
      split_number: Number of the split of the items, the seed of its draw.
      limits: Lowest and highest rating of the scale.
      positive: Rating from which on it is a click.
      shots: Examples of a support set in training, and as many queries.
      eval_shots: Examples of a support set at validation and test.
      most_shots: Largest `eval_shots` that is to be compared: items of validation and test
        have this many examples besides the queries.
      eval_queries: Queries of an item at validation and test.
      network: Base model: "deepfm", "fm", "wide_deep", "pnn" or "din".
      dim: Length of the vectors.
      widths: Sizes of the hidden layers; unread by "fm".
      history: Largest number of other items of training that the user clicked on, before
        or after, which "din" sees with each item; see `ratings.other_clicks`.
      attention: Units of the layer that weighs the history; of "din" alone.
    """

    kind: ClassVar[str] = "clicks"
    metric: ClassVar[str] = "query/loss"
    light: ClassVar[bool] = False
    measures: ClassVar[Mapping[str, Metric]] = {}
    dataset: Literal["ml-1m-coldstart", "ml-1m", "ml-100k", "own"] = "ml-1m-coldstart"
    validation_items: float = 0.1
    test_items: float = 0.2
    split_number: int = 1
    limits: tuple[float, float] = (1.0, 5.0)
    positive: float = 4.0
    shots: int = 20
    eval_shots: int = 20
    most_shots: int = 60
    eval_queries: int = 40
    network: Literal["deepfm", "fm", "wide_deep", "pnn", "din"] = "deepfm"
    dim: int = 16
    widths: tuple[int, ...] = (64, 64)
    history: int = 20
    attention: int = 16

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect, and the setting that would read each."""
        del learner
        idle = {"widths": "--app.network deepfm"} if self.network == "fm" else {}
        if self.network != "din":
            idle |= dict.fromkeys(("history", "attention"), "--app.network din")
        return idle

    def check(self, learner: Learner) -> None:
        """Refuses settings that do not go together.

        Raises:
          ValueError: the learner classifies or needs layers of its own, or a number is out
            of range; the message names the remedy.
        """
        if self.network != "fm" and (not self.widths or min(self.widths) < 1):
            raise ValueError(
                f"app.widths is {self.widths}; expected units of layers, each 1 or more."
            )
        apart = getattr(learner, "apart", 0)
        if self.network == "din" and apart:
            raise ValueError(
                f"learner.apart is {apart} with app.network 'din', whose histories "
                "show the base model the items that are kept apart from it; expected "
                "learner.apart 0, or another network."
            )
        if self.eval_shots > self.most_shots:
            raise ValueError(
                f"app.eval_shots is {self.eval_shots} and app.most_shots is "
                f"{self.most_shots}; expected the second to be no smaller."
            )
        check_shares(self.validation_items, self.test_items, 0.0, of="items")
        low, high = self.limits
        if not low < self.positive <= high:
            raise ValueError(
                f"app.positive is {self.positive} and app.limits are {self.limits}; "
                "expected a rating above the lowest, up to the highest."
            )
        small = {"fields": [[2, 1], [2, 1]], "of_users": 1, "users": 1, "items": 1}
        check_learner(self, learner, small, "a network of clicks")

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> ClickData:
        """The ratings, with their split.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: see `metalearn.data.ratings.load_ratings` and `item_parts`.
        """
        del parts
        ratings = load_ratings(self.dataset, data_dir, limits=self.limits)
        part = item_parts(
            ratings,
            validation=self.validation_items,
            test=self.test_items,
            seed=self.split_number,
        )
        train = part[ratings.item] == 0
        users, items = _numbers(ratings.user, train), _numbers(ratings.item, train)
        return ClickData(
            ratings=without_unseen(ratings, train),
            item_part=part,
            user=users,
            item=items,
            num_users=int(users.max()) + 1,
            num_items=int(items.max()) + 1,
            digest=ratings.digest[:16],
        )

    def describe(self, data: ClickData) -> DataRecord:
        """Description of the clicks."""
        ratings, counts = data.ratings, np.bincount(data.item_part, minlength=3)
        clicked = float((ratings.rating >= self.positive).mean())
        return {
            "name": ratings.name,
            "about": (
                f"{len(ratings):,} ratings, {100 * clicked:.1f} % clicks; items: train "
                f"{counts[0]:,}, validation {counts[1]:,}, test {counts[2]:,}"
            ),
            "fields": [list(field) for field in ratings.fields],
            "of_users": len(ratings.users.attributes),
            "users": data.num_users,
            "items": data.num_items,
            "vocabulary": ratings.vocabulary[:16],
            "parts": {part: {"sha256": data.digest} for part in PARTS},
        }

    def tasks(self, data: ClickData, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        ratings, training = data.ratings, part == "train"
        rows = np.flatnonzero(data.item_part[ratings.item] == PARTS.index(part))
        title = "training" if training else part
        clicks = (ratings.rating[rows] >= self.positive).astype(np.float32)
        x = {
            "content": ratings.content_of(rows),
            "user": data.user[rows],
            "item": data.item[rows],
        }
        if self.network == "din":
            x["history"] = other_clicks(
                data.user,
                data.item,
                ratings.rating >= self.positive,
                rows=rows,
                most=self.history,
                seed=self.split_number,
            )
        try:
            return histories(
                x,
                clicks[:, None],
                ratings.item[rows],
                num_query=self.shots if training else self.eval_queries,
                least_support=self.shots if training else self.most_shots,
                most_support=self.shots if training else self.most_shots,
                shown=self.shots if training else self.eval_shots,
                name=f"{ratings.name} {title}",
            )
        except ValueError as error:
            options = "--app.shots" if training else "--app.eval-queries, --app.most-shots"
            raise ValueError(
                f"{ratings.name} {title}: {error} Groups are items; the numbers are "
                f"{options}."
            ) from error

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""
        places = sum(place for _, place in record["fields"])
        ids = jnp.zeros((self.shots,), jnp.int32)
        content = jnp.zeros((self.shots, places), jnp.int32)
        x = {"content": content, "user": ids, "item": ids}
        if self.network == "din":
            x["history"] = jnp.zeros((self.shots, self.history), jnp.int32)
        examples = Examples.of(x, jnp.zeros((self.shots, 1), jnp.float32))
        info = {"task": jnp.zeros((), jnp.int32)}
        return Task(support=examples, query=examples, info=info)

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        del learner, evaluating
        fields = tuple((values, places) for values, places in record["fields"])
        network = models.ClickNetwork(
            kind=self.network,
            fields=fields,
            users=record["users"],
            items=record["items"],
            dim=self.dim,
            widths=self.widths,
            attention=self.attention,
        )
        generator = models.VectorGenerator(
            fields=fields, begin=record["of_users"], dim=self.dim
        )
        return {
            "model": from_linen(network),
            "loss_fn": losses.binary_cross_entropy,
            "generator": from_linen(generator),
        }

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of the clicks on three test items and their probabilities."""
        panels = []
        for number in range(3):
            task = predictor.task(number)
            before = predictor.before(task, task.query.x)
            after = predictor.after(task, task.query.x)
            panels.append(
                pictures.ClickPanel(
                    name=str(data.ratings.items.ids[int(task.info["task"])]),
                    given=np.asarray(task.support.y)[np.asarray(task.support.mask), 0],
                    truth=np.asarray(task.query.y)[:, 0],
                    before=None if before is None else _chance(before[:, 0]),
                    after=_chance(after[:, 0]),
                )
            )
        title = f"Three new items of {record['name']} ({predictor.learner})"
        pictures.clicks(path, panels, title=title)


def _numbers(rows: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Numbers 0.. of what training has, `NEW` for the others, int32 `[R]`."""
    known = np.unique(rows[train])
    place = np.minimum(np.searchsorted(known, rows), len(known) - 1)
    return np.where(known[place] == rows, place, NEW).astype(np.int32)


def _chance(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
