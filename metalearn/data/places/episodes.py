"""Tasks of areas: which place is next, of one place visited and others that were not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Array, Key, PyTree
from metalearn.data import arguments
from metalearn.data.places.tables import MOST_KM2, QUERY, RECORDS, SUPPORT, Area, padded

LONGEST = RECORDS - 1  # records before the last one


def place_tasks(
    areas: Sequence[Area],
    *,
    num_users: int | None = None,
    returns: bool = False,
    name: str = "places",
) -> TaskSampler:
    """Tasks of areas, of some users each time, or of all of them.

    An example is a choice among K places, the first of which was visited. Inputs are

    - `history`: records before, each with `vector` `[N, 9, D]`, `category` `[N, 9]`, `hour`
      `[N, 9]`, `numbers` `[N, 9, 2]` (squared distance, time since the record before);
    - `seen`: mask of the records that there are, bool `[N, 9]`;
    - `candidates`: the same for the places `[N, K, ...]`;
    - `returns`, where asked for: mask of the records of the history at each of these
      places, bool `[N, K, 9]`.

    Targets are 1 for the place that was visited and 0 for the others, float `[N, K]`. The
    support set has two examples a user and the query set three later ones.

    Args:
      areas: The areas.
      num_users: Users of a task, K being 2 with another place drawn each time. With None a
        task has all users, and queries are ranked among the places that the area has for
        that: what areas are judged on.
      returns: Whether inputs have the mask `returns`.
      name: Name in logs and results.

    Returns:
      A sampler. `info` holds `area`, the number of the area, and `query_user` `[Q]`. With
      users to draw, `sampler.sample.planned(data, plan, key)` draws what a plan of
      `metalearn.algorithms.gradient.chaml` asks for; with all, `sampler.sample` has
      `num_tasks` and `one`, as `ml.tasks.in_order` asks.

    Raises:
      TypeError: the areas are something else.
      ValueError: there is no area, or one has fewer users than asked.
    """
    arguments.records("areas", areas, Area, "areas_of(...)")
    if not len(areas):
        raise ValueError(f"{name} has no area; expected one or more.")
    data = padded(areas)
    most = int(data["users"].max())
    on_device = {key: jnp.asarray(value) for key, value in data.items()}
    if num_users is None:
        return TaskSampler(AllUsers(len(areas), most, returns), on_device, name)
    arguments.count("num_users", num_users, least=1)
    few = [area for area in areas if area.num_users < num_users]
    if few:
        raise ValueError(
            f"area {few[0].name!r} has {few[0].num_users} users; expected the {num_users} "
            "of a task or more. Ask for fewer users."
        )
    sample = SomeUsers(len(areas), most, int(num_users), returns)
    return TaskSampler(sample, on_device, name)


@dataclasses.dataclass(frozen=True)
class SomeUsers:
    """Function `(data, key) -> Task`. Equal settings are equal, to share compilations.

    Attributes:
      num_areas: Number of areas.
      most_users: Number of users of the largest.
      num_users: Users of a task.
      returns: Whether inputs have the mask `returns`.
    """

    num_areas: int
    most_users: int
    num_users: int
    returns: bool = False

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_area, k_users, k_rows = jax.random.split(key, 3)
        number = jax.random.randint(k_area, (), 0, self.num_areas)
        plan = {
            "areas": jax.nn.one_hot(number, self.num_areas),
            "users": jax.random.uniform(k_users, (self.most_users,)),
        }
        return self.planned(data, plan, k_rows)

    def planned(self, data: PyTree, plan: dict[str, Array], key: Key) -> Task:
        """A task of the area, and of its users, that are wanted most.

        Args:
          data: Arrays of the areas.
          plan: How much each area and each user of it is wanted, `areas` `[C]` and
            `users` `[U]`.
          key: Key that draws the other places.

        Raises:
          ValueError: the plan is of other areas, or of other users than there are.
        """
        shapes = plan["areas"].shape, plan["users"].shape
        if shapes != ((self.num_areas,), (self.most_users,)):
            raise ValueError(
                f"a plan is of {shapes[0][-1]} areas of up to {shapes[1][-1]} users, and "
                f"there are {self.num_areas} of up to {self.most_users}; expected "
                f"ml.Pool(areas={self.num_areas}, users={self.most_users})."
            )
        area = jnp.argmax(plan["areas"]).astype(jnp.int32)
        there = jnp.arange(self.most_users) < data["users"][area]
        wanted = jnp.where(there, plan["users"], -jnp.inf)
        users = jax.lax.top_k(wanted, self.num_users)[1]
        others = _drawn(data, area, users, key, len(SUPPORT) + len(QUERY))
        mask = jnp.ones((self.num_users,), bool)
        own = _of_users(data, area, users)
        shown = len(SUPPORT)
        return Task(
            support=_examples(own, SUPPORT, others[:, :shown, None], mask, self.returns),
            query=_examples(own, QUERY, others[:, shown:, None], mask, self.returns),
            info={"area": area, "query_user": jnp.repeat(users, len(QUERY))},
        )


@dataclasses.dataclass(frozen=True)
class AllUsers:
    """Function `(data, key) -> Task` of all users of an area.

    Attributes:
      num_tasks: Number of areas.
      most_users: Number of users of the largest.
      returns: Whether inputs have the mask `returns`.
    """

    num_tasks: int
    most_users: int
    returns: bool = False

    def __call__(self, data: PyTree, key: Key) -> Task:
        k_area, k_rows = jax.random.split(key)
        return self.one(data, jax.random.randint(k_area, (), 0, self.num_tasks), k_rows)

    def one(self, data: PyTree, number: Array, key: Key) -> Task:
        """The task of the area of that number; the key draws the support set's places."""
        users = jnp.arange(self.most_users)
        mask = users < data["users"][number]
        own = _of_users(data, number, users)
        others = _drawn(data, number, users, key, len(SUPPORT))
        return Task(
            support=_examples(own, SUPPORT, others[..., None], mask, self.returns),
            query=_examples(own, QUERY, data["ranked"][number], mask, self.returns),
            info={
                "area": jnp.asarray(number, jnp.int32),
                "query_user": jnp.repeat(users, len(QUERY)),
            },
        )


