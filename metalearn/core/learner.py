"""The contract of every algorithm: a record of four pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from metalearn.core.types import (
    AdaptFn,
    Array,
    EstimateFn,
    InitFn,
    Metrics,
    PredictFn,
    PyTree,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one batch of tasks says about the outer update.

    Attributes:
      grads: Like `Variables.params`; a gradient or, for Reptile, what stands for one.
      state: Like `Variables.state`, the state after this batch.
      metrics: `{name: [T]}`, one number a task.
    """

    grads: PyTree
    state: PyTree
    metrics: Metrics


class MetaLearner(NamedTuple):
    """A meta-learning algorithm.

    `init`, `adapt` and `predict` speak of ONE task and have no task axis; `estimate`
    takes a batch of tasks. None of them is compiled; wrap them in `jax.jit` freely.

    Attributes:
      init: `(key, task) -> Variables`.
      adapt: `(variables, support, *, key=None) -> adapted`; what `adapted` holds is the
        algorithm's own business (weights, prototypes, a memory, ...).
      predict: `(adapted, x, *, key=None, mask=None) -> outputs`; the mask `[Q]` of
        padded queries matters to transductive learners only.
      estimate: `(variables, tasks, *, key) -> Estimate`.
      config: Name and hyper-parameters as pairs; read them with `describe`.

    Example:
      >>> learner = ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=5)
      >>> adapted = learner.adapt(variables, task.support)
      >>> outputs = learner.predict(adapted, task.query.x)
    """

    init: InitFn
    adapt: AdaptFn
    predict: PredictFn
    estimate: EstimateFn
    config: tuple[tuple[str, Any], ...] = ()


def config_of(name: str, **hparams: Any) -> tuple[tuple[str, Any], ...]:
    """The `config` of a learner: hashable pairs, the same in every process."""
    return (("name", name), *((k, _plain(v)) for k, v in hparams.items()))


def _plain(value: Any, depth: int = 0) -> Any:
    """A number or string as it is, a function by its name and the numbers it holds."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple) and depth < 6:  # also an optax transformation
        parts = [_plain(v, depth + 1) for v in value[-1:] if value]
        return parts[0] if hasattr(value, "_fields") else f"({', '.join(map(str, parts))})"
    if isinstance(value, Callable) and depth < 6:
        name = getattr(value, "__qualname__", type(value).__name__).split(".<locals>")[0]
        code, cells = getattr(value, "__code__", None), getattr(value, "__closure__", None)
        held = []
        for variable, cell in zip(
            getattr(code, "co_freevars", ()), cells or (), strict=False
        ):
            try:
                content = cell.cell_contents
            except ValueError:  # a name that the function around never bound
                continue
            if isinstance(content, (bool, int, float, str)):
                held.append(f"{variable}={content}")
            elif isinstance(content, tuple) and all(callable(c) for c in content):
                held += [str(_plain(c, depth + 1)) for c in content]
            elif callable(content) and not isinstance(content, type):
                held.append(str(_plain(content, depth + 1)))
        return f"{name}({', '.join(held)})" if held else name
    return type(value).__name__


def describe(learner: MetaLearner) -> dict[str, Any]:
    """Name and hyper-parameters of a learner, for logs and results."""
    return dict(learner.config) or {"name": "custom"}


def is_transductive(
    learner: MetaLearner, adapted: Any, x: Array, *, key: Any = None
) -> Array:
    """Scalar bool, measured: does the prediction of one query depend on the others?

    Predicts `x` `[Q, ...]` twice, the second time with all rows but the first set to
    zero, and compares the outputs of the first row. Traceable.
    """
    import jax.numpy as jnp

    def keep_first(leaf: Array) -> Array:
        return leaf.at[1:].set(0)

    whole = learner.predict(adapted, x, key=key)
    alone = learner.predict(adapted, jax.tree.map(keep_first, x), key=key)

    def scale(leaf: Array) -> Array:
        # Without the logits of absent classes (`losses.mask_absent`).
        return jnp.max(jnp.where(jnp.abs(leaf) < 1e8, jnp.abs(leaf), 0))

    changed = [
        jnp.any(jnp.abs(a[0] - b[0]) > 1e-3 * (1e-3 + scale(a)))
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True)
    ]
    return jnp.any(jnp.stack(changed))
