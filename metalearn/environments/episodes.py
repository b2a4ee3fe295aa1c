"""Tasks for `fit` and `evaluate` of which an example is an episode."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metalearn.core import kinds
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Key, PyTree
from metalearn.environments.chain import Chain, check_chain
from metalearn.environments.environment import Environment, check_environment


def episodes(
    environment: Environment, *, num_support: int = 20, num_query: int = 20
) -> TaskSampler:
    """Tasks of an environment: episodes to adapt by, and episodes to be judged on.

    An example's input is `{"task": ..., "episode": ...}`: the parameters of the task in
    which its episode is played, and a number that its draws are made of. A learner plays it
    when it adapts, or predicts: what happens depends on its policy, so no data can say it
    beforehand (`ml.policies.play`). The prediction of an input is the return of an episode.

    Args:
      environment: Environment whose tasks are drawn.
      num_support: Number of episodes to adapt by, K.
      num_query: Number of episodes after adaptation, Q.

    Returns:
      A `TaskSampler`. Inputs have leaves `[K, ...]` and `[Q, ...]` with the same parameters
      in all rows and numbers from 0 on. Targets are zeros, for there are none.

    Raises:
      TypeError: no `Environment`, or one whose functions do not fit together.
      ValueError: a number is no count, or the environment contradicts itself.

    Example:
      >>> tasks = ml.environments.episodes(ml.environments.navigation(), num_support=5)
      >>> tasks(jax.random.key(0)).support.x["task"]["goal"].shape
      (5, 2)
    """
    check_environment(environment)
    num_support = kinds.count("num_support", num_support)
    return _episodes(environment, num_support, kinds.count("num_query", num_query))


# Equal settings are the same function, to share compilations.
@functools.lru_cache
def _episodes(environment: Environment, num_support: int, num_query: int) -> TaskSampler:
    def sample(data: PyTree, key: Key) -> Task:
        del data
        task = environment.task(key)
        return _task(_rows(task, num_support), _rows(task, num_query))

    return TaskSampler(sample, (), f"{environment.name} {num_support} {num_query} episodes")


def neighbours(chain: Chain, *, num_support: int = 1, num_query: int = 1) -> TaskSampler:
    """Pairs of neighbours of a chain: episodes of a task to adapt by, judged on the next.

    This is the objective of Al-Shedivat et al. (ICLR 2018): an update by what a task has
    shown is worth what it is worth on the task that follows.

    Args:
      chain: Chain of which a pair is drawn, all its pairs being equally likely.
      num_support: Number of episodes of the first task, K.
      num_query: Number of episodes of the second task, Q.

    Returns:
      A `TaskSampler`, see `episodes`; `task.info["episode"]` is the place of the first task
      in its chain.

    Raises:
      TypeError: no `Chain`, or its environment's functions do not fit together.
      ValueError: a number is no count, or chain and environment contradict each other.

    Example:
      >>> tasks = ml.environments.neighbours(ml.environments.rotating_goal(episodes=3))
      >>> task = tasks(jax.random.key(0))
      >>> goals = [x["task"]["goal"] for x in (task.support.x, task.query.x)]
      >>> bool((goals[0] == goals[1]).all())
      False
    """
    check_chain(chain)
    num_support = kinds.count("num_support", num_support)
    return _neighbours(chain, num_support, kinds.count("num_query", num_query))


@functools.lru_cache
def _neighbours(chain: Chain, num_support: int, num_query: int) -> TaskSampler:
    def sample(data: PyTree, key: Key) -> Task:
        del data
        k_chain, k_place = jax.random.split(key)
        tasks = chain.tasks(k_chain)
        place = jax.random.randint(k_place, (), 0, chain.length - 1)
        now = jax.tree.map(lambda leaf: leaf[place], tasks)
        following = jax.tree.map(lambda leaf: leaf[place + 1], tasks)
        pair = _task(_rows(now, num_support), _rows(following, num_query))
        return Task(support=pair.support, query=pair.query, info={"episode": place})

    return TaskSampler(sample, (), f"{chain.name} {num_support} {num_query} episodes")


def _rows(task: PyTree, num: int) -> PyTree:
    """Inputs of `num` episodes of one task."""
    same = lambda leaf: jnp.broadcast_to(leaf[None], (num, *leaf.shape))
    return {"task": jax.tree.map(same, task), "episode": jnp.arange(num, dtype=jnp.int32)}


def _task(support: PyTree, query: PyTree) -> Task:
    of = lambda x: Examples.of(x, jnp.zeros(x["episode"].shape))
    return Task(support=of(support), query=of(query), info={})
