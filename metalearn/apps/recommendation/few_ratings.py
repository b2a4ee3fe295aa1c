"""Ratings of a user from the few that the user has given: cold-start recommendation."""

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
from metalearn.core import losses, metrics
from metalearn.core.linen import from_linen
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.ratings import (
    ColdStart,
    Ratings,
    check_shares,
    cold_start,
    load_ratings,
    without_unseen,
)
from metalearn.tasks import histories
from metalearn.training.judgement import Metric

State = Literal["warm", "user", "item", "both"]
PARTS = ("train", "validation", "test")
TITLES = {
    "warm": "users and items of training",
    "user": "new users",
    "item": "new items",
    "both": "new users, new items",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatingData:
    """Ratings, and which are for what.

    Attributes:
      ratings: The ratings, without values that training does not see.
      split: Parts of users and items.
      digest: Digest of the files.
    """

    ratings: Ratings
    split: ColdStart
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewRatings:
    """Ratings of a user from those that the user has given.

    A user is a task. Ten of the ratings are queries, drawn at random, and the others are
    support; in each state both are of that state, as in MeLU (H. Lee et al., KDD 2019).
    In the warm state, queries were held back from training, of users with twice as many
    ratings. Each user is judged once. A value that training does not see, such as a new
    actor, counts as missing.

    Attributes:
      dataset: Name of the set, whose files are in `--data-dir` or in a folder of that name
        there; "own" are ratings.csv, users.csv and items.csv of yours.
      state: State of the test: ratings of training users for items of training ("warm"), of
        new users ("user"), for new items ("item"), or both. Training is the same for all,
        and validation is on new users.
      validation_users: Share of the users for validation.
      test_users: Share of the users for the test.
      new_items: Share of the items that training does not see.
      split_number: Number of the split of users and items, the seed of its draw.
      limits: Lowest and highest rating of the scale.
      queries: Ratings of a user that are predicted.
      least_support: Smallest number of other ratings; users with fewer are left out.
      most_support: Largest number of other ratings that a task shows.
      dim: Length of the embedding of what is known, such as the genres.
      widths: Sizes of the layers above the embeddings.
      dropout: Share of what is known that a training row does not show, at random.
    """

    kind: ClassVar[str] = "ratings"
    metric: ClassVar[str] = "query/mae"
    light: ClassVar[bool] = False
    measures: ClassVar[Mapping[str, Metric]] = {
        "query/mae": metrics.mae,
        "query/ndcg@3": metrics.ndcg(3),
    }
    dataset: Literal["ml-1m-coldstart", "ml-1m", "ml-100k", "own"] = "ml-1m-coldstart"
    state: State = "user"
    validation_users: float = 0.1
    test_users: float = 0.2
    new_items: float = 0.2
    split_number: int = 1
    limits: tuple[float, float] = (1.0, 5.0)
    queries: int = 10
    least_support: int = 3
    most_support: int = 90
    dim: int = 32
    widths: tuple[int, ...] = (64, 64)
    dropout: float = 0.0

    def unread(self, learner: Learner) -> dict[str, str]:
        """Fields without effect: none."""
        del learner
        return {}

    def check(self, learner: Learner) -> None:
        """Refuses settings that do not go together.

        Raises:
          ValueError: the learner classifies or needs layers of its own, or a number is out
            of range; the message names the remedy.
        """
        if not self.widths or min(self.widths) < 1:
            raise ValueError(
                f"app.widths is {self.widths}; expected units of layers, each 1 or more."
            )
        if not 1 <= self.least_support <= self.most_support:
            raise ValueError(
                f"app.least_support is {self.least_support} and app.most_support is "
                f"{self.most_support}; expected 1 or more, in this order."
            )
        check_shares(self.validation_users, self.test_users, self.new_items)
        if self.state in ("item", "both") and not self.new_items:
            raise ValueError(
                f"app.new_items is 0 with app.state {self.state!r}, a test of new items; "
                "expected a share above 0."
            )
        # The smallest data that have a field.
        check_learner(
            self, learner, {"fields": [[2, 1]], "offset": 0.0}, "a network of ratings"
        )

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> RatingData:
        """The ratings, with their split.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: see `metalearn.data.ratings.load_ratings` and `cold_start`.
        """
        del parts
        ratings = load_ratings(self.dataset, data_dir, limits=self.limits)
        split = cold_start(
            ratings,
            validation_users=self.validation_users,
            test_users=self.test_users,
            new_items=self.new_items,
            held=self.queries,
            seed=self.split_number,
        )
        seen = without_unseen(ratings, split.mask(ratings, "train"))
        return RatingData(ratings=seen, split=split, digest=ratings.digest[:16])

    def describe(self, data: RatingData) -> DataRecord:
        """Description of the ratings."""
        ratings, users = data.ratings, np.bincount(data.split.user_part, minlength=3)
        train = data.split.mask(ratings, "train")
        new = int(data.split.new_item.sum())
        return {
            "name": ratings.name,
            "about": (
                f"{len(ratings):,} ratings; users: train {users[0]:,}, validation "
                f"{users[1]:,}, test {users[2]:,}; items: {len(ratings.items) - new:,} of "
                f"training, {new:,} new"
            ),
            "fields": [list(field) for field in ratings.fields],
            "offset": round(float(ratings.rating[train].mean()), 4),
            "vocabulary": ratings.vocabulary[:16],
            "parts": {part: {"sha256": data.digest} for part in PARTS},
        }

    def tasks(self, data: RatingData, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        # Validation on the tasks of the test would choose by them.
        state = {"train": "warm", "validation": "user"}.get(part, self.state)
        return self.tasks_in(data, part, state)

    def tasks_in(self, data: RatingData, part: str, state: str) -> TaskSampler:
        """Tasks of a part in any state."""
        ratings = data.ratings
        rows = np.flatnonzero(data.split.mask(ratings, part, state))
        title = "training" if part == "train" else f"{part}, {TITLES[state]}"
        if not len(rows):
            raise ValueError(
                f"{ratings.name} has no rating for {title}. Change the shares of users and "
                "items."
            )
        return self.tasks_of(
            ratings,
            rows,
            f"{ratings.name} {title}",
            # Of the warm state, training has seen the support but not the queries.
            data.split.held[rows] if part != "train" and state == "warm" else None,
        )

    def tasks_of(
        self, ratings: Ratings, rows: np.ndarray, name: str, is_query: Any = None
    ) -> TaskSampler:
        """Tasks of these rows of ratings.

        Raises:
          ValueError: no user has enough of them.
        """
        try:
            return histories(
                {
                    "content": ratings.content_of(rows),
                    "user": ratings.user[rows],
                    "item": ratings.item[rows],
                },
                ratings.rating[rows][:, None],
                ratings.user[rows],
                num_query=self.queries,
                least_support=self.least_support,
                most_support=self.most_support,
                is_query=is_query,
                name=name,
            )
        except ValueError as error:
            raise ValueError(
                f"{name}: {error} Groups are users; the numbers are --app.queries and "
                "--app.least-support."
            ) from error

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""
        places = sum(place for _, place in record["fields"])

        def examples(num: int) -> Examples:
            ids = jnp.zeros((num,), jnp.int32)
            x = {"content": jnp.zeros((num, places), jnp.int32), "user": ids, "item": ids}
            return Examples.of(x, jnp.zeros((num, 1), jnp.float32))

        info = {"task": jnp.zeros((), jnp.int32)}
        return Task(
            support=examples(self.most_support), query=examples(self.queries), info=info
        )

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner."""
        del learner, evaluating
        network = models.FieldMLP(
            fields=tuple((values, places) for values, places in record["fields"]),
            dim=self.dim,
            widths=self.widths,
            offset=record["offset"],
            dropout=self.dropout,
        )
        return {"model": from_linen(network), "loss_fn": losses.mse}

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of the ratings of three test users and their predictions."""
        panels = []
        for number in range(3):
            task = predictor.task(number)
            given = np.asarray(task.support.y)[np.asarray(task.support.mask), 0]
            before = predictor.before(task, task.query.x)
            panels.append(
                pictures.RatingPanel(
                    given=given,
                    truth=np.asarray(task.query.y)[:, 0],
                    before=None if before is None else before[:, 0],
                    after=predictor.after(task, task.query.x)[:, 0],
                )
            )
        title = f"Three test users of {record['name']} ({predictor.learner})"
        pictures.ratings(path, panels, data.ratings.limits, title=title)
