"""The grid maze: its walls, moves, rewards and what the agent sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalearn import environments as env
from metalearn.environments.maze import Walk, walls_of

KEY = jax.random.key(0)
SEVEN = """
#######
#.....#
#.#.#.#
#.....#
#.#.#.#
#.....#
#######
"""
UP, DOWN, LEFT, RIGHT = range(4)


def _step(cell, action, goal=(5, 5), key=KEY, maze=None):
    maze = maze or env.maze(7, 10)
    state = Walk(jnp.array(cell, jnp.int32), jnp.int32(2))
    task = {"goal": jnp.array(goal, jnp.int32)}
    return maze.step(key, state, jnp.int32(action), task)


def test_walls_are_the_border_and_pillars_at_even_cells():
    drawn = [[float(c == "#") for c in row] for row in SEVEN.split()]
    np.testing.assert_array_equal(walls_of(7), drawn)
    eleven = walls_of(11)
    assert eleven.shape == (11, 11) and (eleven == 0).sum() == 65
    assert eleven[5, 5] == 0 and eleven[4, 6] == 1


@pytest.mark.parametrize(
    ("action", "end"), [(UP, (2, 3)), (DOWN, (4, 3)), (LEFT, (3, 2)), (RIGHT, (3, 4))]
)
def test_actions_move_up_down_left_and_right(action, end):
    _, state, reward, *_ = _step((3, 3), action)
    assert tuple(state.cell.tolist()) == end and float(reward) == 0
    assert int(state.steps) == 3


@pytest.mark.parametrize(
    ("cell", "action"), [((1, 3), UP), ((1, 3), LEFT), ((2, 3), RIGHT), ((3, 4), UP)]
)
def test_bumps_pay_a_tenth_and_do_not_move(cell, action):
    free = (cell, action) == ((1, 3), LEFT)
    _, state, reward, *_ = _step(cell, action)
    assert float(reward) == pytest.approx(0.0 if free else -0.1)
    assert tuple(state.cell.tolist()) == ((1, 2) if free else cell)


def test_the_goal_pays_ten_and_sends_the_agent_to_any_other_free_cell():
    keys = jax.random.split(KEY, 3000)
    step = lambda key: _step((5, 4), RIGHT, key=key)
    seen, state, reward, terminated, _, info = jax.jit(jax.vmap(step))(keys)
    np.testing.assert_array_equal(reward, 10)
    np.testing.assert_array_equal(info["found"], 1)
    assert not np.any(terminated)
    counts = np.zeros((7, 7))
    np.add.at(counts, tuple(np.asarray(state.cell).T), 1)
    allowed = walls_of(7) == 0
    allowed[5, 5] = False
    assert np.all(counts[~allowed] == 0)
    np.testing.assert_allclose(counts[allowed] / 3000, 1 / 20, atol=0.02)
    # It sees where it is now.
    walls, cell = walls_of(7), np.asarray(state.cell[0])
    around = walls[cell[0] - 1 : cell[0] + 2, cell[1] - 1 : cell[1] + 2]
    np.testing.assert_array_equal(seen[0, :9].reshape(3, 3), around)


def test_other_steps_find_nothing():
    assert float(_step((3, 3), UP)[5]["found"]) == 0


def test_an_episode_starts_at_any_free_cell_but_the_goal():
    maze = env.maze(5, 10)  # eight free cells around one pillar
    task = {"goal": jnp.array([1, 2], jnp.int32)}
    first, state = jax.vmap(maze.reset, (0, None))(jax.random.split(KEY, 1000), task)
    cells, counts = np.unique(np.asarray(state.cell), axis=0, return_counts=True)
    wanted = [[1, 1], [1, 3], [2, 1], [2, 3], [3, 1], [3, 2], [3, 3]]
    np.testing.assert_array_equal(cells, wanted)
    np.testing.assert_allclose(counts / 1000, 1 / 7, atol=0.05)
    np.testing.assert_array_equal(first[:, 9:], 0)


def test_goals_are_any_free_cell():
    goals = jax.vmap(env.maze(5, 10).task)(jax.random.split(KEY, 1000))["goal"]
    cells, counts = np.unique(np.asarray(goals), axis=0, return_counts=True)
    assert goals.dtype == jnp.int32 and len(cells) == 8 and [2, 2] not in cells.tolist()
    np.testing.assert_allclose(counts / 1000, 1 / 8, atol=0.05)


def test_observations_are_walls_action_reward_and_time():
    seen = _step((1, 3), UP)[0]
    assert seen.shape == (15,) and seen.dtype == jnp.float32
    np.testing.assert_array_equal(seen[:9], [1, 1, 1, 0, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(seen[9:13], [1, 0, 0, 0])
    np.testing.assert_allclose(seen[13:], [-0.1, 0.3], rtol=1e-6)
    # One row down, between two pillars.
    seen = _step((1, 3), DOWN)[0]
    np.testing.assert_array_equal(seen[:9], [0, 0, 0, 1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(seen[9:13], [0, 1, 0, 0])
    # Rows of a corner and its columns differ.
    seen = _step((2, 1), UP)[0]
    np.testing.assert_array_equal(seen[:9], [1, 1, 1, 1, 0, 0, 1, 0, 1])


def test_an_even_size_is_refused():
    with pytest.raises(ValueError, match="size is 10; expected an odd number"):
        env.maze(10)
