"""The contract of an environment: pure functions of a state and of the task's parameters.

The signature of `step` is that of gymnax 1.0. Environments do not reset themselves: a
rollout freezes an episode that has ended, for its return has to be its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds
from metalearn.core.types import Array, Key, PyTree

Info = dict[str, Array]


class Discrete(NamedTuple):
    """Actions 0, ..., num - 1.

    Attributes:
      num: Number of actions.
    """

    num: int


class Continuous(NamedTuple):
    """Actions that are vectors.

    Attributes:
      size: Length of the vector.
      bound: Largest absolute value of an entry. Environments clip what is beyond, so
        that any policy may be asked.
    """

    size: int
    bound: float


class ResetFn(Protocol):
    def __call__(self, key: Key, task: PyTree, /) -> tuple[Array, PyTree]:
        """The first observation, float `[D]`, and the state of an episode."""


class StepFn(Protocol):
    def __call__(
        self, key: Key, state: PyTree, action: Array, task: PyTree, /
    ) -> tuple[Array, PyTree, Array, Array, Array, Info]:
        """Observation `[D]`, state, reward, terminated, truncated and further numbers.

        `terminated` says that no reward can follow, `truncated` that time is up: a value
        may be hoped for after the second, not after the first.
        """


class Environment(NamedTuple):
    """A family of decision problems, one of which is a task.

    Attributes:
      name: Name, with the settings that tell it from others.
      task: Function `key -> task`, which draws the parameters of a task, a pytree.
      reset: Function `(key, task) -> (observation, state)`.
      step: Function `(key, state, action, task) -> (observation, state, reward, terminated,
        truncated, info)`.
      observation_size: Length D of an observation.
      actions: `Discrete` or `Continuous`.
      horizon: Most steps of an episode. The environment itself reports `truncated` then.
    """

    name: str
    task: Callable[[Key], PyTree]
    reset: ResetFn
    step: StepFn
    observation_size: int
    actions: Discrete | Continuous
    horizon: int


def check_environment(environment: Environment) -> None:
    """Runs the shapes of a task, a reset and a step, without computing anything.

    Raises:
      TypeError: no `Environment`, or a function returns what it should not.
      ValueError: an observation, a reward or a flag has another shape or kind than the
        record says, or the state changes its structure from step to step.
    """
    kinds.instance(environment, Environment, "environment", "Make one, e.g. navigation().")
    name = environment.name
    checks.whole_number(f"horizon of {name}", environment.horizon, least=1)
    checks.whole_number(
        f"observation_size of {name}", environment.observation_size, least=1
    )
    _check_actions(environment)
    key = jax.random.key(0)
    task = jax.eval_shape(environment.task, key)
    start = jax.eval_shape(environment.reset, key, task)
    if not isinstance(start, tuple) or len(start) != 2:
        raise TypeError(
            f"reset of {name} returns a {type(start).__name__}; expected a tuple of an "
            "observation and a state."
        )
    first, state = start
    action = jax.eval_shape(lambda: no_action(environment.actions))
    found = jax.eval_shape(environment.step, key, state, action, task)
    if not isinstance(found, tuple) or len(found) != 6 or not isinstance(found[5], dict):
        told = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
        raise TypeError(
            f"step of {name} returns {told}; expected a tuple of observation, state, "
            "reward, terminated, truncated and info, which is a dict."
        )
    observation, after, reward, terminated, truncated, _ = found
    for what, value in (("reset", first), ("step", observation)):
        if value.shape != (environment.observation_size,):
            raise ValueError(
                f"{what} of {name} gives an observation of shape {value.shape}; expected "
                f"({environment.observation_size},), its observation_size."
            )
        if value.dtype != first.dtype or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{what} of {name} gives an observation of {value.dtype}; expected floats, "
                "of one kind in reset and step."
            )
    if reward.shape != () or not jnp.issubdtype(reward.dtype, jnp.floating):
        raise ValueError(
            f"step of {name} gives a reward {reward.dtype}{list(reward.shape)}; expected "
            "a float scalar."
        )
    for what, flag in (("terminated", terminated), ("truncated", truncated)):
        if flag.shape != () or flag.dtype != bool:
            raise ValueError(
                f"step of {name} gives {what} {flag.dtype}{list(flag.shape)}; expected a "
                "bool scalar."
            )
    kind = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
    if kind(state) != kind(after):
        raise ValueError(
            f"the state of {name} is {kind(state)} after reset and {kind(after)} after a "
            "step; expected the same arrays, for episodes are loops of the device."
        )


def _check_actions(environment: Environment) -> None:
    """Raises a `TypeError` or a `ValueError` unless the actions are of a known kind."""
    actions, name = environment.actions, environment.name
    if isinstance(actions, Discrete):
        checks.whole_number(f"number of actions of {name}", actions.num, least=1)
    elif isinstance(actions, Continuous):
        checks.whole_number(f"size of the actions of {name}", actions.size, least=1)
        checks.number(f"bound of the actions of {name}", actions.bound, positive=True)
    else:
        raise TypeError(
            f"actions of {name} are {actions!r}; expected Discrete(num) or "
            "Continuous(size, bound)."
        )


def no_action(actions: Discrete | Continuous) -> Array:
    """An action for shapes: number 0, or a vector of zeros."""
    if isinstance(actions, Discrete):
        return jnp.zeros((), jnp.int32)
    return jnp.zeros((actions.size,))


def clipped(action: Array, actions: Continuous) -> Array:
    """The action within the bounds of an environment."""
    return jnp.clip(action, -actions.bound, actions.bound)
