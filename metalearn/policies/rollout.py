"""Episodes of one task under a policy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from metalearn.core import kinds, loops
from metalearn.core.keys import check_key
from metalearn.core.types import Array, Key, PyTree
from metalearn.environments.environment import Discrete, Environment
from metalearn.policies.policy import Policy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectories:
    """E episodes of at most H steps; a batch of tasks has a leading axis `[T]`.

    A step is valid if the episode had not ended before it; the step that ends an episode is
    its last valid one. After it the state stays as it is.

    Attributes:
      observations: Observations that the actions answer, float `[E, H, D]`.
      actions: Actions, int32 `[E, H]` or float `[E, H, size]`. Those of invalid steps are
        draws at the last state, so that their log-probabilities are finite.
      rewards: Rewards, float `[E, H]`; 0 at invalid steps.
      mask: Mask of the valid steps, bool `[E, H]`.
      terminated: Flag of the episodes after which no reward can follow, bool `[E]`. The
        others were truncated, or ran to the horizon.
      log_probs: Log-probabilities of the actions under the policy that drew them, float
        `[E, H]`; 0 at invalid steps.
      last_observation: Observation after the last valid step, float `[E, D]`.
      info: Further numbers of the environment, `[E, H, ...]`; 0 at invalid steps.
    """

    observations: Array
    actions: Array
    rewards: Array
    mask: Array
    terminated: Array
    log_probs: Array
    last_observation: Array
    info: dict[str, Array]


def rollout(
    environment: Environment,
    policy: Policy,
    params: PyTree,
    task: PyTree,
    key: Key,
    episodes: int,
) -> Trajectories:
    """Episodes of one task under a policy; for several tasks use `jax.vmap`.

    No derivative flows through it: the derivative of an expected return by the policy is
    that of a surrogate (see `metalearn.policies.surrogates`) of `log_probs`.

    Args:
      environment: Environment with `horizon` H.
      policy: Policy that acts.
      params: Parameters of the policy.
      task: Parameters of the task, as of `environment.task`.
      key: Key of all draws. Episode `i` depends on the key and on `i` only.
      episodes: Number E of episodes.

    Returns:
      Trajectories of E episodes, padded to H steps.

    Raises:
      TypeError: no `Environment`, no `Policy` or no key.
      ValueError: `episodes` is no count.

    Example:
      >>> seen = rollout(  # doctest: +SKIP
      ...     environment, policy, params, task, jax.random.key(0), 20
      ... )
    """
    episodes = kinds.count("episodes", episodes)
    numbers = jnp.arange(episodes)
    same = lambda leaf: jnp.broadcast_to(
        jnp.asarray(leaf)[None], (episodes, *jnp.shape(leaf))
    )
    inputs = {"task": jax.tree.map(same, task), "episode": numbers}
    return play(environment, policy, params, inputs, key)


def play(
    environment: Environment, policy: Policy, params: PyTree, inputs: PyTree, key: Key
) -> Trajectories:
    """An episode for each input of a set of examples; see `ml.environments.episodes`.

    Args:
      environment: Environment with `horizon` H.
      policy: Policy that acts.
      params: Parameters of the policy.
      inputs: Inputs `{"task": parameters [E, ...], "episode": int [E]}`. The number of an
        episode is what its draws are made of, beside the key: an input has the same episode
        wherever it stands.
      key: Key of all draws.

    Returns:
      Trajectories of E episodes, padded to H steps.

    Raises:
      TypeError: no `Environment`, no `Policy` or no key; or other inputs.
      ValueError: the tasks are those of another environment, as far as shapes tell, or the
        policy is one for other observations or actions.

    Example:
      >>> tasks = ml.environments.episodes(environment)  # doctest: +SKIP
      >>> seen = play(environment, policy, params, task.support.x, key)  # doctest: +SKIP
    """
    kinds.instance(environment, Environment, "environment", "Make one, e.g. navigation().")
    kinds.instance(policy, Policy, "policy", "Make one: policy_for(environment).")
    check_key(key)
    if not isinstance(inputs, dict) or inputs.keys() != {"task", "episode"}:
        told = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise TypeError(
            f"inputs are {told}; expected {{'task': ..., 'episode': ...}}, as the tasks of "
            "ml.environments.episodes have them."
        )
    given = jax.tree.map(lambda leaf: jnp.shape(leaf)[1:], inputs["task"])
    drawn = jax.eval_shape(environment.task, jax.random.key(0))
    wanted = jax.tree.map(lambda leaf: leaf.shape, drawn)
    if given != wanted:
        raise ValueError(
            f"the task has shapes {given}; expected {wanted}, those of the parameters of "
            f"{environment.name}. Draw tasks of the environment that is played."
        )
    _check_policy(environment, policy, params)
    # A draw has no useful derivative: actions would pass on that of the reparametrisation,
    # which a surrogate of log-probabilities would count a second time. Stopped where they
    # enter, so that the loop over steps is not differentiated at all.
    params, inputs = jax.lax.stop_gradient((params, inputs))

    def episode(task: PyTree, number: Array) -> Trajectories:
        return _episode(environment, policy, params, task, jax.random.fold_in(key, number))

    return jax.vmap(episode)(inputs["task"], inputs["episode"])


def _check_policy(environment: Environment, policy: Policy, params: PyTree) -> None:
    """Raises a `ValueError` unless the policy acts in this environment, by its shapes."""
    seen = jax.ShapeDtypeStruct((environment.observation_size,), jnp.float32)
    actions, name = environment.actions, environment.name
    try:
        law = jax.eval_shape(policy.apply, params, seen)
    except TypeError as error:
        raise ValueError(
            f"the policy's params do not take observations [{seen.shape[0]}] of {name}; "
            "expected those of policy.init(key, environment) of this environment."
        ) from error
    size = actions.num if isinstance(actions, Discrete) else actions.size
    given = next((leaf.shape[-1:] for leaf in jax.tree.leaves(law)), None)
    if given != (size,):
        raise ValueError(
            f"the policy has {given} numbers of an action, and {name} has {actions}; "
            "expected params of policy.init(key, environment) of this environment."
        )


def _episode(
    environment: Environment, policy: Policy, params: PyTree, task: PyTree, key: Key
) -> Trajectories:
    def step(carry: tuple, key: Key) -> tuple[tuple, tuple]:
        observation, state, running, terminated = carry
        k_action, k_step = jax.random.split(key)
        law = policy.apply(params, observation)
        action = law.sample(k_action)
        log_prob = law.log_prob(action)
        following, after, reward, ended, out_of_time, info = environment.step(
            k_step, state, action, task
        )
        keep = lambda new, old: jnp.where(running, new, old)
        zero = lambda value: jnp.where(running, value, jnp.zeros_like(value))
        # A law of NaN still draws an action, the first of several, which may pay well.
        reward = jnp.where(jnp.isnan(log_prob), jnp.nan, reward)
        seen = (
            observation,
            action,
            zero(reward),
            running,
            zero(log_prob),
            jax.tree.map(zero, info),
        )
        carry = (
            keep(following, observation),
            jax.tree.map(keep, after, state),
            running & ~(ended | out_of_time),
            terminated | (running & ended),
        )
        return carry, seen

    k_reset, k_steps = jax.random.split(key)
    observation, state = environment.reset(k_reset, task)
    start = (observation, state, jnp.ones((), bool), jnp.zeros((), bool))
    keys = jax.random.split(k_steps, environment.horizon)
    (last, _, _, terminated), seen = loops.scan(step, start, keys)
    observations, actions, rewards, mask, log_probs, info = seen
    return Trajectories(
        observations=observations,
        actions=actions,
        rewards=rewards,
        mask=mask,
        terminated=terminated,
        log_probs=log_probs,
        last_observation=last,
        info=info,
    )


def log_probs(policy: Policy, params: PyTree, trajectories: Trajectories) -> Array:
    """Log-probabilities of the actions of trajectories under a policy.

    They are differentiable in the params, and what surrogates are made of. At the params
    that acted they are `trajectories.log_probs` up to rounding.

    Args:
      policy: Policy to ask.
      params: Parameters of the policy.
      trajectories: Trajectories of one task, of any policy.

    Returns:
      Log-probabilities, float `[E, H]`; 0 at invalid steps.

    Example:
      >>> logs = log_probs(policy, params, trajectories)  # doctest: +SKIP
    """
    law = policy.apply(params, trajectories.observations)
    return jnp.where(trajectories.mask, law.log_prob(trajectories.actions), 0.0)


def returns(trajectories: Trajectories) -> Array:
    """Undiscounted returns of the episodes, float `[E]`.

    Example:
      >>> best = returns(trajectories).max()  # doctest: +SKIP
    """
    return jnp.sum(jnp.where(trajectories.mask, trajectories.rewards, 0.0), axis=-1)


def mean_return(trajectories: Trajectories) -> Array:
    """The mean of the undiscounted returns over the episodes that have a valid step.

    Example:
      >>> score = mean_return(trajectories)  # doctest: +SKIP
    """
    played = jnp.any(trajectories.mask, axis=-1)
    total = jnp.sum(returns(trajectories), axis=-1)
    return total / jnp.maximum(jnp.sum(played, axis=-1, dtype=total.dtype), 1)


def first_nonfinite(trajectories: Trajectories) -> Array:
    """The first step at which a number of an episode is not finite.

    It looks at observations, actions, log-probabilities and rewards of valid steps, and at
    the last observation, which counts as the step after the last valid one. It stays on the
    device, so that a caller may report it with its metrics.

    Args:
      trajectories: Trajectories of one task.

    Returns:
      The least number of a step over the episodes, int32; -1 if all numbers are finite.

    Example:
      >>> step = first_nonfinite(trajectories)  # doctest: +SKIP
    """
    mask = trajectories.mask
    episodes, horizon = mask.shape

    def bad(values: Any) -> Array:
        wrong = ~jnp.isfinite(values)
        return jnp.any(wrong.reshape((episodes, horizon, -1)), axis=-1)

    wrong = bad(trajectories.observations) | bad(trajectories.actions)
    wrong |= bad(trajectories.log_probs) | bad(trajectories.rewards)
    never = horizon + 1
    steps = jnp.where(wrong & mask, jnp.arange(horizon)[None], never)
    last = ~jnp.all(jnp.isfinite(trajectories.last_observation), axis=-1)
    after = jnp.where(last, jnp.sum(mask, axis=-1), never)
    first = jnp.minimum(jnp.min(steps), jnp.min(after))
    return jnp.where(first == never, -1, first).astype(jnp.int32)
