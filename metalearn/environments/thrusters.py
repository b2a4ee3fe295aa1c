"""A point with four thrusters, of which two fail from episode to episode."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import checks, kinds
from metalearn.core.types import Array, Key
from metalearn.environments.chain import Chain
from metalearn.environments.environment import (
    Continuous,
    Environment,
    Info,
    clipped,
)

ThrusterTask = dict[str, Array]
Pair = tuple[int, int]

# Each thruster is in two pairs to train on and in one to test with.
TRAIN_PAIRS: tuple[Pair, ...] = ((0, 1), (2, 3), (0, 2), (1, 3))
TEST_PAIRS: tuple[Pair, ...] = ((0, 3), (1, 2))

DIRECTIONS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)


class Flight(NamedTuple):
    """State of an episode.

    Attributes:
      position: Position, float32 `[2]`.
      velocity: Velocity, float32 `[2]`.
      steps: Number of steps so far, int32.
    """

    position: Array
    velocity: Array
    steps: Array


def drift_point(
    horizon: int = 50, *, dt: float = 0.1, drag: float = 1.0, show_goal: bool = True
) -> Environment:
    """A point with four thrusters of unknown gains, which has to reach and hold a goal.

    The thrusters push along +x, -x, +y and -y. A task is `{"gains": [4], "goal": [2]}`: the
    gains are uniform between 0 and 1, and the goal is uniform on the circle of radius 1
    around the start, the origin. A step is `v <- v + dt (sum_i g_i a_i e_i - drag v)`, then
    `x <- x + dt v`. The reward is the negative distance to the goal after the step, so that
    speed pays. No episode is terminated. `info["distance"]` is the distance after the step.

    Actions are four numbers between -1 and 1: a thruster may pull too, as joints of a robot
    turn both ways. With pushes alone the goal could not be reached at all where a thruster
    has failed; so it can with most pairs, and how well depends on adaptation.

    This is a miniature of the robots with failing limbs of M. Al-Shedivat, T. Bansal, Y.
    Burda, I. Sutskever, I. Mordatch, P. Abbeel, Continuous Adaptation via Meta-Learning in
    Nonstationary and Competitive Environments, ICLR 2018; it is not from the paper.

    Args:
      horizon: Number of steps of an episode, after which it is truncated.
      dt: Time of a step, above 0.
      drag: Rate at which velocity is lost, 0 or more. `dt * drag` is at most 1.
      show_goal: Whether the observation, float32 `[4]`, is the way to the goal and the
        velocity, so that the gains alone are hidden. Otherwise it is the position and the
        velocity.

    Returns:
      An environment.

    Raises:
      TypeError: `show_goal` is neither True nor False.
      ValueError: a number is out of its range.

    Example:
      >>> from metalearn.environments import drift_point
      >>> sorted(drift_point().task(jax.random.key(0)))
      ['gains', 'goal']
    """
    horizon = kinds.count("horizon", horizon)
    checks.number("dt", dt, positive=True)
    checks.number("drag", drag)
    kinds.flag("show_goal", show_goal)
    if dt * drag > 1:
        raise ValueError(
            f"dt is {dt} and drag {drag}; expected a product of at most 1, for drag turns "
            "a velocity around otherwise. Take a smaller dt."
        )
    return _drift_point(horizon, float(dt), float(drag), show_goal)


def drift_chain(
    episodes: int = 7,
    pairs: Sequence[Pair] = TRAIN_PAIRS,
    *,
    horizon: int = 50,
    dt: float = 0.1,
    drag: float = 1.0,
    show_goal: bool = True,
) -> Chain:
    """Chains of `drift_point` in which two thrusters fail little by little.

    A chain has one goal and one pair of thrusters, drawn from `pairs`. The gains of the
    pair fall linearly from 1 in the first episode to 0 in the last. The others stay at 1.
    `TRAIN_PAIRS` and `TEST_PAIRS` part the six pairs, as M. Al-Shedivat et al., ICLR 2018,
    part the pairs of failing legs.

    Args:
      episodes: Number of episodes of a chain, 2 or more.
      pairs: Pairs of different thrusters from 0 to 3, one or more.
      horizon: Number of steps of an episode.
      dt: Time of a step, see `drift_point`.
      drag: Rate at which velocity is lost, see `drift_point`.
      show_goal: Whether observations show the goal, see `drift_point`.

    Returns:
      A chain. Its tasks are `{"gains": [episodes, 4], "goal": [episodes, 2]}`.

    Raises:
      TypeError: `show_goal` is neither True nor False.
      ValueError: a number is out of its range, or `pairs` holds no pair, or something else.

    Example:
      >>> from metalearn.environments import drift_chain
      >>> drift_chain(episodes=3, pairs=[(0, 1)]).tasks(jax.random.key(0))["gains"].tolist()
      [[1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
    """
    episodes = kinds.count("episodes", episodes, least=2)
    environment = drift_point(horizon, dt=dt, drag=drag, show_goal=show_goal)
    given = tuple(pairs) if isinstance(pairs, Sequence) else ()
    if not given or not all(_is_pair(pair) for pair in given):
        raise ValueError(
            f"pairs is {pairs!r}; expected one or more pairs of different thrusters from 0 "
            "to 3, such as TRAIN_PAIRS or [(0, 1)]."
        )
    return _drift_chain(episodes, tuple((a, b) for a, b in given), environment)


def _is_pair(pair: object) -> bool:
    return (
        isinstance(pair, Sequence)
        and len(pair) == 2
        and all(type(i) is int and 0 <= i < 4 for i in pair)
        and pair[0] != pair[1]
    )


# Equal settings are the same functions, to share compilations.
@functools.lru_cache
def _drift_point(horizon: int, dt: float, drag: float, show_goal: bool) -> Environment:
    actions = Continuous(4, 1.0)

    def task(key: Key) -> ThrusterTask:
        k_gains, k_goal = jax.random.split(key)
        return {"gains": jax.random.uniform(k_gains, (4,)), "goal": _on_circle(k_goal)}

    def seen(state: Flight, task: ThrusterTask) -> Array:
        place = task["goal"] - state.position if show_goal else state.position
        return jnp.concatenate([place, state.velocity])

    def reset(key: Key, task: ThrusterTask) -> tuple[Array, Flight]:
        del key
        state = Flight(jnp.zeros((2,)), jnp.zeros((2,)), jnp.int32(0))
        return seen(state, task), state

    def step(key: Key, state: Flight, action: Array, task: ThrusterTask):
        del key
        pushes = task["gains"] * clipped(action, actions)
        # Sums and not a product, whose factors accelerators round to 10 bits.
        force = jnp.sum(pushes[:, None] * DIRECTIONS, 0)
        velocity = state.velocity + dt * (force - drag * state.velocity)
        after = Flight(state.position + dt * velocity, velocity, state.steps + 1)
        distance = jnp.sqrt(jnp.sum((after.position - task["goal"]) ** 2))
        info: Info = {"distance": distance}
        truncated = after.steps >= horizon
        return seen(after, task), after, -distance, jnp.bool_(False), truncated, info

    name = f"drift-point-{horizon}steps-dt{dt:g}-drag{drag:g}"
    name += "" if show_goal else "-hidden-goal"
    return Environment(name, task, reset, step, 4, actions, horizon)


def _on_circle(key: Key) -> Array:
    angle = jax.random.uniform(key, (), minval=-math.pi, maxval=math.pi)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


@functools.lru_cache
def _drift_chain(episodes: int, pairs: tuple[Pair, ...], environment: Environment) -> Chain:
    failing = np.zeros((len(pairs), 4), np.float32)
    for row, pair in enumerate(pairs):
        failing[row, list(pair)] = 1
    lost = np.linspace(0, 1, episodes, dtype=np.float32)

    def tasks(key: Key) -> ThrusterTask:
        k_pair, k_goal = jax.random.split(key)
        fails = jnp.asarray(failing)[jax.random.randint(k_pair, (), 0, len(pairs))]
        goal = _on_circle(k_goal)
        return {
            "gains": 1.0 - jnp.asarray(lost)[:, None] * fails[None, :],
            "goal": jnp.broadcast_to(goal[None, :], (episodes, 2)),
        }

    shown = "+".join(f"{a}{b}" for a, b in pairs)
    name = f"drift-chain-{episodes}episodes-pairs{shown}-{environment.name}"
    return Chain(environment, tasks, episodes, name)
