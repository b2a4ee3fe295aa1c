"""Models as pure functions, and the two meanings that training has for them.

Training switches on two things: *noise*, such as dropout, and *batch statistics* in place
of running averages. A task needs them apart: adaptation at test may normalise by its
support set, and must not drop anything. `run` asks a model for either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from metalearn.core.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variables:
    """All arrays of a model or a learner.

    Attributes:
      params: Parameters, which the outer optimiser learns.
      state: Arrays that are carried along and not differentiated, e.g. running statistics.
        A model without state has `{}`, never `None` or `()`.
    """

    params: PyTree
    state: PyTree


class ApplyFn(Protocol):
    def __call__(
        self,
        variables: Variables,
        x: PyTree,
        *,
        key: Key | None = None,
        train: bool = False,
        mask: Array | None = None,
    ) -> tuple[PyTree, PyTree]:
        """Returns `(outputs, state)`; the state is unchanged unless `train` is true."""


class SplitFn(Protocol):
    def __call__(
        self,
        variables: Variables,
        x: PyTree,
        *,
        key: Key | None = None,
        noise: bool = False,
        batch: bool = False,
        mask: Array | None = None,
    ) -> tuple[PyTree, PyTree]:
        """As `ApplyFn`, with the two meanings of `train` apart.

        With `noise` the model draws at random, as dropout does. With `batch` it normalises
        by statistics of `x` and returns the state that these have moved; otherwise it uses
        the state, and returns it unchanged.
        """


class Model(NamedTuple):
    """A network as pure functions over one batch of inputs.

    Two functions are enough. Where a model both keeps a state and draws at random in
    training, `split` says how to have one without the other. `from_linen` and `from_nnx`
    provide it.

    Attributes:
      init: Function `(key, x) -> Variables` for inputs `x` `[N, ...]`.
      apply: Function `(variables, x, *, key=None, train=False, mask=None) -> (outputs,
        state)`. The mask, bool `[N]`, marks valid rows for layers that look across
        examples.
      split: Function `(variables, x, *, key=None, noise=False, batch=False, mask=None) ->
        (outputs, state)`, which is `apply` with noise and batch statistics apart; `None`
        if the model has none. See `run`.
      about: What the model is made of and how it is told to train, for `print`.
    """

    init: Callable[[Key, PyTree], Variables]
    apply: ApplyFn
    split: SplitFn | None = None
    about: str = "functions of your own, told train=True in training"

    def __repr__(self) -> str:
        return f"Model({self.about})"


def run(
    model: Model,
    variables: Variables,
    x: PyTree,
    *,
    key: Key | None = None,
    noise: bool,
    batch: bool,
    mask: Array | None = None,
) -> tuple[PyTree, PyTree]:
    """Outputs and state of a model, with noise and batch statistics asked for apart.

    A model without `split` has one switch, `train`. Without a state there are no running
    averages to replace, so the switch means noise. With a state it means batch statistics;
    `metalearn.inner.norm` refuses such a model where noise would come with them.

    Args:
      model: The network.
      variables: Its params and state.
      x: Inputs, leaves `[N, ...]`.
      key: Key of the noise.
      noise: Whether the model draws at random, as dropout does.
      batch: Whether it normalises by statistics of `x` and moves its state.
      mask: Mask of the valid rows, bool `[N]`.

    Returns:
      The outputs, and the state; unchanged without `batch`.
    """
    if noise == batch:
        return model.apply(variables, x, key=key, train=batch, mask=mask)
    if model.split is not None:
        return model.split(variables, x, key=key, noise=noise, batch=batch, mask=mask)
    train = batch if jax.tree.leaves(variables.state) else noise
    return model.apply(variables, x, key=key, train=train, mask=mask)


def kept_without_rows(new: PyTree, old: PyTree, mask: Array | None) -> PyTree:
    """The new state of a model, or the old one if a batch had no valid row.

    Masked rows stand in for such a batch, see `with_a_row`. What comes of them is finite,
    but no statistics of a task.
    """
    if mask is None:
        return new
    some = jnp.any(mask)
    return jax.tree.map(lambda n, o: jnp.where(some, n, o), new, old)


def with_a_row(apply: Callable, *switches: str) -> Callable:
    """The same function, in which all rows count as valid if training has no valid row.

    Batch norm divides by the number of valid rows. Without a valid row the outputs, the
    state and the gradients would be NaN, and no mask of a loss removes NaN. The state is
    then finite but meaningless; `kept_without_rows` discards it.

    Args:
      apply: An `ApplyFn` or a `SplitFn`.
      *switches: Names of the arguments that ask for batch statistics.
    """

    def guarded(variables, x, *, key=None, mask=None, **given):
        moves = any(given.get(switch) for switch in switches)
        if moves and mask is not None and jax.tree.leaves(variables.state):
            # By value and not by `if`: inside `jit` and `vmap` the mask has no value in
            # Python.
            mask = jnp.where(jnp.any(mask), mask, True)
        return apply(variables, x, key=key, mask=mask, **given)

    return guarded
