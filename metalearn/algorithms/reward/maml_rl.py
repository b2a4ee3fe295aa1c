"""MAML for reinforcement learning: a policy that a few policy gradients adapt to a task.

C. Finn, P. Abbeel, S. Levine. Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks. ICML 2017, section 5.3. The surrogates whose second derivatives are right:
J. Foerster et al., DiCE, ICML 2018; J. Rothfuss et al., ProMP, ICLR 2019.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from metalearn.core import checks, kinds, loops, losses, metrics
from metalearn.core.estimators import gradient_estimator
from metalearn.core.keys import check_key
from metalearn.core.learner import MetaLearner, config_of
from metalearn.core.model import Variables
from metalearn.core.task import Examples, Task
from metalearn.core.types import Array, Key, PyTree, TaskChunk
from metalearn.environments.environment import Environment
from metalearn.policies import (
    Policy,
    Trajectories,
    dice,
    discounted_returns,
    gae,
    likelihood_ratio,
    linear_baseline,
    log_probs,
    normalised,
    play,
    returns,
)

Surrogate = Literal["likelihood_ratio", "dice"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedPolicy:
    """A policy after its updates.

    Attributes:
      params: Parameters of the policy.
    """

    params: PyTree


def maml_rl(
    environment: Environment,
    policy: Policy,
    *,
    inner_rate: float = 0.1,
    num_steps: int = 1,
    surrogate: Surrogate = "likelihood_ratio",
    discount: float = 0.99,
    trace: float = 1.0,
    task_chunk: TaskChunk = "auto",
) -> MetaLearner:
    """Policy gradients on episodes of a task adapt the policy, and MAML learns its start.

    Tasks are those of `ml.environments.episodes` or `neighbours`: an example is an episode.
    In each inner step the policy plays the episodes of the support set anew and ascends
    the surrogate; the prediction of a query is the undiscounted return of an episode of the
    adapted policy, without any update. The outer gradient is that of the
    policy gradient's surrogate on the query episodes, through all inner steps.

    Advantages are those of `ml.policies.gae` over a linear baseline that is fitted to the
    episodes of each step (Duan et al. 2016), normalised within a task. Episodes end at the
    horizon, so that nothing is hoped for after it. The meta-gradient leaves out how the
    policy at the start chooses what is adapted on (`ml.policies.exploration_term`), as the
    paper does.

    Differs from the paper: the outer optimiser is one of optax, where the paper takes TRPO.
    Of the inner surrogates "dice" keeps the term of the second derivative that
    "likelihood_ratio" drops for less variance. The baseline of the same episodes,
    normalised advantages and the mean over steps bias both. Where valid steps are hardly
    more than the baseline's 2 D + 4 weights, little is left of the advantages.

    Args:
      environment: Environment whose parameters the tasks are.
      policy: Policy to learn, e.g. `ml.policies.policy_for(environment)`.
      inner_rate: Rate of the inner updates; the surrogate is a mean over steps.
      num_steps: Number of inner updates, each on new episodes; 0 does not adapt.
      surrogate: Surrogate of the inner updates: "likelihood_ratio" or "dice".
      discount: Factor of the next step's reward in advantages, from 0 to 1.
      trace: Lambda of generalised advantages, from 0 to 1.
      task_chunk: Tasks handled at once, or "auto".

    Returns:
      A `MetaLearner`, whose `adapt` and `predict` need a key. It reports the mean returns
      `support/return`, before the first update, and `query/return`.

    Raises:
      TypeError: no `Environment` or no `Policy`.
      ValueError: an option is out of range.

    Example:
      >>> environment = ml.environments.navigation()
      >>> learner = ml.maml_rl(environment, ml.policies.policy_for(environment))
      >>> tasks = ml.environments.episodes(environment, num_support=20)
      >>> told = {"query/return": ml.metrics.mean_return}
      >>> held_back = ml.Validation(tasks=tasks, metrics=told, metric="query/return")
    """
    kinds.instance(environment, Environment, "environment", "Make one, e.g. navigation().")
    kinds.instance(policy, Policy, "policy", "Make one: policy_for(environment).")
    checks.number("inner_rate", inner_rate)
    num_steps = kinds.count("num_steps", num_steps, least=0)
    checks.one_of("surrogate", surrogate, ("likelihood_ratio", "dice"))
    checks.share("discount", discount)
    checks.share("trace", trace)

    numbers = dict(surrogate=surrogate, discount=discount, trace=trace)
    own = Updates(
        environment=environment, policy=policy, rate=inner_rate, num=num_steps, **numbers
    )

    def init(key: Key, task: Task) -> Variables:
        checks.one_task(task, key)
        return Variables(params={"policy": policy.init(key, environment)}, state={})

    def adapt(
        variables: Variables, support: Examples, *, key: Key | None = None
    ) -> AdaptedPolicy:
        kinds.adaptation(variables, support, ("policy",))
        needs_key(key, "adapt(variables, support")
        return AdaptedPolicy(
            params=own.adapted(variables.params["policy"], support, key)[0]
        )

    def predict(
        adapted: AdaptedPolicy,
        x: PyTree,
        *,
        key: Key | None = None,
        mask: Array | None = None,
    ) -> Array:
        del mask
        kinds.adapted(adapted, AdaptedPolicy)
        needs_key(key, "predict(adapted, x")
        return returns(play(environment, policy, adapted.params, x, key))

    def objective(variables: Variables, task: Task, *, key: Key):
        k_before, k_after = jax.random.split(key)
        params, before = own.adapted(variables.params["policy"], task.support, k_before)
        seen = own.seen(params, task.query, k_after)
        value = metrics.mean_return(returns(seen), task.query)
        told = {"query/return": value, "query/loss": -value}
        if num_steps:
            told["support/return"] = before[0]
        # The value of a surrogate is no loss; what counts is its derivative.
        return -own.gain(params, seen, "likelihood_ratio"), (variables.state, told)

    return MetaLearner(
        init,
        adapt,
        predict,
        gradient_estimator(objective, task_chunk=task_chunk),
        config_of(
            "maml_rl",
            environment=environment.name,
            inner_rate=inner_rate,
            num_steps=num_steps,
            **numbers,
        ),
        losses.negative_return,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Updates:
    """The inner loop: episodes of a task, and the updates that they make.

    Attributes:
      environment: Environment that is played.
      policy: Policy that plays.
      rate: Rate of the updates.
      num: Number of updates, S.
      surrogate: Surrogate that they ascend.
      discount: Factor of the next step's reward.
      trace: Lambda of generalised advantages.
    """

    environment: Environment
    policy: Policy
    rate: float
    num: int
    surrogate: Surrogate
    discount: float
    trace: float

    def seen(self, params: PyTree, examples: Examples, key: Key) -> Trajectories:
        """Episodes of a set of examples."""
        seen = play(self.environment, self.policy, params, examples.x, key)
        # Padded rows have played too, but nothing of them counts.
        mask = seen.mask & examples.mask[:, None]
        return dataclasses.replace(seen, mask=mask)

    def gain(self, params: PyTree, seen: Trajectories, how: Surrogate) -> Array:
        """A surrogate of the return of a policy, of episodes that it has played."""
        advantages = advantages_of(seen, self.discount, self.trace)
        logs = log_probs(self.policy, params, seen)
        if how == "dice":
            return dice(logs, advantages, seen.mask, over="steps")
        return likelihood_ratio(logs, seen.log_probs, advantages, seen.mask, over="steps")

    def adapted(self, params: PyTree, support: Examples, key: Key) -> tuple[PyTree, Array]:
        """The params after all updates, and the mean return before each, `[S]`."""

        def step(params: PyTree, key: Key) -> tuple[PyTree, Array]:
            seen = self.seen(params, support, key)
            slope = jax.grad(self.gain)(params, seen, self.surrogate)
            params = jax.tree.map(lambda p, g: p + self.rate * g, params, slope)
            return params, metrics.mean_return(returns(seen), support)

        if self.num == 0:
            return params, jnp.zeros((0,))
        return loops.scan(step, params, jax.random.split(key, self.num))


def advantages_of(seen: Trajectories, discount: float, trace: float) -> Array:
    """Advantages over a linear baseline, normalised over the valid steps, `[E, H]`."""
    to_go = discounted_returns(seen.rewards, seen.mask, discount)
    values, last = linear_baseline(
        seen.observations, to_go, seen.mask, seen.last_observation
    )
    # The return up to the horizon is all that counts: a value after it would be hope.
    over = jnp.ones_like(seen.terminated)
    found = gae(seen.rewards, values, last, seen.mask, over, discount, trace)
    return normalised(found, seen.mask)


def needs_key(key: Key | None, call: str) -> None:
    """Raises a `ValueError` if there is no key: episodes are drawn at random."""
    if key is None:
        raise ValueError(
            f"episodes are played with random actions; give a key: {call}, "
            "key=jax.random.key(0))."
        )
    check_key(key)
