"""Navigation in the plane, towards a goal that no observation shows."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds
from metalearn.core.types import Array, Key
from metalearn.environments.chain import Chain
from metalearn.environments.environment import (
    Continuous,
    Environment,
    Info,
    clipped,
)

GoalTask = dict[str, Array]
NEAR = 0.01
CORNER = 2.0


class Point(NamedTuple):
    """State of an episode.

    Attributes:
      position: Position, float32 `[2]`.
      steps: Number of steps so far, int32.
    """

    position: Array
    steps: Array


def navigation(horizon: int = 100) -> Environment:
    """Navigation of a point from the origin to a goal in the square of side 1 around it.

    This is the family of C. Finn, P. Abbeel, S. Levine, Model-Agnostic Meta-Learning for
    Fast Adaptation of Deep Networks, ICML 2017, section 5.3. A task is `{"goal": [2]}`,
    uniform between -0.5 and 0.5. The action is the move, of at most 0.1 in each direction.
    The reward is the negative distance to the goal after the move, and the episode is
    terminated where both coordinates are within 0.01 of it. The observation is the
    position, float32 `[2]`, and `info["distance"]` the distance after the move.

    Args:
      horizon: Most steps of an episode, after which it is truncated.

    Returns:
      An environment.

    Raises:
      ValueError: `horizon` is no integer of 1 or more.

    Example:
      >>> from metalearn.environments import navigation
      >>> navigation().actions
      Continuous(size=2, bound=0.1)
    """
    return _navigation(kinds.count("horizon", horizon))


def corner_point(sparse: bool = True, horizon: int = 100) -> Environment:
    """Navigation to one of four corners, by rewards that only exploration finds.

    This is the family of J. Rothfuss, D. Lee, I. Clavera, T. Asfour, P. Abbeel, ProMP:
    Proximal Meta-Policy Search, ICLR 2019, section 6. A task is `{"goal": [2]}`, one of
    (+-2, +-2) with equal chances. The point starts uniformly within 0.2 of the origin in
    each coordinate, and the action is the move, of at most 0.2 in each direction.

    The sparse reward is 0 where the sum of absolute coordinates after the move is below
    0.5. Beyond it is the progress, the distance to the goal before the move less the one
    after it, if no corner is nearer than the goal, and 0 otherwise. The dense reward is the
    negative distance to the goal after the move. No episode is terminated. The observation
    is the position, float32 `[2]`, and `info["distance"]` the distance after the move.

    Args:
      sparse: Whether the reward is the sparse one.
      horizon: Number of steps of an episode, after which it is truncated.

    Returns:
      An environment.

    Raises:
      TypeError: `sparse` is neither True nor False.
      ValueError: `horizon` is no integer of 1 or more.

    Example:
      >>> from metalearn.environments import corner_point
      >>> corner_point(sparse=False).name
      'corner-point-dense-100steps'
    """
    kinds.flag("sparse", sparse)
    return _corner_point(sparse, kinds.count("horizon", horizon))


def rotating_goal(
    episodes: int = 7,
    angles: Sequence[float] = (-math.pi / 4, math.pi / 4),
    radius: float = 0.5,
    horizon: int = 100,
) -> Chain:
    """Chains of navigation whose goal turns around the origin by the same angle each time.

    Where the goal will be next follows from where it was twice, so that a learner may
    anticipate. The setting is that of M. Al-Shedivat, T. Bansal, Y. Burda, I. Sutskever, I.
    Mordatch, P. Abbeel, Continuous Adaptation via Meta-Learning in Nonstationary and
    Competitive Environments, ICLR 2018; the family is a small one of its kind, and is not
    from the paper.

    Args:
      episodes: Number of episodes of a chain, 2 or more.
      angles: Least and largest angle in radians by which the goal turns from an episode to
        the next. The angle of a chain is uniform in between; positive ones turn from the
        first axis towards the second.
      radius: Distance of the goal from the origin, above 0.
      horizon: Most steps of an episode, see `navigation`.

    Returns:
      A chain. Its tasks are `{"goal": [episodes, 2]}` of `navigation(horizon)`; the first
      goal is uniform on the circle.

    Raises:
      ValueError: a count is too small, `radius` is no number above 0, or `angles` are not
        two numbers of which the first is at most the second.

    Example:
      >>> from metalearn.environments import rotating_goal
      >>> rotating_goal(episodes=3).tasks(jax.random.key(0))["goal"].shape
      (3, 2)
    """
    episodes = kinds.count("episodes", episodes, least=2)
    horizon = kinds.count("horizon", horizon)
    checks.number("radius", radius, positive=True)
    bounds = tuple(angles) if isinstance(angles, Sequence) else ()
    for angle in bounds:
        checks.number("an angle of angles", angle, signed=True)
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ValueError(
            f"angles is {angles!r}; expected two numbers, the least and the largest angle "
            "in radians, such as (-0.5, 0.5)."
        )
    low, high = float(bounds[0]), float(bounds[1])
    return _rotating_goal(episodes, low, high, float(radius), horizon)


# Equal settings are the same functions, to share compilations.
@functools.lru_cache
def _navigation(horizon: int) -> Environment:
    actions = Continuous(2, 0.1)

    def task(key: Key) -> GoalTask:
        return {"goal": jax.random.uniform(key, (2,), minval=-0.5, maxval=0.5)}

    def reset(key: Key, task: GoalTask) -> tuple[Array, Point]:
        del key, task
        return jnp.zeros((2,)), Point(jnp.zeros((2,)), jnp.int32(0))

    def step(key: Key, state: Point, action: Array, task: GoalTask):
        del key
        after = Point(state.position + clipped(action, actions), state.steps + 1)
        away = after.position - task["goal"]
        distance = jnp.sqrt(jnp.sum(away**2))
        info: Info = {"distance": distance}
        there = jnp.all(jnp.abs(away) < NEAR)
        return after.position, after, -distance, there, after.steps >= horizon, info

    name = f"navigation-{horizon}steps"
    return Environment(name, task, reset, step, 2, actions, horizon)


@functools.lru_cache
def _corner_point(sparse: bool, horizon: int) -> Environment:
    actions = Continuous(2, 0.2)

    def task(key: Key) -> GoalTask:
        return {"goal": CORNER * jax.random.rademacher(key, (2,), jnp.float32)}

    def reset(key: Key, task: GoalTask) -> tuple[Array, Point]:
        del task
        position = jax.random.uniform(key, (2,), minval=-0.2, maxval=0.2)
        return position, Point(position, jnp.int32(0))

    def away(position: Array, task: GoalTask) -> Array:
        return jnp.sqrt(jnp.sum((position - task["goal"]) ** 2))

    def step(key: Key, state: Point, action: Array, task: GoalTask):
        del key
        after = Point(state.position + clipped(action, actions), state.steps + 1)
        distance = away(after.position, task)
        if sparse:
            # No corner is nearer within the quadrant of the goal. Distances would have to
            # be compared for equality, which rounding may break.
            nearest = jnp.all(after.position * task["goal"] >= 0)
            out = jnp.sum(jnp.abs(after.position)) >= 0.5
            reward = jnp.where(nearest & out, away(state.position, task) - distance, 0.0)
        else:
            reward = -distance
        truncated = after.steps >= horizon
        info: Info = {"distance": distance}
        return after.position, after, reward, jnp.bool_(False), truncated, info

    name = f"corner-point-{'sparse' if sparse else 'dense'}-{horizon}steps"
    return Environment(name, task, reset, step, 2, actions, horizon)


@functools.lru_cache
def _rotating_goal(
    episodes: int, low: float, high: float, radius: float, horizon: int
) -> Chain:
    def tasks(key: Key) -> GoalTask:
        k_first, k_angle = jax.random.split(key)
        first = jax.random.uniform(k_first, (), minval=-math.pi, maxval=math.pi)
        angle = jax.random.uniform(k_angle, (), minval=low, maxval=high)
        at = first + angle * jnp.arange(episodes, dtype=jnp.float32)
        return {"goal": radius * jnp.stack([jnp.cos(at), jnp.sin(at)], -1)}

    name = f"rotating-goal-{episodes}episodes-{low:g}to{high:g}-radius{radius:g}"
    return Chain(_navigation(horizon), tasks, episodes, f"{name}-{horizon}steps")
