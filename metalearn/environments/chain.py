"""Chains: tasks of one environment that follow one another, an episode each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from metalearn.core import checks, kinds
from metalearn.core.types import Key, PyTree
from metalearn.environments.environment import Environment, check_environment


class Chain(NamedTuple):
    """A nonstationary family: what a task turns into from episode to episode.

    M. Al-Shedivat, T. Bansal, Y. Burda, I. Sutskever, I. Mordatch, P. Abbeel, Continuous
    Adaptation via Meta-Learning in Nonstationary and Competitive Environments, ICLR 2018,
    trains on pairs of neighbours of a chain: adapted to one task, judged on the next.

    Attributes:
      environment: Environment of all the tasks.
      tasks: Function `key -> tasks` that draws a chain: tasks of the environment, whose
        leaves have a leading axis of `length`, in the order of time.
      length: Number of episodes of a chain, 2 or more.
      name: Name, with the settings that tell it from others.
    """

    environment: Environment
    tasks: Callable[[Key], PyTree]
    length: int
    name: str


def check_chain(chain: Chain) -> None:
    """Runs the shapes of a chain and of its environment, without computing anything.

    Raises:
      TypeError: no `Chain`, or its environment is wrong, see `check_environment`.
      ValueError: the tasks are not those of the environment with a leading axis of the
        length.
    """
    kinds.instance(chain, Chain, "chain", "Make one, e.g. drift_chain().")
    check_environment(chain.environment)
    checks.whole_number(f"length of {chain.name}", chain.length, least=2)
    key = jax.random.key(0)
    task = jax.eval_shape(chain.environment.task, key)
    found = jax.eval_shape(chain.tasks, key)
    kind = lambda leaf: (leaf.shape, str(leaf.dtype))
    given = jax.tree.map(kind, found)
    expected = jax.tree.map(
        lambda leaf: ((chain.length, *leaf.shape), str(leaf.dtype)), task
    )
    if given != expected:
        raise ValueError(
            f"tasks of {chain.name} are {given}; expected {expected}, tasks of "
            f"{chain.environment.name} with a leading axis of the length."
        )
