"""The next place of a user in a new area, where few users are known."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from metalearn import models
from metalearn.algorithms.gradient import Pool
from metalearn.algorithms.record import parameters
from metalearn.apps.base import DataRecord, Predictor
from metalearn.apps.fits import check_learner
from metalearn.apps.learners import Learner
from metalearn.apps.places import pictures
from metalearn.apps.places.curriculum import easy_to_hard
from metalearn.core import losses, metrics
from metalearn.core.linen import from_linen
from metalearn.core.model import Model
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.data.places import (
    Area,
    Visits,
    areas_of,
    known_categories,
    load_visits,
    place_tasks,
)
from metalearn.data.places.episodes import LONGEST
from metalearn.data.places.tables import QUERY, RECORDS, SUPPORT
from metalearn.training.judgement import Metric

PARTS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class PlaceData:
    """Areas, and which are for what.

    Attributes:
      name: Name of the visits.
      areas: The areas of each part.
      categories: Number of categories, the unknown one included.
      digest: Digest of the visits.
      vocabulary: Digest of what the categories are.
      orders: Orders of the training areas from easy to hard that were found, by the
        settings of the network.
    """

    name: str
    areas: dict[str, list[Area]]
    categories: int
    digest: str
    vocabulary: str
    orders: dict[Any, list[int]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextPlace:
    """The place that a user visits next, in areas that training does not see.

    An area is a task, as a city is in CHAML (Y. Chen et al., KDD 2021). Of each user the
    last ten visits count: two places are predicted in the support set and three later ones
    as queries, from the visits before. In training, beside the right place stands one that
    the user never visited; at validation and test it is ranked among `negatives` such, for
    all users of the area. Vectors of places are of earlier visits, and do not change.

    Attributes:
      dataset: Name of the visits, whose files are in `--data-dir` or in a folder of that
        name there; "own" is visits.csv of yours.
      area_visits: Number of visits that an area has about, where areas are made.
      least_visits: Visits that a place needs.
      least_users: Users with ten visits or more that an area needs.
      most_users: Most users of an area, a draw of all.
      validation_areas: Share of the areas for validation.
      new_areas: Share of the areas for the test.
      split_number: Number of the split of areas, the seed of its draw and of the places
        that are ranked.
      users: Users of a task in training.
      negatives: Places beside which the right one is ranked. Hit rates at more places than
        that would always be 1, and are not reported.
      place_dim: Length of the vectors of places.
      dim: Length of the embeddings of category and hour.
      attention: Units of the layer that weighs the visits before.
      widths: Sizes of the hidden layers.
      dropout: Share of hidden units that training leaves out.
      returns: Whether the network is told which places are in the history itself.
    """

    kind: ClassVar[str] = "places"
    metric: ClassVar[str] = "query/choice_ndcg@10"
    light: ClassVar[bool] = False
    batches: ClassVar[str] = "planned"
    dataset: Literal["foursquare_cities", "foursquare_nyc_geo", "flickr_tours", "own"] = (
        "foursquare_cities"
    )
    area_visits: int = 24_000
    least_visits: int = 10
    least_users: int = 32
    most_users: int = 200
    validation_areas: float = 0.17
    new_areas: float = 0.28
    split_number: int = 1
    users: int = 16
    negatives: int = 100
    place_dim: int = 16
    dim: int = 8
    attention: int = 16
    widths: tuple[int, ...] = (64, 64)
    dropout: float = 0.0
    returns: bool = False

    @property
    def measures(self) -> Mapping[str, Metric]:
        """Metrics of the ranking, without hit rates that every order has."""
        own = {
            f"query/hit_rate@{at}": metrics.hit_rate(at)
            for at in (5, 10)
            if at <= self.negatives
        }
        gains = {f"query/choice_ndcg@{at}": metrics.choice_ndcg(at) for at in (5, 10)}
        return {**own, **gains}

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
        if self.place_dim < 2:
            raise ValueError(f"app.place_dim is {self.place_dim}; expected 2 or more.")
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"app.dropout is {self.dropout}; expected a share from 0 to below 1."
            )
        if self.area_visits < RECORDS * self.least_users:
            raise ValueError(
                f"app.area_visits is {self.area_visits}, and app.least_users is "
                f"{self.least_users}, of whom each has {RECORDS} visits; expected "
                f"{RECORDS * self.least_users} or more visits of an area."
            )
        if not self.users <= self.least_users <= self.most_users:
            raise ValueError(
                f"app.users is {self.users}, app.least_users is {self.least_users} and "
                f"app.most_users is {self.most_users}; expected them in this order."
            )
        shares = (self.validation_areas, self.new_areas)
        if min(shares) <= 0 or sum(shares) >= 1:
            raise ValueError(
                f"app.validation_areas and app.new_areas are {shares}; expected shares "
                "above 0, of a sum below 1."
            )
        small = {"categories": 1, "order": [0, 1, 2, 3], "most_users": 2}
        check_learner(self, learner, small, "a network of places")

    def load(self, data_dir: str | None, parts: tuple[str, ...] = ()) -> PlaceData:
        """The visits as areas, with their split.

        Raises:
          FileNotFoundError: a file is missing.
          ValueError: see `metalearn.data.places.load_visits` and `areas_of`, or there are
            too few areas for the parts.
        """
        del parts
        return self.data_of(load_visits(self.dataset, data_dir))

    def data_of(self, visits: Visits) -> PlaceData:
        """The same of visits that are there already, such as of `visit_table`."""
        areas = areas_of(
            visits,
            area_visits=self.area_visits,
            least_visits=self.least_visits,
            least_users=self.least_users,
            most_users=self.most_users,
            negatives=self.negatives,
            dim=self.place_dim,
            seed=self.split_number,
        )
        counts = [round(share * len(areas)) for share in self._shares()]
        counts = [len(areas) - sum(counts), *counts]
        if counts[0] < 1 or min(counts[1:]) < 2:
            raise ValueError(
                f"{visits.name} has {len(areas)} areas: {counts[0]} for training, "
                f"{counts[1]} for validation and {counts[2]} for the test; expected 1, 2 "
                "and 2 or more. Ask for smaller areas (--app.area-visits) or other shares "
                "(--app.validation-areas, --app.new-areas)."
            )
        order = np.random.default_rng(self.split_number).permutation(len(areas))
        ends = np.cumsum(counts)
        chosen = [np.sort(part) for part in np.split(order, ends[:-1])]
        of = {p: [areas[i] for i in c] for p, c in zip(PARTS, chosen, strict=True)}
        num = len(visits.categories) + 1
        # What training does not see is unknown in the other areas.
        for part in PARTS[1:]:
            of[part], _ = known_categories(of["train"], of[part], num)
        return PlaceData(
            name=visits.name,
            areas=of,
            categories=num,
            digest=visits.digest[:16],
            vocabulary=hashlib.sha256(repr(visits.categories).encode()).hexdigest(),
        )

    def _shares(self) -> tuple[float, float]:
        return self.validation_areas, self.new_areas

    def describe(self, data: PlaceData) -> DataRecord:
        """Description of the areas, without their order, see `ordered`."""
        num = {part: len(found) for part, found in data.areas.items()}
        users = {p: sum(a.num_users for a in found) for p, found in data.areas.items()}
        told = ", ".join(f"{part} {num[part]} ({users[part]:,} users)" for part in PARTS)
        return {
            "name": data.name,
            "about": f"areas: {told}",
            "categories": data.categories,
            "vocabulary": data.vocabulary[:16],
            "areas": num["train"],
            "most_users": max(a.num_users for a in data.areas["train"]),
            "parts": {part: {"sha256": data.digest} for part in PARTS},
        }

    def ordered(
        self, learner: Learner, data: PlaceData | None, record: DataRecord
    ) -> DataRecord:
        """The description with the training areas from easy to hard, if the learner asks.

        Networks of each area are trained for it, so a learner that does not begin on easy
        areas has none. Without data the order is that of the numbers, for shapes.
        """
        if "order" in record or not _begins_easy(learner):
            return record
        if data is None:
            return {**record, "order": list(range(record["areas"]))}
        return {**record, "order": self._order(data, record)}

    def _order(self, data: PlaceData, record: DataRecord) -> list[int]:
        """Numbers of the training areas from easy to hard."""
        key = (self.users, *self._settings())
        found = data.orders
        if key not in found:  # the data of a run are described several times
            tasks = self.tasks(data, "train")
            loss_fn = losses.binary_cross_entropy
            found[key] = easy_to_hard(self._model(record), loss_fn, tasks)[0]
        return found[key]

    def tasks(self, data: PlaceData, part: str) -> TaskSampler:
        """Tasks of "train", "validation" or "test"."""
        users = self.users if part == "train" else None
        title = {"train": "base areas", "validation": "validation areas"}
        name = f"{data.name} {title.get(part, 'new areas')}"
        areas, told = data.areas[part], self.returns
        return place_tasks(areas, num_users=users, returns=told, name=name)

    def example(self, record: DataRecord) -> Task:
        """A training task of zeros, for shapes."""
        del record

        def records(num: int, places: int) -> dict[str, Any]:
            shape = (num, places)
            return {
                "vector": jnp.zeros((*shape, self.place_dim), jnp.float32),
                "category": jnp.zeros(shape, jnp.int32),
                "hour": jnp.zeros(shape, jnp.int32),
                "numbers": jnp.zeros((*shape, 2), jnp.float32),
            }

        def examples(each: int) -> Examples:
            num = self.users * each
            x = {
                "history": records(num, LONGEST),
                "seen": jnp.ones((num, LONGEST), bool),
                "candidates": records(num, 2),
            }
            if self.returns:
                x["returns"] = jnp.zeros((num, 2, LONGEST), bool)
            y = jnp.broadcast_to(jnp.arange(2) == 0, (num, 2)).astype(jnp.float32)
            return Examples.of(x, y)

        info = {
            "area": jnp.zeros((), jnp.int32),
            "query_user": jnp.zeros((self.users * len(QUERY),), jnp.int32),
        }
        return Task(support=examples(len(SUPPORT)), query=examples(len(QUERY)), info=info)

    def offers(
        self, learner: Learner, record: DataRecord, *, evaluating: bool
    ) -> dict[str, Any]:
        """Arguments for the constructor of a learner.

        Raises:
          ValueError: the description has no order of areas, and the learner begins on the
            easiest.
        """
        order = record.get("order")
        if order is None and not evaluating and _begins_easy(learner):
            raise ValueError(
                f"{learner.name} begins on easy areas, and the description of "
                f"{record['name']} has no order of areas; expected that of "
                "Recipe.describe(data), or learner.curriculum=False."
            )
        # Runs that were stored before have an order, and not the number of areas.
        num = record["areas"] if order is None else len(order)
        pool = Pool(num, record["most_users"], None if order is None else tuple(order))
        return {
            "model": self._model(record),
            "loss_fn": losses.binary_cross_entropy,
            "pool": pool,
        }

    def _model(self, record: DataRecord) -> Model:
        return _network(record["categories"], *self._settings())

    def _settings(self) -> tuple[Any, ...]:
        return self.dim, self.attention, self.widths, self.dropout, self.returns

    def draw(self, path: Path, record: DataRecord, data: Any, predictor: Predictor) -> None:
        """Writes a picture of the places of right answers in three new areas."""
        panels = []
        for number in range(min(3, len(data.areas["test"]))):
            task = predictor.task(number)
            before = predictor.before(task, task.query.x)
            after = predictor.after(task, task.query.x)
            panels.append(
                pictures.RankPanel(
                    name=data.areas["test"][int(task.info["area"])].name,
                    mask=np.asarray(task.query.mask),
                    before=None if before is None else np.asarray(before),
                    after=np.asarray(after),
                )
            )
        title = f"New areas of {record['name']} ({predictor.learner})"
        pictures.ranks(path, panels, title=title)


def _begins_easy(learner: Learner) -> bool:
    """Whether a learner reads the order of areas."""
    if "pool" not in parameters(learner.record.build):
        return False
    return bool(getattr(learner, "curriculum", True) and getattr(learner, "easy_steps", 1))


@functools.lru_cache(maxsize=64)
def _network(
    categories: int,
    dim: int,
    attention: int,
    widths: tuple[int, ...],
    dropout: float,
    returns: bool,
) -> Model:
    return from_linen(
        models.InterestNetwork(
            categories=categories,
            dim=dim,
            attention=attention,
            widths=widths,
            dropout=dropout,
            returns=returns,
        )
    )
