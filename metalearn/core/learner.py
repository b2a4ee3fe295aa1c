"""The contract of every algorithm: a record of four pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from metalearn.core import trees
from metalearn.core.types import (
    AdaptFn,
    Array,
    EstimateFn,
    InitFn,
    Key,
    LossFn,
    Metrics,
    PredictFn,
    PyTree,
)

Plain = bool | int | float | str | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one batch of tasks says about the outer update.

    Attributes:
      grads: Gradients, like `Variables.params`; for Reptile what stands for them.
      state: State of the model after this batch, like `Variables.state`.
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
      loss_fn: Loss of one task that judges the learner where the caller names none;
        `None` leaves the judgement to a loss that is guessed from the targets.
      masks_absent: Whether `estimate` gives classes without a support example a logit that
        never wins, so that a query of such a class has no finite loss; `fit` refuses tasks
        with such queries then.
      training_classes: Number of training classes, if meta-training classifies all of them
        by `task.info["class_ids"]`; `fit` refuses tasks of further ones then.
      plan: `(variables, num, *, key) -> {name: [T, ...]}`, for learners that choose the
        tasks of their next outer step by what the last ones were like. The sampler's
        `sample.planned(data, plan of one task, key)` draws them; without it `fit` refuses
        the learner.

    Example:
      >>> learner = ml.maml(model, ml.losses.mse, optax.sgd(0.01), num_steps=5)
      >>> adapted = learner.adapt(variables, task.support)
      >>> outputs = learner.predict(adapted, task.query.x)
    """

    init: InitFn
    adapt: AdaptFn
    predict: PredictFn
    estimate: EstimateFn
    config: tuple[tuple[str, Plain], ...] = ()
    loss_fn: LossFn | None = None
    masks_absent: bool = False
    training_classes: int | None = None
    plan: Callable[..., dict[str, Array]] | None = None

    def __repr__(self) -> str:
        name, *settings = describe(self).items()
        return f"{name[1]}({', '.join(f'{k}={value!r}' for k, value in settings)})"


def hashable(fn: Callable | None) -> Callable | None:
    """The function itself, or one that calls it and can be the key of a cache."""
    try:
        hash(fn)
    except TypeError:  # such as a dataclass that is compared by its fields
        return _Called(fn)
    return fn


class _Called:
    """Calls another function; equal to whatever calls the same object."""

    def __init__(self, fn: Callable):
        self.__wrapped__ = fn

    # Otherwise each validation with such a loss would compile another program.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Called) and other.__wrapped__ is self.__wrapped__

    def __hash__(self) -> int:
        return id(self.__wrapped__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


def config_of(name: str, **hparams: Any) -> tuple[tuple[str, Plain], ...]:
    """The `config` of a learner: hashable pairs, the same in every process.

    Args:
      name: Name of the algorithm.
      **hparams: Its own numbers and words: bool, int, float, str or `None`, where numbers
        of NumPy become those of Python; a tuple of such is kept as its `str`.

    Raises:
      TypeError: an option is something else, such as a function or an optimiser: what it
        does cannot be read from it, so two that differ would look alike. Or the name is no
        text.
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; expected text, such as 'maml'.")
    return (("name", name), *((k, _plain(k, value)) for k, value in hparams.items()))


def _plain(option: str, value: Any) -> Plain:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value) is tuple:
        return str(tuple(_plain(option, part) for part in value))
    raise TypeError(
        f"the option {option} of a learner is a {type(value).__name__}; its description "
        "takes bool, int, float, str, None or a tuple of these. Give its numbers by name, "
        "or leave it out of config_of."
    )


def describe(learner: MetaLearner) -> dict[str, Plain]:
    """Name and hyper-parameters of a learner, for logs and results.

    A learner without a `config` is called by the function that made it: "my_learner" if its
    `init` is defined in `def my_learner(...)`; "custom" if its functions have no such home.
    """
    if not isinstance(learner, MetaLearner):
        raise TypeError(
            f"learner is a {type(learner).__name__}; expected a MetaLearner, such as "
            "ml.maml(...) makes."
        )
    config = dict(learner.config)
    return config if "name" in config else {"name": _home(learner), **config}


def _home(learner: MetaLearner) -> str:
    """Name of the function in which the functions of a learner were defined."""
    for part in (learner.init, learner.adapt, learner.predict):
        names = getattr(part, "__qualname__", "").split(".<locals>.")
        if len(names) > 1 and names[-2].split(".")[-1].isidentifier():
            return names[-2].split(".")[-1]
    return "custom"


def is_transductive(
    learner: MetaLearner, adapted: PyTree, x: PyTree, *, key: Key | None = None
) -> Array:
    """Scalar bool, measured: does the prediction of one query depend on the others?

    Predicts `x` `[Q, ...]` twice, the second time with all rows but the first set to
    zero, and compares the outputs of the first row. Traceable.
    """
    import jax.numpy as jnp

    def keep_first(leaf: Array) -> Array:
        return leaf.at[1:].set(jnp.zeros((), leaf.dtype))

    whole = learner.predict(adapted, x, key=key)
    alone = learner.predict(adapted, jax.tree.map(keep_first, x), key=key)
    # float16 does not hold the numbers below.
    whole, alone = jax.tree.map(trees.widened, (whole, alone))

    def scale(leaf: Array) -> Array:
        # The logits of absent classes (`losses.mask_absent`) are huge by construction;
        # beside them no change of the others would count.
        return jnp.max(jnp.where(jnp.abs(leaf) < 1e8, jnp.abs(leaf), 0))

    changed = [
        jnp.any(jnp.abs(a[0] - b[0]) > 1e-3 * (1e-3 + scale(a)))
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True)
    ]
    return jnp.any(jnp.stack(changed))
