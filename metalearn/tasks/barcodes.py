"""Bandits that come back: each has a barcode by which an agent can know it again."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from metalearn.core import checks
from metalearn.core.task import Examples, Task, TaskSampler
from metalearn.core.types import Key, PyTree

MOST_BITS = 16  # all codes are shuffled to draw different ones


def barcodes(
    num_contexts: int = 10,
    episodes: int = 50,
    *,
    bits: int = 10,
    arms: int = 10,
    num_new: int = 10,
) -> TaskSampler:
    """Episodes of bandits, of which each is met several times (Ritter et al. 2018).

    A task is an epoch. It has its own bandits, each with a random code and one good arm, so
    that nothing of them can be learned across tasks. The support set is a sequence of
    episodes in random order; the bandits occur in it equally often, up to one episode, and
    so do the good arms among its bandits. The query set has one more episode of each, and
    episodes of new bandits, whose good arms are independent.

    The good arms of the paper are all independent, as far as we know. Equal shares let each
    arm be the best one of some bandit; otherwise `evaluate` warns of arms that are not.

    How often an arm pays is up to the learner that pulls it, such as `ml.episodic_lstm`.

    Args:
      num_contexts: Number of bandits in the support set.
      episodes: Number N of episodes in the support set, `num_contexts` at least.
      bits: Length B of a code, up to 16.
      arms: Number of arms, W.
      num_new: Number of new bandits in the query set.

    Returns:
      A sampler of tasks. They have the codes `x`, float32 `[N, B]` of -1 and 1, and the
      good arms `y`, int32 `[N]`; the query set has `Q = num_contexts + num_new` rows.
      `info` has `context`, int32 `[N]`, the number of the bandit of each episode, and
      `recurring`, bool `[Q]`, queries whose bandit occurs in the support set.

    Raises:
      ValueError: a number is out of range, or there are not as many codes as bandits.

    Example:
      >>> task = barcodes(num_contexts=3, episodes=9, arms=2)(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.shape
      ((9, 10), (13, 10))
    """
    checks.whole_number("num_contexts", num_contexts, least=1)
    checks.whole_number("episodes", episodes, least=num_contexts)
    checks.whole_number("bits", bits, least=1)
    checks.whole_number("arms", arms, least=2)
    checks.whole_number("num_new", num_new, least=0)
    num = num_contexts + num_new
    if bits > MOST_BITS or num > 2**bits:
        raise ValueError(
            f"bits is {bits}, for {num} bandits; expected at most {MOST_BITS} bits, and at "
            "least as many codes as bandits."
        )

    return _sampler(num_contexts, episodes, bits, arms, num_new)


# Behind the checks: to a cache 3.0 and True are the numbers 3 and 1.
@functools.lru_cache
def _sampler(
    num_contexts: int, episodes: int, bits: int, arms: int, num_new: int
) -> TaskSampler:
    num = num_contexts + num_new

    def sample(data: PyTree, key: Key) -> Task:
        del data
        k_code, k_arm, k_name, k_new, k_order = jax.random.split(key, 5)
        numbers = jax.random.permutation(k_code, 2**bits)[:num]
        digits = (numbers[:, None] >> jnp.arange(bits)[None]) & 1
        # Signs, because a code of zeros has no direction to compare.
        codes = (2 * digits - 1).astype(jnp.float32)
        shares = jnp.arange(num_contexts, dtype=jnp.int32) % arms
        # Of new names, because the first ones may have a larger share.
        names = jax.random.permutation(k_name, jnp.arange(arms, dtype=jnp.int32))
        known = names[jax.random.permutation(k_arm, shares)]
        new = jax.random.randint(k_new, (num_new,), 0, arms, jnp.int32)
        good = jnp.concatenate([known, new])
        rounds = jnp.arange(episodes, dtype=jnp.int32) % num_contexts
        order = jax.random.permutation(k_order, rounds)
        return Task(
            support=Examples.of(codes[order], good[order]),
            query=Examples.of(codes, good),
            info={"context": order, "recurring": jnp.arange(num) < num_contexts},
        )

    return TaskSampler(sample, (), f"barcodes-{num_contexts}of{bits}bits-{arms}arms")
