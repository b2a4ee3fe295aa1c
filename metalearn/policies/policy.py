"""Policies: fully connected networks from observations to distributions of actions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds
from metalearn.core.keys import check_key
from metalearn.core.types import Array, Key, PyTree
from metalearn.environments.environment import Continuous, Discrete, Environment
from metalearn.policies.distributions import Categorical, DiagonalGaussian, Distribution

HEAD_SCALE = 0.01  # of the last layer, against that of the layers before it


class PolicyInit(Protocol):
    def __call__(self, key: Key, environment: Environment, /) -> PyTree:
        """Parameters for the observations and actions of an environment."""


class PolicyApply(Protocol):
    def __call__(self, params: PyTree, observations: Array, /) -> Distribution:
        """Distribution of the actions at observations `[..., D]`."""
        ...


class Policy(NamedTuple):
    """A policy as two pure functions.

    Attributes:
      init: Function `(key, environment) -> params`.
      apply: Function `(params, observations [..., D]) -> distribution`, whose leading axes
        are those of the observations.
    """

    init: PolicyInit
    apply: PolicyApply


def gaussian_policy(
    widths: Sequence[int] = (64, 64),
    activation: Callable[[Array], Array] = jnp.tanh,
    *,
    log_std: float = 0.0,
    least_log_std: float = -13.8,
) -> Policy:
    """A policy of continuous actions: a network gives the mean, one vector the spread.

    The spread does not depend on the observation (Duan et al. 2016). The last
    layer starts small, so that early actions are close to noise around 0.

    Args:
      widths: Sizes of the hidden layers, possibly none.
      activation: Function between the layers.
      log_std: Logarithm of the standard deviation that training starts from.
      least_log_std: Least logarithm of the standard deviation; -13.8 is one of 1e-6. A
        learned value below it counts as it and has no derivative.

    Returns:
      A policy. Its params are a flat dict: `hidden_0_kernel`, `hidden_0_bias`, ...,
      `head_kernel`, `head_bias` and `log_std`. Equal settings give the same policy.

    Raises:
      TypeError: `activation` is no function of one argument. `init` raises it too, for
        discrete actions.
      ValueError: a width is no count, a logarithm is not finite, or `log_std` is below
        `least_log_std`.

    Example:
      >>> policy = ml.policies.gaussian_policy((32,), log_std=-0.5)
    """
    sizes = _sizes(widths)
    kinds.function("activation", activation, ("x",), "jnp.tanh")
    checks.number("log_std", log_std, signed=True)
    checks.number("least_log_std", least_log_std, signed=True)
    if log_std < least_log_std:
        raise ValueError(
            f"log_std is {log_std}, below least_log_std, {least_log_std}; expected a start "
            "at or above it, for below it the spread is not learned. Lower least_log_std."
        )
    return _gaussian(sizes, activation, float(log_std), float(least_log_std))


def categorical_policy(
    widths: Sequence[int] = (64, 64), activation: Callable[[Array], Array] = jnp.tanh
) -> Policy:
    """A policy of discrete actions: a network gives their logits.

    The last layer starts small, so that early actions are close to uniform.

    Args:
      widths: Sizes of the hidden layers, possibly none.
      activation: Function between the layers.

    Returns:
      A policy. Its params are a flat dict: `hidden_0_kernel`, `hidden_0_bias`, ...,
      `head_kernel` and `head_bias`. Equal settings give the same policy.

    Raises:
      TypeError: `activation` is no function of one argument. `init` raises it too, for
        continuous actions.
      ValueError: a width is no count.

    Example:
      >>> policy = ml.policies.categorical_policy((32,))
    """
    sizes = _sizes(widths)
    kinds.function("activation", activation, ("x",), "jnp.tanh")
    return _categorical(sizes, activation)


def policy_for(
    environment: Environment, widths: Sequence[int] = (64, 64), *, log_std: float = 0.0
) -> Policy:
    """The policy that fits the actions of an environment.

    Args:
      environment: Environment whose actions decide.
      widths: Sizes of the hidden layers, possibly none.
      log_std: Logarithm of the standard deviation of continuous actions at the start. Where
        it is far beyond their bound, all are clipped to it.

    Returns:
      A `categorical_policy` for discrete actions, a `gaussian_policy` for continuous ones.

    Raises:
      TypeError: no `Environment`, or actions of another kind.
      ValueError: a width is no count.

    Example:
      >>> policy = policy_for(environment)  # doctest: +SKIP
      >>> params = policy.init(jax.random.key(0), environment)  # doctest: +SKIP
    """
    kinds.instance(environment, Environment, "environment", "Make one, e.g. navigation().")
    if isinstance(environment.actions, Discrete):
        return categorical_policy(widths)
    if isinstance(environment.actions, Continuous):
        return gaussian_policy(widths, log_std=log_std)
    raise TypeError(
        f"actions of {environment.name} are a {type(environment.actions).__name__}; "
        "expected Discrete or Continuous. Write a Policy(init, apply) of your own."
    )


# Behind the checks: to a cache 3.0 and True are the numbers 3 and 1.
@functools.lru_cache
def _gaussian(
    widths: tuple[int, ...],
    activation: Callable[[Array], Array],
    log_std: float,
    least_log_std: float,
) -> Policy:
    def init(key: Key, environment: Environment) -> PyTree:
        size = _actions(environment, Continuous, "categorical_policy").size
        params = _layers(key, (environment.observation_size, *widths, size))
        # With a dtype of its own: a weak one would become another in the first update.
        spread = jnp.full((size,), log_std, params["head_bias"].dtype)
        return {**params, "log_std": spread}

    def apply(params: PyTree, observations: Array) -> DiagonalGaussian:
        mean = _network(params, observations, len(widths), activation)
        spread = jnp.maximum(params["log_std"], least_log_std)
        return DiagonalGaussian(mean, jnp.broadcast_to(spread, mean.shape))

    return Policy(init, apply)


@functools.lru_cache
def _categorical(widths: tuple[int, ...], activation: Callable[[Array], Array]) -> Policy:
    def init(key: Key, environment: Environment) -> PyTree:
        num = _actions(environment, Discrete, "gaussian_policy").num
        return _layers(key, (environment.observation_size, *widths, num))

    def apply(params: PyTree, observations: Array) -> Categorical:
        return Categorical(_network(params, observations, len(widths), activation))

    return Policy(init, apply)


def _sizes(widths: Any) -> tuple[int, ...]:
    if not isinstance(widths, (tuple, list)):
        raise ValueError(
            f"widths is {widths!r}; expected sizes of the hidden layers, such as (64, 64)."
        )
    return tuple(kinds.count("a width of widths", width) for width in widths)


def _actions(environment: Any, kind: type, other: str) -> Any:
    """The actions of an environment, if they are of the kind that a policy takes."""
    kinds.instance(environment, Environment, "environment", "Make one, e.g. navigation().")
    kinds.instance(
        environment.actions,
        kind,
        f"the action space of {environment.name}",
        f"Take {other}(), or policy_for(environment).",
    )
    return environment.actions


def _layers(key: Key, sizes: Sequence[int]) -> dict[str, Array]:
    """Weights by Glorot and Bengio 2010, those of the last layer smaller; biases of 0."""
    check_key(key)
    keys = jax.random.split(key, len(sizes) - 1)
    params = {}
    for at, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        last = at == len(sizes) - 2
        name = "head" if last else f"hidden_{at}"
        kernel = jax.nn.initializers.glorot_uniform()(keys[at], (rows, columns))
        params[f"{name}_kernel"] = kernel * (HEAD_SCALE if last else 1.0)
        params[f"{name}_bias"] = jnp.zeros((columns,))
    return params


def _network(
    params: dict[str, Array],
    observations: Array,
    hidden: int,
    activation: Callable[[Array], Array],
) -> Array:
    x = observations
    for at in range(hidden):
        x = activation(_dense(params, f"hidden_{at}", x))
    return _dense(params, "head", x)


def _dense(params: dict[str, Array], name: str, x: Array) -> Array:
    bias = jnp.expand_dims(params[f"{name}_bias"], tuple(range(x.ndim - 1)))
    return x @ params[f"{name}_kernel"] + bias
