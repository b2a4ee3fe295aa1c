"""A grid maze with a hidden goal, which pays each time that it is found."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metalearn.core import kinds
from metalearn.core.types import Array, Key
from metalearn.environments.environment import Discrete, Environment, Info

MazeTask = dict[str, Array]
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]], np.int32)
FOUND = 10.0
BUMP = -0.1


class Walk(NamedTuple):
    """State of an episode.

    Attributes:
      cell: Row and column of the agent, int32 `[2]`.
      steps: Number of steps so far, int32.
    """

    cell: Array
    steps: Array


def maze(size: int = 11, horizon: int = 200) -> Environment:
    """A maze of pillars in which one cell, the goal, pays and sends the agent elsewhere.

    This is the maze of T. Miconi, A. Rawal, J. Clune, K. O. Stanley, Backpropamine:
    training self-modifying neural networks with differentiable neuromodulated plasticity,
    ICLR 2019, section 4.2, and of S. Flennerhag, A. A. Rusu, R. Pascanu, F. Visin, H. Yin,
    R. Hadsell, Meta-Learning with Warped Gradient Descent, ICLR 2020, section 4.3.

    The cells at the border are walls, and so is every inner cell with an even row and an
    even column. A task is `{"goal": [2]}`, int32, the row and column of a free cell. The
    agent starts at a random free cell other than the goal. The actions 0 to 3 move it up,
    down, left and right. A move into a wall pays -0.1 and leaves it where it is. At the
    goal it gets 10 and is moved to a random free cell other than the goal. No episode is
    terminated.

    The observation, float32 `[15]`, is the walls among the 3 x 3 cells around the agent,
    row by row; the action before as a one-hot vector, zeros at first; the reward before;
    and the fraction of the time that has passed. `info["found"]` is 1 where the goal was
    reached, else 0.

    Args:
      size: Number of rows and of columns, an odd number of 5 or more.
      horizon: Number of steps of an episode, after which it is truncated.

    Returns:
      An environment.

    Raises:
      ValueError: `size` is no odd integer of 5 or more, or `horizon` none of 1 or more.

    Example:
      >>> from metalearn.environments import maze
      >>> maze().observation_size
      15
    """
    size, horizon = kinds.count("size", size, least=5), kinds.count("horizon", horizon)
    if size % 2 == 0:
        raise ValueError(
            f"size is {size}; expected an odd number, so that no pillar touches a border."
        )
    return _maze(size, horizon)


def walls_of(size: int) -> np.ndarray:
    """Walls of a maze, float32 `[size, size]`: 1 at the border and at pillars, else 0."""
    walls = np.ones((size, size), np.float32)
    walls[1:-1, 1:-1] = 0
    walls[2:-1:2, 2:-1:2] = 1
    return walls


# Equal settings are the same functions, to share compilations.
@functools.lru_cache
def _maze(size: int, horizon: int) -> Environment:
    walls = walls_of(size)
    free = np.argwhere(walls == 0).astype(np.int32)
    actions = Discrete(len(MOVES))

    def task(key: Key) -> MazeTask:
        return {"goal": jnp.asarray(free)[jax.random.randint(key, (), 0, len(free))]}

    def elsewhere(key: Key, task: MazeTask) -> Array:
        goal = jnp.argmax(jnp.all(free == task["goal"][None, :], -1))
        drawn = jax.random.randint(key, (), 0, len(free) - 1)
        return jnp.asarray(free)[drawn + (drawn >= goal)]

    def seen(state: Walk, before: Array, reward: Array) -> Array:
        corner = (state.cell[0] - 1, state.cell[1] - 1)
        around = jax.lax.dynamic_slice(jnp.asarray(walls), corner, (3, 3))
        time = state.steps.astype(jnp.float32) / horizon
        return jnp.concatenate([around.reshape(9), before, jnp.stack([reward, time])])

    def reset(key: Key, task: MazeTask) -> tuple[Array, Walk]:
        state = Walk(elsewhere(key, task), jnp.int32(0))
        return seen(state, jnp.zeros((actions.num,)), jnp.float32(0)), state

    def step(key: Key, state: Walk, action: Array, task: MazeTask):
        action = jnp.clip(action, 0, actions.num - 1)
        wanted = state.cell + jnp.asarray(MOVES)[action]
        bump = jnp.asarray(walls)[wanted[0], wanted[1]] > 0
        cell = jnp.where(bump, state.cell, wanted)
        found = jnp.all(cell == task["goal"])
        reward = jnp.where(bump, BUMP, 0.0) + jnp.where(found, FOUND, 0.0)
        cell = jnp.where(found, elsewhere(key, task), cell)
        after = Walk(cell, state.steps + 1)
        before = jax.nn.one_hot(action, actions.num, dtype=jnp.float32)
        info: Info = {"found": found.astype(jnp.float32)}
        return (
            seen(after, before, reward),
            after,
            reward,
            jnp.bool_(False),
            after.steps >= horizon,
            info,
        )

    name = f"maze-{size}x{size}-{horizon}steps"
    return Environment(name, task, reset, step, 11 + actions.num, actions, horizon)
