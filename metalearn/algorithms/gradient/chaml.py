"""CHAML: MAML that chooses its tasks, hard areas and users again, from easy to hard.

Y. Chen, X. Wang, M. Fan, J. Huang, S. Yang, W. Zhu. Curriculum Meta-Learning for Next POI
Recommendation. KDD 2021. A round has two outer steps on the same areas, which the paper
calls cities. The first has the hardest areas of the round before and others of the pool,
with users at random; the second has the hardest users of the first, and new ones. The pool
grows from the easiest areas to all.

Differences:

- The outer gradient is of second order, as the paper has it. The released code takes inner
  gradients without a graph, which makes it of first order.
- The released code has no curriculum: its order of areas is the one they are numbered in.
- Hardness is measured without noise; the released code leaves dropout on.
- The hardest areas are those after the second step of a round, whose users were chosen.
- Without hardness, areas are drawn anew at every step, all different, as in plain MAML.
- Training of the user's own, with other tasks at a step, is plain MAML: only `fit` asks for
  the plan.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from metalearn.algorithms.bilevel import AdaptedTask, Hooks, bilevel, last_step
from metalearn.algorithms.options import Options, takes_options
from metalearn.core import checks, labels
from metalearn.core.estimators import gathered
from metalearn.core.learner import Estimate, MetaLearner
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, InnerOpt, Key, LossFn, PyTree

UNSEEN = -1.0  # accuracy of areas and users that were not in the last step
RIGHT = "right"


class Pool(NamedTuple):
    """The areas that tasks come from.

    Attributes:
      areas: Number of areas C.
      users: Number of users of the largest area.
      order: Numbers of the areas from easy to hard, each once; as they are numbered if
        None.
    """

    areas: int
    users: int
    order: tuple[int, ...] | None = None


@takes_options()
def chaml(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    pool: Pool | None = None,
    num_steps: int = 1,
    hardness: bool = True,
    curriculum: bool = True,
    hard_areas: float = 0.5,
    hard_users: float = 0.5,
    easy_share: float = 0.5,
    easy_steps: int = 500,
    **options: Unpack[Options],
) -> MetaLearner:
    """MAML whose next tasks depend on how hard the last ones were, from easy to hard.

    The gradient is that of `maml`. What is new is `MetaLearner.plan`, the areas and users
    of the next outer step, which `fit` asks for. Accuracies after adaptation are measured
    on the queries of each step, by `task.info["area"]`, the number of the area, and
    `task.info["query_user"]` `[Q]`, the number of a user within it.

    Args:
      model: The network, such as `ml.models.InterestNetwork`.
      loss_fn: Loss of one task, `ml.losses.binary_cross_entropy` in the paper.
      inner_opt: As in `maml`; SGD in the paper.
      pool: Areas and users that are chosen from, as many as the sampler has, which
        refuses others. Without a pool nothing is chosen, which is MAML, and no option
        below but those of MAML has an effect.
      num_steps: K, inner steps; the paper uses 1.
      hardness: Whether hard areas and users come again; a round of two steps then has the
        same areas.
      curriculum: Whether training begins on the easiest areas.
      hard_areas: Share of the areas of a round that are the hardest of the round before,
        0..1; of `hardness` alone.
      hard_users: Share of the users of the second step that are the hardest of the first,
        0..1; of `hardness` alone.
      easy_share: Share of the areas that training begins on, above 0 and up to 1; rounded
        up to whole areas. With all of them `easy_steps` changes nothing. Of `curriculum`
        alone.
      easy_steps: Number of outer steps on them; half of all in the paper. Of `curriculum`
        alone.
      **options: See `metalearn.algorithms.options.Options`.

    Returns:
      A `MetaLearner` as `maml` gives it. Its state has `hardness` as well: accuracies of
      the last step, `areas` `[C]` and `users` `[C, U]`, -1 where there are none.

    Raises:
      TypeError: an unknown option, or `pool` is no `Pool`.
      ValueError: an option is out of range, or given where nothing reads it; in training:
        there are fewer areas to begin with than tasks of a step.

    Example:
      >>> learner = ml.chaml(model, ml.losses.binary_cross_entropy, optax.sgd(0.1),
      ...                    pool=ml.Pool(areas=24, users=300), easy_steps=500)
    """
    for name, share in (("hard_areas", hard_areas), ("hard_users", hard_users)):
        _check_share(name, share)
    _check_share("easy_share", easy_share, positive=True)
    checks.whole_number("easy_steps", easy_steps, least=0)
    if not hardness:
        idle = {"hard_areas": hard_areas, "hard_users": hard_users}
        checks.unread(chaml, idle, "hardness=True")
    if not curriculum:
        idle = {"easy_share": easy_share, "easy_steps": easy_steps}
        checks.unread(chaml, idle, "curriculum=True")
    elif not easy_steps:
        checks.unread(chaml, {"easy_share": easy_share}, "easy_steps above 0")
    settings = {
        **{"hardness": hardness, "curriculum": curriculum, "easy_steps": easy_steps},
        **{"hard_areas": hard_areas, "hard_users": hard_users, "easy_share": easy_share},
    }
    made = bilevel(
        "chaml",
        model,
        loss_fn,
        inner_opt,
        num_steps=num_steps,
        hooks=Hooks(outer=_measured if hardness else last_step, settings=settings),
        **options,
    )
    if pool is None:
        return made._replace(estimate=_unmeasured(made))
    _check_pool(pool)
    schedule = Schedule(
        pool=pool,
        hardness=hardness,
        curriculum=curriculum,
        hard_areas=hard_areas,
        hard_users=hard_users,
        easy_share=easy_share,
        easy_steps=easy_steps,
    )

    def init(key: Key, task: Task) -> Variables:
        found = made.init(key, task)
        none = {"areas": (pool.areas,), "users": (pool.areas, pool.users)}
        unseen = {name: jnp.full(s, UNSEEN, jnp.float32) for name, s in none.items()}
        return Variables(params=found.params, state={**found.state, "hardness": unseen})

    def estimate(variables: Variables, tasks: Task, *, key: Key) -> Estimate:
        state = {k: v for k, v in variables.state.items() if k != "hardness"}
        inner = Variables(params=variables.params, state=state)
        found = made.estimate(inner, tasks, key=key)
        metrics, hard = dict(found.metrics), variables.state["hardness"]
        if hardness:
            measured = (metrics.pop(RIGHT), tasks.query.mask, tasks.info)
            hard = accuracies(pool, *gathered(measured))
        return Estimate(
            grads=found.grads, state={**found.state, "hardness": hard}, metrics=metrics
        )

    def plan(variables: Variables, num: int, *, key: Key) -> dict[str, Array]:
        return schedule.tasks(variables.state, num, key)

    return made._replace(init=init, estimate=estimate, plan=plan)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which areas and users the next outer step has; see `chaml` for the fields."""

    pool: Pool
    hardness: bool
    curriculum: bool
    hard_areas: float
    hard_users: float
    easy_share: float
    easy_steps: int

    def tasks(self, state: PyTree, num: int, key: Key) -> dict[str, Array]:
        """The plan of a step.

        Args:
          state: State of the learner.
          num: T, tasks of the step.
          key: Consumed.

        Returns:
          How much each area and each user of it is wanted: `areas`, float `[T, C]`, 1 for
          one area of each task, all different, and `users`, float `[T, U]`.

        Raises:
          ValueError: the pool has fewer areas than there are tasks.
        """
        k_areas, k_users = jax.random.split(key)
        draws = jax.random.uniform(k_areas, (self.pool.areas,))
        allowed, is_second = self.allowed(state["step"], num), state["step"] % 2 == 1
        fresh = jnp.where(allowed, draws, -1)
        wishes = fresh
        if self.hardness:
            accuracy = state["hardness"]["areas"]
            before = accuracy >= 0
            first = self._first(accuracy, before, allowed, draws, num)
            # The second step of a round has the areas of the first.
            wishes = jnp.where(is_second, jnp.where(before, 2 + draws, fresh), first)
        areas = jax.lax.top_k(wishes, num)[1]
        users = jax.random.uniform(k_users, (num, self.pool.users))
        if self.hardness:
            accuracy = state["hardness"]["users"][areas]
            users = jnp.where(is_second, self._second(accuracy, users), users)
        return {"areas": jax.nn.one_hot(areas, self.pool.areas), "users": users}

    def allowed(self, step: Array, num: int) -> Array:
        """Mask of the areas in the pool at a step, bool `[C]`."""
        total = self.pool.areas
        easy = math.ceil(round(self.easy_share * total, 9)) if self.curriculum else total
        least = min(easy, total) if self.easy_steps else total
        if num > least:
            raise ValueError(
                f"a step has {num} tasks, each of another area, and the curriculum "
                f"begins with {least} of {total} areas; expected as many or more. Give "
                "fewer tasks to a step, or raise easy_share."
            )
        if not self.curriculum:
            return jnp.ones((total,), bool)
        order = range(total) if self.pool.order is None else self.pool.order
        # The place of each area in the order.
        place = jnp.argsort(jnp.array(tuple(order), jnp.int32))
        return (place < easy) | (step >= self.easy_steps)

    def _first(
        self, accuracy: Array, before: Array, allowed: Array, draws: Array, num: int
    ) -> Array:
        """How much each area is wanted in the first step of a round, `[C]`."""
        num_hard = int(self.hard_areas * num)
        hard = _lowest(accuracy, before, draws, num_hard)
        others = allowed & ~before
        # In the paper, too few others mean that all areas are drawn anew.
        enough = (others.sum() >= num - num_hard) & (before.sum() >= num_hard)
        wishes = jnp.where(hard, 2 + draws, jnp.where(others, draws, -1))
        return jnp.where(enough, wishes, jnp.where(allowed, draws, -1))

    def _second(self, accuracy: Array, draws: Array) -> Array:
        """How much each user is wanted in the second step: hard, new, others, `[T, U]`."""
        shown = accuracy >= 0
        num_hard = jnp.floor(self.hard_users * shown.sum(1)).astype(jnp.int32)
        hard = jax.vmap(_lowest)(accuracy, shown, draws, num_hard)
        # Those of the first step come again only where the area has no others.
        return draws + jnp.where(hard, 2, jnp.where(shown, 0, 1)).astype(draws.dtype)


