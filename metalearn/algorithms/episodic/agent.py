"""The agent of the episodic LSTM: its cell, a bandit that it plays, and its loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metalearn.algorithms.episodic import store
from metalearn.algorithms.episodic.store import EpisodicMemory, Eviction, Kernel
from metalearn.core import loops
from metalearn.core.keys import fold_key, split_key
from metalearn.core.task import Examples
from metalearn.core.types import Array, Key, PyTree
from metalearn.models.cells import LSTMCarry, lstm_init, lstm_start


class Rules(NamedTuple):
    """The bandit, the memory and the loss of one learner.

    Attributes:
      arms: W, number of arms.
      pulls: P, pulls of an episode.
      good: Probability of a reward at the good arm.
      bad: Probability of a reward at any other arm.
      capacity: Number of slots.
      recall: Number of slots that are read.
      kernel: Distance of contexts.
      eviction: Which slot a new context takes.
      discount: Discount of later rewards of the episode.
      value_cost: Weight of the squared error of the values.
      entropy_cost: Weight of the entropy of the policy.
    """

    arms: int
    pulls: int
    good: float
    bad: float
    capacity: int
    recall: int
    kernel: Kernel
    eviction: Eviction
    discount: float
    value_cost: float
    entropy_cost: float


class Episode(NamedTuple):
    """What happened in one episode.

    Attributes:
      logits: Logits of the policy before each pull, `[P, W]`.
      values: Predicted returns, `[P]`.
      actions: Arms that were pulled, int32 `[P]`.
      rewards: Rewards, `[P]`.
      cell: Cell state after the last pull, `[H]`.
    """

    logits: Array
    values: Array
    actions: Array
    rewards: Array
    cell: Array


def agent_init(key: Key, like: Any, arms: int, hidden: int, *, memory: bool) -> PyTree:
    """Parameters of the agent; with and without a memory, all but the gate r are equal.

    Args:
      key: Key of the draws.
      like: Shape `[N, D]` and dtype of contexts.
      arms: W.
      hidden: H.
      memory: Whether there is a gate r.
    """
    k_cell, k_policy, k_value, k_input, k_recurrent = jax.random.split(key, 5)
    inputs, dtype = like.shape[-1] + arms + 1, like.dtype
    glorot, orthogonal = nn.initializers.glorot_uniform(), nn.initializers.orthogonal()

    def dense(key: Key, outputs: int) -> dict[str, Array]:
        kernel = glorot(key, (hidden, outputs), dtype)
        return {"kernel": kernel, "bias": jnp.zeros(outputs, dtype)}

    agent = {
        "lstm": lstm_init(k_cell, inputs, hidden, dtype),
        "policy": dense(k_policy, arms),
        "value": dense(k_value, 1),
    }
    if memory:
        agent["reinstate"] = {
            "input": glorot(k_input, (inputs, hidden), dtype),
            "recurrent": orthogonal(k_recurrent, (hidden, hidden), dtype),
            "bias": jnp.zeros(hidden, dtype),
        }
    return agent


def episodic_step(agent: PyTree, carry: LSTMCarry, x: Array, recalled: Array) -> LSTMCarry:
    """One step of the cell: an LSTM to whose cell a gate adds a recalled one.

    Args:
      agent: Parameters; without a gate `"reinstate"` this is an LSTM.
      carry: State `(h, c)`, each `[H]`.
      x: Input, `[inputs]`.
      recalled: Cell state m from the memory, `[H]`.
    """
    h, c = carry
    cell = agent["lstm"]
    gates = x @ cell["input"] + h @ cell["recurrent"] + cell["bias"]
    i, f, g, o = jnp.split(gates, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    if "reinstate" in agent:
        gate = agent["reinstate"]
        r = jax.nn.sigmoid(x @ gate["input"] + h @ gate["recurrent"] + gate["bias"])
        c = c + r * jnp.tanh(recalled)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def begin(agent: PyTree, rules: Rules, context: Array, recalled: Array) -> Array:
    """Logits of the first pull of an episode, `[W]`."""
    nothing = jnp.zeros(rules.arms + 1, context.dtype)
    x = jnp.concatenate([context, nothing])
    h, _ = episodic_step(agent, lstm_start(agent["lstm"]), x, recalled)
    return _dense(agent["policy"], h)


def play(
    agent: PyTree,
    rules: Rules,
    context: Array,
    arm: Array,
    recalled: Array,
    key: Key | None,
) -> Episode:
    """Plays one episode.

    Args:
      agent: Parameters.
      rules: The bandit.
      context: What the agent sees all the time, `[D]`.
      arm: The good arm, int32.
      recalled: What the memory held for the context, `[H]`.
      key: Key of actions and rewards; without one the best action, and a reward where it
        is more likely than none.
    """

    def pull(carry: tuple, key: Key | None):
        state, before = carry
        state = episodic_step(agent, state, jnp.concatenate([context, before]), recalled)
        logits = _dense(agent["policy"], state[0])
        value = _dense(agent["value"], state[0])[0]
        k_action, k_reward = split_key(key)
        if k_action is None:
            action = jnp.argmax(logits)
        else:
            action = jax.random.categorical(k_action, logits)
        chance = jnp.where(action == arm, rules.good, rules.bad)
        rewarded = chance > 0.5
        if k_reward is not None:
            rewarded = jax.random.bernoulli(k_reward, chance)
        reward = rewarded.astype(context.dtype)
        pulled = jax.nn.one_hot(action, rules.arms, dtype=context.dtype)
        now = jnp.concatenate([pulled, reward[None]])
        return (state, now), (logits, value, action.astype(jnp.int32), reward)

    keys = None if key is None else jax.random.split(key, rules.pulls)
    start = (lstm_start(agent["lstm"]), jnp.zeros(rules.arms + 1, context.dtype))
    ((_, cell), _), steps = loops.scan(pull, start, keys, length=rules.pulls)
    return Episode(*steps, cell)


def play_all(
    agent: PyTree, rules: Rules, episodes: Examples, key: Key | None
) -> tuple[EpisodicMemory | None, Episode]:
    """Plays episodes one after the other and remembers the end of each.

    Args:
      agent: Parameters.
      rules: The bandit and the memory.
      episodes: Contexts `[N, D]` and good arms `[N]`; masked ones leave no trace, not in
        the draws of the others either.
      key: Key of actions and rewards, or `None`.

    Returns:
      The memory, and what happened, leaves `[N, ...]`.
    """
    memory = None
    if "reinstate" in agent:
        cell = jax.eval_shape(lambda: lstm_start(agent["lstm"])[1])
        memory = store.empty(rules.capacity, episodes.x[0], cell)

    def one(memory: EpisodicMemory | None, row: tuple[Examples, Array]):
        episode, number = row
        recalled, found = recollect(rules, memory, episode.x)
        key_ = fold_key(key, number)
        played = play(agent, rules, episode.x, episode.y, recalled, key_)
        if memory is not None:
            memory = store.touch(memory, found, episode.mask)
            memory = store.write(
                memory,
                episode.x,
                played.cell,
                episode.mask,
                eviction=rules.eviction,
                replace=True,
            )
        return memory, played

    return loops.scan(one, memory, (episodes, _numbers(episodes)))


def play_each(
    agent: PyTree, rules: Rules, episodes: Examples, memory: EpisodicMemory | None, key: Key
) -> Episode:
    """Plays episodes that all begin from the same memory; leaves `[Q, ...]`."""

    def one(episode: Examples, number: Array) -> Episode:
        recalled, _ = recollect(rules, memory, episode.x)
        key_ = fold_key(key, number)
        return play(agent, rules, episode.x, episode.y, recalled, key_)

    return jax.vmap(one)(episodes, _numbers(episodes))


def _numbers(episodes: Examples) -> Array:
    """The number of each episode among the valid ones, int32 `[N]`."""
    return jnp.cumsum(episodes.mask, dtype=jnp.int32) - 1


def recollect(
    rules: Rules, memory: EpisodicMemory | None, context: Array
) -> tuple[Array, Any]:
    """The cell state for a context, `[H]`, and the slots that it is from."""
    if memory is None:
        return jnp.zeros((), context.dtype), None
    found = store.nearest(memory, context, rules.recall, rules.kernel)
    # No gradient passes through a memory, neither by its values nor by its distances.
    return jax.lax.stop_gradient(store.blend(memory, found)), found


def actor_critic(rules: Rules, episode: Episode) -> Array:
    """Loss of one episode: the mean over its pulls."""
    places = jnp.arange(rules.pulls)
    later = places[:, None] - places[None]  # of the reward in the row, from the column
    powers = rules.discount ** jnp.maximum(later, 0).astype(episode.rewards.dtype)
    returns = episode.rewards @ jnp.where(later >= 0, powers, 0)
    errors = returns - episode.values
    logs = jax.nn.log_softmax(episode.logits)
    chosen = jnp.take_along_axis(logs, episode.actions[:, None], axis=-1)[:, 0]
    # An advantage is the weight of an action. Its derivative would make the values learn
    # from the policy.
    policy = -chosen * jax.lax.stop_gradient(errors)
    entropy = -jnp.sum(jnp.exp(logs) * logs, axis=-1)
    losses = policy + rules.value_cost * jnp.square(errors) - rules.entropy_cost * entropy
    return jnp.mean(losses)


def _dense(layer: PyTree, x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"]