def _drawn(data: PyTree, area: Array, users: Array, key: Key, num: int) -> Array:
    """Places that the users never visited, int32 `[U, num]`."""
    count = data["free_count"][area, users]
    draws = jax.random.uniform(key, (*users.shape, num), jnp.float32)
    place = (draws * count[:, None].astype(jnp.float32)).astype(jnp.int32)
    place = jnp.minimum(place, count[:, None] - 1)
    return jnp.take_along_axis(data["free"][area, users], place, axis=1)


def _of_users(data: PyTree, area: Array, users: Array) -> dict[str, Array]:
    """Records of the users, and the places of the area."""
    records = {name: data[name][area, users] for name in ("place", "hour", "gap")}
    names = ("category", "vector", "where", "spread")
    return {**records, **{name: data[name][area] for name in names}}


def _examples(
    own: Mapping[str, Array],
    records: tuple[int, ...],
    others: Array,
    mask: Array,
    with_returns: bool,
) -> Examples:
    """Choices at some records of every user, `[U * len(records), ...]`.

    Args:
      own: Records `[U, 10]` and places `[P, ...]`.
      records: Numbers of the records that are predicted.
      others: Places beside the right one, `[U, len(records), K - 1]`.
      mask: Mask of the users that there are, bool `[U]`.
      with_returns: Whether inputs have the mask `returns`.
    """
    num, at = mask.shape[0], np.asarray(records)
    place, when = own["place"], len(records)

    def each(values: Array) -> Array:
        """The same for each record that is predicted, `[U, len(records), ...]`."""
        shape = (num, when, *values.shape[1:])
        return jnp.broadcast_to(values[:, None], shape)

    # The first record has nothing before it, and the mean distance.
    before = jnp.concatenate([place[:, :1], place[:, :-1]], axis=1)
    near = _distance(own, before, place)
    near = jnp.where(np.arange(RECORDS)[None] == 0, 0, near)
    numbers = jnp.stack([near, own["gap"]], axis=-1)[:, :LONGEST]
    past = place[:, :LONGEST]
    history = {
        "vector": each(own["vector"][past]),
        "category": each(own["category"][past]),
        "hour": each(own["hour"][:, :LONGEST]),
        "numbers": each(numbers),
    }
    right = place[:, at]
    places = jnp.concatenate([right[..., None], others], axis=-1)
    here = jnp.broadcast_to(place[:, at - 1][..., None], places.shape)
    gap = jnp.broadcast_to(own["gap"][:, at][..., None], places.shape)
    candidates = {
        "vector": own["vector"][places],
        "category": own["category"][places],
        "hour": jnp.broadcast_to(own["hour"][:, at][..., None], places.shape),
        "numbers": jnp.stack([_distance(own, here, places), gap], axis=-1),
    }
    seen = jnp.broadcast_to(
        np.arange(LONGEST)[None, None] < at[None, :, None], (num, when, LONGEST)
    )
    y = jnp.broadcast_to(jnp.arange(places.shape[-1]) == 0, places.shape)
    x = {"history": history, "seen": seen, "candidates": candidates}
    if with_returns:
        # By number: places that nobody visited earlier have one vector.
        x["returns"] = (places[..., None] == past[:, None, None]) & seen[:, :, None]
    x, y = jax.tree.map(lambda leaf: leaf.reshape(num * when, *leaf.shape[2:]), (x, y))
    return Examples(x=x, y=y.astype(jnp.float32), mask=jnp.repeat(mask, when))


def _distance(own: Mapping[str, Array], a: Array, b: Array) -> Array:
    """Squared distance of places, standardised."""
    squares = jnp.square(own["where"][a] - own["where"][b]).sum(-1)
    mean, size = own["spread"][0], own["spread"][1]
    return (jnp.minimum(squares, MOST_KM2) - mean) / size
