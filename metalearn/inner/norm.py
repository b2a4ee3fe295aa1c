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

Noise such as dropout is on in meta-training and off in adaptation and prediction at test,
under every policy. Under `"support"` and `"batch"` adaptation at test normalises by the
batch, which a module knows from training only; `core.model.run` has the statistics without
the noise. A model of your own that cannot have one without the other is refused.

State that is no running average, such as a running maximum, is refused under `"support"`,
see `metalearn.inner.averages`.

Meta-Dataset (Triantafillou et al., 2020) uses `"support"`, the code of MAML (Finn et al.,
2017) uses `"batch"`, and MAML++ (Antoniou et al., 2019) uses `"per_step"`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from metalearn.core import checks, probe, trees
from metalearn.core.model import Model, Variables, kept_without_rows, run
from metalearn.core.types import PyTree
from metalearn.inner.averages import batch_statistics, kinds

NormPolicy = Literal["support", "batch", "running", "per_step"]
# Of a model that takes no inner step.
JointNorm = Literal["support", "batch", "running"]
NORM_POLICIES: tuple[str, ...] = get_args(NormPolicy)
# By statistics of the batch at test too.
ALWAYS_BATCH = ("support", "batch")


class Normaliser(NamedTuple):
    """Functions that apply a model in a task under one policy.

    Attributes:
      init: Function `(variables, x) -> state` that makes the learner's state from the
        variables of a fresh model, and checks that the policy suits the model.
      support: Function `(params, state, support, step, *, key, train) -> (outputs,
        new_state)`: the forward pass of inner step `step`. The new state belongs to this
        step alone.
      settle: Function `(params, state, support, *, key) -> state` that makes the state for
        `query`.
      query: Function `(params, settled, x, *, key, train, mask) -> (outputs, new_state)`.
      collect: Function `(state, support_states [S, ...], query_state) -> state`: the
        learner's state after a training task.
    """

    init: Callable[[Variables, PyTree], PyTree]
    support: Callable[..., tuple[PyTree, PyTree]]
    settle: Callable[..., PyTree]
    query: Callable[..., tuple[PyTree, PyTree]]
    collect: Callable[[PyTree, PyTree, PyTree], PyTree]


def normaliser(model: Model, policy: NormPolicy, num_steps: int) -> Normaliser:
    """Functions that apply `model` under a policy of `NORM_POLICIES`.

    Raises:
      TypeError: `model` is not a `Model`.
      ValueError: unknown policy; in `init`, `support`, `settle` and `query`: the model has
        noise that cannot be had without its batch statistics, state that is no average, or
        running averages that it reads where it normalises by the batch.
    """
    checks.model(model)
    if policy not in NORM_POLICIES:
        raise ValueError(
            f"norm is {policy!r}; expected one of {', '.join(NORM_POLICIES)}. It says "
            "which statistics batch norm uses; see metalearn.inner.norm."
        )
    per_step = policy == "per_step"
    always_batch = policy in ALWAYS_BATCH

    def apply(params, state, x, *, key, noise, batch, mask):
        if batch and not noise:
            check_still(model, params, state, x, policy)
        if batch:  # here too: some learners make the state themselves
            check_alone(model, params, state, x, policy)
        variables = Variables(params=params, state=state)
        outputs, new = run(
            model, variables, x, key=key, noise=noise, batch=batch, mask=mask
        )
        if batch and not always_batch:
            new = kept_without_rows(new, state, mask)
        return outputs, new

    def init(variables: Variables, x: PyTree) -> PyTree:
        state = variables.state
        if always_batch:
            check_still(model, variables.params, state, x, policy)
            check_alone(model, variables.params, state, x, policy)
        if policy == "support" and jax.tree.leaves(state):
            kinds(model, variables.params, state, x)
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
            noise=train,
            batch=train or always_batch,
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
        batch = {"support": False, "batch": True}.get(policy, train)
        return apply(params, settled, x, key=key, noise=train, batch=batch, mask=mask)

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


_STILL: weakref.WeakKeyDictionary[Any, set] = weakref.WeakKeyDictionary()


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


def check_still(
    model: Model, params: PyTree, state: PyTree, x: PyTree, policy: NormPolicy
) -> None:
    """Checks that a model can normalise by a batch without drawing at random.

    Raises:
      ValueError: it cannot, so adaptation at test would have dropout.
    """
    if not jax.tree.leaves(state):
        return  # nothing to normalise by but the batch at hand
    asked = probe.signature(params, state, x)
    known = probe.memory(_STILL, model.split or model.apply, set)
    if asked in known:
        return

    def pass_(noise: bool) -> probe.Pass:
        def go(params, state, x, key):
            variables = Variables(params=params, state=state)
            return run(model, variables, x, key=key, noise=noise, batch=True)

        return go

    still = probe.trace(pass_(False), params, state, x)
    if probe.draws(pass_(False), params, state, x, still):
        raise ValueError(
            f"norm={policy!r} normalises by the batch in adaptation at test as well, but "
            f"this {model} draws at random in that pass, and one flag switches both. Give "
            "it a function that has them apart, ml.Model(init, apply, split); or choose "
            "norm='running', or a model without running averages (group or layer norm)."
        )
    if model.split is not None and not all(still.moved()):
        full = probe.trace(pass_(True), params, state, x)
        lost = set(probe.moved_paths(full, state, real=True))
        lost -= set(probe.moved_paths(still, state, real=True))
        if lost:
            raise ValueError(
                f"norm={policy!r} normalises by the batch in adaptation at test as well, "
                f"but {model} has layers of its own whose statistics ({sorted(lost)[0]}) "
                "and whose noise one flag switches. Use nn.Dropout and nn.BatchNorm, give "
                "noise a flag of its own (`deterministic`), choose norm='running', or a "
                "model without running averages (group or layer norm)."
            )
    known.add(asked)


_ALONE: weakref.WeakKeyDictionary[Any, set] = weakref.WeakKeyDictionary()


def check_alone(
    model: Model, params: PyTree, state: PyTree, x: PyTree, policy: NormPolicy
) -> None:
    """Checks that where a model normalises by the batch it reads no running average.

    What is no average, such as the vector of a spectral norm, may be read. An average is
    what decays by a constant of the program; others are not found.

    Raises:
      ValueError: it does, so that the policy would not be what it says; where no query
        teaches the averages, the model would read those of a fresh one for ever.
    """
    if policy not in ALWAYS_BATCH or not jax.tree.leaves(state):
        return
    asked = probe.signature(params, state, x)
    known = probe.memory(_ALONE, model.split or model.apply, set)
    if asked in known:
        return

    def pass_(params, state, x, key):
        variables = Variables(params=params, state=state)
        return run(model, variables, x, key=key, noise=False, batch=True)

    traced = probe.trace(pass_, params, state, x)
    read = set().union(*(flow.sources for flow in traced.outputs))
    for path, flow, i in zip(trees.leaf_paths(state), traced.state, traced.old):
        if i in read and flow.same != i and 0 <= flow.slopes.get(i, -1) < 1:
            raise ValueError(
                f"norm={policy!r} normalises by the batch at hand, but {model} reads the "
                f"running average {path} there, as batch renormalisation does. Choose "
                "norm='running', or a model with batch norm or group norm."
            )
    known.add(asked)