def accuracies(
    pool: Pool, right: Array, mask: Array, info: dict[str, Array]
) -> dict[str, Array]:
    """Accuracy of each area and user that a step has queries of, `UNSEEN` of the others.

    Args:
      pool: The areas.
      right: Share of each query that is right, `[T, Q]`.
      mask: Mask of the valid queries, bool `[T, Q]`.
      info: `area` `[T]` and `query_user` `[T, Q]`; without them nothing is known.

    Returns:
      `areas` `[C]` and `users` `[C, U]`, float32.
    """
    shape = (pool.areas, pool.users)
    if not {"area", "query_user"} <= info.keys():
        nothing = jnp.full(shape, UNSEEN, jnp.float32)
        return {"areas": nothing[:, 0], "users": nothing}
    where = (jnp.broadcast_to(info["area"][:, None], mask.shape), info["query_user"])
    weight = mask.astype(jnp.float32)
    zeros = jnp.zeros(shape, jnp.float32)
    total = zeros.at[where].add(weight * right.astype(jnp.float32))
    count = zeros.at[where].add(weight)
    return {
        "areas": _share(total.sum(1), count.sum(1)),
        "users": _share(total, count),
    }


def right_of(outputs: Array, examples: Examples) -> Array:
    """Share of each example that is right, `[N]`.

    Integer targets are classes of the largest logit. Others are yes or no, and a logit
    above 0 says yes; of several of an example it is the mean.
    """
    if labels.is_classes(examples.y):
        found = jnp.argmax(outputs, axis=-1) == examples.y
    else:
        found = (outputs > 0) == (examples.y > 0.5)
    share = found.astype(jnp.float32)
    return share.reshape(share.shape[0], -1).mean(1)


