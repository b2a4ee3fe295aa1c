"""Aliases and the contracts of every function that users may write themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import jax
import optax

Array = jax.Array
Key = jax.Array  # a typed PRNG key, `jax.random.key(seed)`
PyTree = Any
Metrics = Mapping[str, Array]
PathFilter = Callable[[str, Any], bool]  # ("Dense_0/kernel", leaf) -> adapted?
TaskChunk = int | Literal["auto"]  # tasks handled at once
# The optimiser of the inner loop, or `hparams -> optimiser` if the hparams are learned.
InnerOpt = optax.GradientTransformation | Callable[[PyTree], optax.GradientTransformation]
# Initial hyper-parameters, or `(key, adapted params) -> hparams`.
InnerHparams = PyTree | Callable[[Key, PyTree], PyTree]


class LossFn(Protocol):
    """Loss of one task: the mean over the valid examples."""

    def __call__(self, outputs: PyTree, examples: Any) -> Array:
        """Maps outputs `[N, ...]` and `Examples` to a scalar."""


class InitFn(Protocol):
    def __call__(self, key: Key, task: Any) -> Any:
        """Makes the `Variables` of a learner from the shapes of one task."""


class AdaptFn(Protocol):
    def __call__(self, variables: Any, support: Any, *, key: Key | None = None) -> Any:
        """Adapts to the support set of one task and returns the argument of `predict`."""


class PredictFn(Protocol):
    def __call__(
        self,
        adapted: Any,
        x: PyTree,
        *,
        key: Key | None = None,
        mask: Array | None = None,
    ) -> PyTree:
        """Outputs `[Q, ...]` for the inputs `x` `[Q, ...]` of one task.

        The mask, bool `[Q]`, marks the valid rows; without a mask all rows are valid. Only
        transductive learners, which look across queries, read the mask.
        """


class EstimateFn(Protocol):
    def __call__(self, variables: Any, tasks: Any, *, key: Key) -> Any:
        """The `Estimate` of the meta-gradient from a batch of tasks."""


class Objective(Protocol):
    def __call__(self, variables: Any, task: Any, *, key: Key) -> Any:
        """`(loss, (state, metrics))` of one task, differentiated in `params`."""
