"""Single episodes of the agent: what pays without a key, and draws beside masked rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import close

import metalearn as ml
from metalearn.algorithms.episodic import agent as parts

pytestmark = pytest.mark.usefixtures("x64")
ARMS, PULLS, HIDDEN, BITS = 3, 3, 4, 5
RULES = parts.Rules(ARMS, PULLS, 0.9, 0.1, 100, 1, "euclidean", "fifo", 0.8, 0.5, 0.3)


def agent_of():
    """Parameters of an agent with a memory, all of them drawn."""
    like, rng = jax.ShapeDtypeStruct((1, BITS), jnp.float64), np.random.default_rng(0)
    init = lambda key: parts.agent_init(key, like, ARMS, HIDDEN, memory=True)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), shapes)


def test_without_a_key_a_reward_comes_where_it_is_likely():
    """Of good and bad arms alike, whatever the chances are."""
    agent, context = agent_of(), jnp.ones(BITS)

    def both(arm):
        return [
            parts.play(
                agent,
                RULES._replace(good=good, bad=bad),
                context,
                arm,
                jnp.zeros(HIDDEN),
                None,
            )
            for good, bad in ((0.4, 0.1), (0.9, 0.6), (0.9, 0.1))
        ]

    never, always, good = jax.jit(both)(jnp.int32(1))
    assert not np.any(never.rewards) and np.all(always.rewards)
    assert good.rewards.tolist() == (np.asarray(good.actions) == 1).tolist()


def test_a_masked_episode_leaves_no_trace_in_the_draws():
    """Behind the others or between them, in a support set and among queries."""
    agent, rng, key = agent_of(), np.random.default_rng(0), jax.random.key(3)
    x, y = rng.normal(size=(4, BITS)), np.array([0, 1, 2, 1])

    @jax.jit
    def played(episodes):
        memory, first = parts.play_all(agent, RULES, episodes, key)
        return first, parts.play_each(agent, RULES, episodes, memory, key)

    found = [
        jax.tree.map(
            lambda leaf, valid=valid: leaf[valid],
            played(ml.Examples.of(x[rows], y[rows], np.isin(np.arange(4), valid))),
        )
        for rows, valid in (
            ([1, 3, 0, 2], np.array([0, 1])),
            ([0, 1, 2, 3], np.array([1, 3])),
        )
    ]
    close(*found)
