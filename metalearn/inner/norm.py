"""Policies of batch normalisation: the statistics that a model with state uses in a task.

A model without state (group norm, layer norm, none) behaves the same under every policy.

| policy | support | query | transductive |
|---|---|---|---|
| `"support"` | batch statistics | statistics of the support set | no |
| `"batch"` | batch statistics | batch statistics of the query set | yes |
| `"running"` | batch in training, running averages at test | the same | no |
| `"per_step"` | as `"running"`, with averages for every inner step | the same | no |

A mask may leave a task without any support example, and so without statistics. The averages
then stay as they are, and the support loss has no gradient. Under `"support"` the queries
are normalised by these unchanged averages (0 and 1, unless the model brought others). All
numbers stay finite if `from_linen` or `from_nnx` passes the mask to the model.

Under `"support"` and `"batch"` the training pass of the model also runs at test. The
training flag then also switches on dropout, so leave dropout out of such models.

Meta-Dataset (Triantafillou et al., 2020) uses `"support"`, the code of MAML (Finn et al.,
2017) uses `"batch"`, and MAML++ (Antoniou et al., 2019) uses `"per_step"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from metalearn.core.model import Model, Variables
from metalearn.core.task import Examples
from metalearn.core.types import Array, PyTree

NormPolicy = Literal["support", "batch", "running", "per_step"]
NORM_POLICIES: tuple[str, ...] = get_args(NormPolicy)


class Normaliser(NamedTuple):
    """Functions that apply a model in a task under one policy.

    Attributes:
      init: Function `state -> state` that makes the learner's state from the state of a
        fresh model.
      support: Function `(params, state, support, step, *, key, train) -> (outputs,
        new_state)`: the forward pass of inner step `step`. The new state belongs to this
        step alone.
      settle: Function `(params, state, support, *, key) -> state` that makes the state for
        `query`.
      query: Function `(params, settled, x, *, key, train, mask) -> (outputs, new_state)`.
      collect: Function `(state, support_states [S, ...], query_state) -> state`: the
        learner's state after a training task.
    """

    init: Callable[[PyTree], PyTree]
    support: Callable[..., tuple[PyTree, PyTree]]
    settle: Callable[..., PyTree]
    query: Callable[..., tuple[PyTree, PyTree]]
    collect: Callable[[PyTree, PyTree, PyTree], PyTree]


def normaliser(model: Model, policy: NormPolicy, num_steps: int) -> Normaliser:
    """Functions that apply `model` under a policy of `NORM_POLICIES`.

    Raises:
      ValueError: unknown policy.
    """
    if policy not in NORM_POLICIES:
        raise ValueError(
            f"norm is {policy!r}; expected one of {', '.join(NORM_POLICIES)}. It says "
            "which statistics batch norm uses; see metalearn.inner.norm."
        )
    per_step = policy == "per_step"
    always_batch = policy in ("support", "batch")

    def apply(params, state, x, *, key, train, mask):
        variables = Variables(params=params, state=state)
        outputs, new = model.apply(variables, x, key=key, train=train, mask=mask)
        if train and mask is not None and not always_batch:
            # `from_linen` lets masked rows stand in if none is valid. The new averages are
            # then finite, but no statistics of the task.
            some = jnp.any(mask)
            new = jax.tree.map(lambda n, s: jnp.where(some, n, s), new, state)
        return outputs, new

    def init(state: PyTree) -> PyTree:
        if not per_step:
            return state
        # One set of averages for each inner step, and one for the query pass.
        return jax.tree.map(lambda s: jnp.stack([s] * (num_steps + 1)), state)

    def support(params, state, examples, step, *, key, train):
        if per_step:
            check_steps(state, num_steps)
            state = jax.tree.map(lambda s: s[step], state)
        return apply(
            params,
            state,
            examples.x,
            key=key,
            train=train or always_batch,
            mask=examples.mask,
        )

    def settle(params, state, examples, *, key):
        if policy == "support" and jax.tree.leaves(state):
            return batch_statistics(model, params, state, examples, key=key)
        if per_step:
            check_steps(state, num_steps)
            return jax.tree.map(lambda s: s[num_steps], state)
        return state

    def query(params, settled, x, *, key, train, mask):
        train = {"support": False, "batch": True}.get(policy, train)
        return apply(params, settled, x, key=key, train=train, mask=mask)

    def collect(state, support_states, query_state):
        if always_batch:
            return state  # nothing ever reads the averages
        if not per_step:
            return query_state
        return jax.tree.map(
            lambda steps, last: jnp.concatenate([steps, last[None]]),
            support_states,
            query_state,
        )

    return Normaliser(init, support, settle, query, collect)


def check_steps(state: PyTree, num_steps: int) -> None:
    """Raises a `ValueError` unless there are averages for every inner step and the query.

    A step beyond the last one would read the averages of the last, without a word.
    """
    for leaf in jax.tree.leaves(state):
        kept = leaf.shape[0] - 1
        if kept < num_steps:
            raise ValueError(
                f"norm='per_step' keeps averages of {kept} inner steps in these variables, "
                f"but the learner takes {num_steps}. Adapt with num_steps={kept}, train "
                f"with num_steps={num_steps}, or choose another norm."
            )


def batch_statistics(
    model: Model, params: PyTree, state: PyTree, examples: Examples, *, key: Any = None
) -> PyTree:
    """The state in which running averages equal the statistics of `examples`.

    This works for any model whose training pass moves each average `s` towards the
    statistic `b` of the batch by `s' = m s + (1 - m) b`, as every batch norm does. One pass
    from `s = 0` and one from a large `s` give `m`, and `m` gives `b`. The second `s` is
    large, so that `m` keeps its digits whatever the size of `b`. The convolutions of both
    passes are the same computation, and the compiler merges them. The result is
    differentiable in `params`. Without a valid row the result is `state`.
    """

    # No weight is above 1, so the threshold 2 means that nothing moves. The test is part of
    # the threshold because an `&` in `solve` was seen to change last digits.
    least = jnp.where(jnp.any(examples.mask), 1e-6, 2.0)

    def moved(fill: float) -> PyTree:
        # Integers, such as counters, have no average to solve for.
        probe = jax.tree.map(
            lambda s: jnp.full_like(s, fill * _large(s)) if _is_float(s) else s, state
        )
        variables = Variables(params=params, state=probe)
        return model.apply(variables, examples.x, key=key, train=True, mask=examples.mask)[
            1
        ]

    def solve(old: Array, from_zero: Array, from_large: Array) -> Array:
        if not _is_float(old):
            return old
        decay = (from_large - from_zero) / _large(old)
        # The decay is a constant of the model. A derivative of this difference could only
        # be rounding error.
        weight = 1 - jax.lax.stop_gradient(decay)
        moves = weight > least
        # A leaf that no pass moves has the weight 0. The unused branch divides by 1 then: a
        # division by 0 would make NaN of the derivative, although its value is dropped.
        return jnp.where(moves, from_zero / jnp.where(moves, weight, 1), old)

    return jax.tree.map(solve, state, moved(0.0), moved(1.0))


def _large(leaf: Array) -> float:
    # A power of two, so that dividing by it is exact; the cube root of the largest number,
    # so that products of it do not overflow.
    return 2.0 ** (jnp.finfo(leaf.dtype).maxexp // 3)


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
