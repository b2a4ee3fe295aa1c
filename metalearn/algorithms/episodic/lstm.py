"""Episodic LSTM: a recurrent agent that remembers how it solved what it meets again.

S. Ritter, J. X. Wang, Z. Kurth-Nelson, S. M. Jayakumar, C. Blundell, R. Pascanu, M.
Botvinick. Been There, Done That: Meta-Learning with Episodic Recall. ICML 2018. Without its
memory it is the agent of J. X. Wang et al., Learning to Reinforcement Learn, 2016.

Where this file decides, or differs:

- An epoch of the paper is a task: its support set is the sequence of episodes that fill the
  memory. Its query set has further episodes that each begin from that memory and write
  nothing, so that queries do not depend on one another. The loss is of all episodes.
- The paper has several kinds of episodes; here an episode is a bandit with one good arm.
- The context does not change within an episode, and nothing is written before its end, so
  the memory is asked once an episode. The gate decides at every pull.
- The state of the LSTM is zero at the start of each episode, which we take the paper to
  mean; then no gradient passes from one episode to another.
- A context that was never met recalls the state of the nearest one, as a dictionary of one
  neighbour does; what to make of it is up to the agent.
- A context that is met again has its cell state replaced. A port of the paper appends it,
  and finds the older one. The port's key is the whole input; here it is the context.
- Returns end with the episode and nothing is bootstrapped. Discount and weights of the
  parts of the loss are ours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Unpack, get_args

import jax
import jax.numpy as jnp

from metalearn.algorithms.embedding import (
    EMBEDDING,
    EmbeddingOptions,
    EncoderNorm,
    embedder,
    labels_of,
    seen,
)
from metalearn.algorithms.episodic.agent import (
    Episode,
    Rules,
    actor_critic,
    agent_init,
    begin,
    play_all,
    play_each,
    recollect,
)
from metalearn.algorithms.episodic.store import EpisodicMemory, Eviction, Kernel
from metalearn.algorithms.options import takes_options
from metalearn.core import checks, kinds, metrics, trees
from metalearn.core.estimators import gradient_estimator
from metalearn.core.keys import split_key
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.losses import cross_entropy
from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples, Task, concatenate
from metalearn.core.trees import masked_mean
from metalearn.core.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Played:
    """An agent after the episodes of a support set.

    Attributes:
      memory: Its memory; `None` for an agent without one.
      episodes: What happened, leaves `[N, ...]`.
      variables: Variables of the learner, shared by all tasks.
    """

    memory: EpisodicMemory | None
    episodes: Episode
    variables: Variables


@takes_options(of=EMBEDDING)
def episodic_lstm(
    encoder: Model | None,
    *,
    num_ways: int,
    pulls: int = 10,
    hidden: int = 32,
    memory: bool = True,
    capacity: int = 100,
    recall: int = 1,
    kernel: Kernel = "euclidean",
    eviction: Eviction = "fifo",
    good: float = 0.9,
    bad: float = 0.1,
    discount: float = 0.9,
    value_cost: float = 0.5,
    entropy_cost: float = 0.05,
    **options: Unpack[EmbeddingOptions],
) -> MetaLearner:
    """Learns an agent that explores a new bandit, and recalls the solution of an old one.

    An example is an episode of a bandit: `x` is the context that the agent sees, `y` the
    arm that pays best, which it does not see. The LSTM reads the context, its last action
    and the reward for that. A gate r adds what the memory holds for the context:

        i, f, o, r = sigmoid(W x + U h + b);  g = tanh(W x + U h + b)
        c' = f c + i g + r tanh(m);  h' = o tanh(c')

    At the end of an episode its cell state is stored under the context, without a
    derivative; m is the state of the nearest context, or zero before there is one. The loss
    is that of an advantage actor-critic on actions drawn from the policy: for returns R,
    `-log pi(a) (R - V) + value_cost (R - V)^2 - entropy_cost H(pi)`, its mean over pulls
    and episodes.

    Args:
      encoder: Network from contexts to embeddings `[N, D]`, which are the keys and what the
        LSTM reads; `None` for contexts `[N, D]` that are used as they are.
      num_ways: Number of arms, W.
      pulls: Number of pulls in an episode, P.
      hidden: Size of the LSTM, H.
      memory: Whether there is a memory; without one every context is a new one.
      capacity: Number of slots of the memory.
      recall: Number of nearest contexts whose states are averaged.
      kernel: Distance of contexts: "cosine" or "euclidean".
      eviction: Slot that a new context takes: "fifo", "lru" or "clock", see `store`.
      good: Probability of a reward at the good arm.
      bad: Probability of a reward at another arm, below `good`.
      discount: Discount of later rewards of the episode, from 0 to 1.
      value_cost: Weight of the squared error of the values.
      entropy_cost: Weight of the entropy of the policy.
      **options: See `metalearn.algorithms.embedding.EmbeddingOptions`.

    Returns:
      A `MetaLearner` whose `predict` gives the logits of the first pull, `[Q, W]`. Its
      adapted object is a `Played`; without a key `adapt` takes the best action and the most
      likely reward. Params are `{"agent": ...}`, with `"encoder"` if there is one. Metrics:
      `query/loss` and `query/accuracy` of the first pull, `recurring/accuracy` of queries
      that the support set has met; of all episodes the mean `reward`, `recurring/regret`
      and `new/regret`, the expected loss at a pull. A mean over no episode is 0.

    Raises:
      TypeError: `encoder` is no model.
      ValueError: an option is out of range.

    Example:
      >>> learner, tasks = ml.episodic_lstm(None, num_ways=2), ml.tasks.barcodes(arms=2)
    """
    norm = options.get("norm", "running")
    pays, memorises = (num_ways, pulls, good, bad), (capacity, recall, kernel, eviction)
    rules = Rules(*pays, *memorises, discount, value_cost, entropy_cost)
    _check(encoder, rules, hidden, norm)
    embed = _as_they_are if encoder is None else embedder(encoder, norm=norm)
    parts = ("agent",) if encoder is None else ("agent", "encoder")  # of the params

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        k_encoder, k_agent = jax.random.split(key)
        variables = Variables(params=None, state={})
        if encoder is not None:
            variables = encoder.init(k_encoder, task.support.x)
        see = lambda v, x: embed(v, x, key=k_encoder, train=True)[0]
        like = jax.eval_shape(see, variables, task.support.x)
        params = {"agent": agent_init(k_agent, like, num_ways, hidden, memory=memory)}
        if encoder is not None:
            params["encoder"] = variables.params
        return Variables(params=params, state=variables.state)

    def adapt(variables: Variables, support: Examples, *, key: Key | None = None) -> Played:
        kinds.adaptation(variables, support, parts)
        k_embed, k_play = split_key(key)
        contexts, _ = embed(
            _inner(variables), support.x, key=k_embed, train=False, mask=support.mask
        )
        agent = variables.params["agent"]
        filled, episodes = play_all(agent, rules, seen(contexts, support), k_play)
        return Played(memory=filled, episodes=episodes, variables=variables)

    def predict(adapted, x, *, key=None, mask=None) -> Array:
        kinds.adapted(adapted, Played)
        variables = adapted.variables
        contexts, _ = embed(_inner(variables), x, key=key, train=False, mask=mask)

        def first(context: Array) -> Array:
            recalled = recollect(rules, adapted.memory, context)[0]
            return begin(variables.params["agent"], rules, context, recalled)

        return jax.vmap(first)(contexts)

    settings = rules._asdict()
    own = {"num_ways": settings.pop("arms"), "hidden": hidden, "memory": memory}
    config = config_of("episodic_lstm", **own, **settings, norm=norm)
    objective = functools.partial(_objective, rules, embed)
    estimate = gradient_estimator(objective, task_chunk=options.get("task_chunk", "auto"))
    return MetaLearner(init, adapt, predict, estimate, config, cross_entropy)


def _inner(variables: Variables) -> Variables:
    """Those of the encoder."""
    return Variables(params=variables.params.get("encoder"), state=variables.state)


def _objective(
    rules: Rules, embed: Callable, variables: Variables, task: Task, *, key: Key
) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
    """The loss of all episodes of a task, those of its queries after the others."""
    k_embed, k_support, k_query = jax.random.split(key, 3)
    both = concatenate(task.support, task.query)
    contexts, state = embed(
        _inner(variables), both.x, key=k_embed, train=True, mask=both.mask
    )
    num = task.support.mask.shape[0]
    agent = variables.params["agent"]
    support, query = seen(contexts[:num], task.support), seen(contexts[num:], task.query)
    memory, first = play_all(agent, rules, support, k_support)
    then = play_each(agent, rules, query, memory, k_query)
    episodes = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, then)
    losses = jax.vmap(lambda episode: actor_critic(rules, episode))(episodes)
    return masked_mean(losses, both.mask), (state, _report(rules, task, both, episodes))


def _report(rules: Rules, task: Task, both: Examples, episodes: Episode) -> dict:
    """Metrics of one task, from its support and query episodes together."""
    num = task.support.mask.shape[0]
    known = _met_before(both.x, task.support)
    wrong = episodes.actions != labels_of(both)[:, None]
    lost = (rules.good - rules.bad) * wrong.astype(episodes.rewards.dtype)
    regret = lost.mean(-1)
    first = episodes.logits[num:, 0]
    query = task.query
    again = Examples(x=query.x, y=query.y, mask=query.mask & known[num:])
    report = metrics.of_task(cross_entropy, first, query)
    return {f"query/{name}": value for name, value in report.items()} | {
        "recurring/accuracy": metrics.accuracy(first, again),
        "recurring/regret": masked_mean(regret, both.mask & known),
        "new/regret": masked_mean(regret, both.mask & ~known),
        "reward": masked_mean(episodes.rewards.mean(-1), both.mask),
    }


def _met_before(x: PyTree, support: Examples) -> Array:
    """Whether the context of an episode was that of an earlier one, bool `[N + Q]`."""
    equal = [
        jnp.all(a[:, None] == b[None], axis=tuple(range(2, a.ndim + 1)))
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(support.x), strict=True)
    ]
    rows, columns = equal[0].shape
    earlier = jnp.arange(columns)[None] < jnp.arange(rows)[:, None]
    same = jnp.all(jnp.stack(equal), axis=0)
    return jnp.any(same & earlier & support.mask[None], axis=-1)


def _as_they_are(variables, x, *, key, train, mask=None) -> tuple[Array, PyTree]:
    """In place of an encoder."""
    del key, train, mask
    wanted = "contexts [N, D], where no encoder makes them"
    trees.one_array(x, "the input", wanted)
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"the input is {x.dtype}{list(x.shape)}; expected {wanted}.")
    return trees.widened(x), variables.state


def _check(encoder: Model | None, rules: Rules, hidden: int, norm: str) -> None:
    """Checks all arguments before anything is computed."""
    if encoder is not None:
        checks.model(encoder, "encoder")
    checks.whole_number("num_ways", rules.arms, least=2)
    for name, value in (("pulls", rules.pulls), ("hidden", hidden)):
        checks.whole_number(name, value, least=1)
    for name in ("capacity", "recall"):
        checks.whole_number(name, getattr(rules, name), least=1)
    if rules.recall > rules.capacity:
        raise ValueError(
            f"recall is {rules.recall}; expected at most {rules.capacity}, the capacity."
        )
    for name in ("good", "bad", "discount", "value_cost", "entropy_cost"):
        checks.number(name, getattr(rules, name))
    if not rules.bad < rules.good <= 1:
        raise ValueError(
            f"good is {rules.good} and bad {rules.bad}; expected probabilities, that of "
            "the good arm above the other."
        )
    if rules.discount > 1:
        raise ValueError(f"discount is {rules.discount}; expected a number from 0 to 1.")
    checks.one_of("kernel", rules.kernel, get_args(Kernel))
    checks.one_of("eviction", rules.eviction, get_args(Eviction))
    checks.one_of("norm", norm, get_args(EncoderNorm))