def _measured(done: AdaptedTask, loss_fn: LossFn) -> tuple[Array, dict, PyTree]:
    """The objective of MAML, and which queries are right without the noise of training."""
    loss, report, state = last_step(done, loss_fn)
    query = done.task.query
    outputs, _ = done.predict(done.adapted, query.x, train=False, mask=query.mask)
    return loss, {**report, RIGHT: right_of(outputs, query)}, state


def _unmeasured(made: MetaLearner):
    """The estimate without what a plan would need."""

    def estimate(variables: Variables, tasks: Task, *, key: Key) -> Estimate:
        found = made.estimate(variables, tasks, key=key)
        metrics = {k: v for k, v in found.metrics.items() if k != RIGHT}
        return Estimate(grads=found.grads, state=found.state, metrics=metrics)

    return estimate


def _lowest(values: Array, among: Array, draws: Array, num: Array | int) -> Array:
    """Mask of the `num` lowest values among those of a mask, ties at random, bool `[N]`."""
    ordered = jnp.where(among, values, jnp.inf)
    places = jnp.argsort(jnp.lexsort((draws, ordered)))
    return among & (places < num)


def _share(total: Array, count: Array) -> Array:
    return jnp.where(count > 0, total / jnp.maximum(count, 1), UNSEEN)


def _check_share(name: str, value: float, *, positive: bool = False) -> None:
    checks.number(name, value, positive=positive)
    if value > 1:
        raise ValueError(f"{name} is {value}; expected a share of at most 1.")


def _check_pool(pool: Pool) -> None:
    if not isinstance(pool, Pool):
        raise TypeError(
            f"pool is a {type(pool).__name__}; expected ml.Pool(areas=..., users=...)."
        )
    checks.whole_number("areas of the pool", pool.areas, least=1)
    checks.whole_number("users of the pool", pool.users, least=1)
    if pool.order is not None and sorted(map(int, pool.order)) != list(range(pool.areas)):
        raise ValueError(
            f"the order of the pool is {pool.order}; expected the numbers 0 to "
            f"{pool.areas - 1}, each once."
        )
