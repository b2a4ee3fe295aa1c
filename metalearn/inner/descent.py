"""Adaptation of a model by gradient descent on the support loss.

MAML and its relatives, Reptile and fine-tuning share this mechanism. Each algorithm adds
its own outer loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metalearn.core import checks, trees
from metalearn.core.keys import fold_key, split_key
from metalearn.core.losses import mask_absent, present_classes
from metalearn.core.model import Model, Variables
from metalearn.core.pairing import paired
from metalearn.core.task import Examples
from metalearn.core.types import Array, InnerOpt, Key, LossFn, PathFilter, PyTree
from metalearn.inner import differentiate
from metalearn.inner.differentiate import Differentiation, Implicit
from metalearn.inner.norm import NormPolicy, normaliser
from metalearn.inner.unroll import Unrolled, resolve, unroll


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """A model adapted to one task.

    Attributes:
      params: All parameters of the model, adapted and shared.
      state: The model's state for predictions, e.g. statistics of the support set.
      present: Bool `[W]`, classes of the task; `None` unless absent ones are masked.
      info: Further facts of the task that one algorithm needs, e.g. how the task was
        routed.
    """

    params: PyTree
    state: PyTree
    present: Array | None = None
    info: PyTree = None

    def replace(self, **changes: Any) -> Adapted:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)


class Descent(NamedTuple):
    """Adaptation and prediction under one set of options.

    Attributes:
      init: Function `(key, task) -> Variables` of the model, with the state laid out for
        the batch-norm policy.
      adapt: Function `(variables, hparams, support, *, key, train=False, opt_state=None)
        -> (Adapted, Unrolled)`. `Unrolled.params` holds the adapted subset only.
      predict: Function `(adapted, x, *, key, train=False, mask=None) -> (outputs, state)`.
      collect: Function `(state, unrolled, query_state) -> state`: the model's state after a
        training task.
    """

    init: Callable[..., Variables]
    adapt: Callable[..., tuple[Adapted, Unrolled]]
    predict: Callable[..., tuple[PyTree, PyTree]]
    collect: Callable[..., PyTree]


def descent(
    model: Model,
    loss_fn: LossFn,
    inner_opt: InnerOpt,
    *,
    num_steps: int,
    differentiation: Differentiation | Implicit = "reverse",
    adapt_filter: PathFilter | str | None = None,
    norm: NormPolicy = "support",
    trajectory: bool = False,
    batch_size: int | None = None,
    mask_absent_classes: bool = False,
    around: Callable[[Callable, PyTree], Callable] | None = None,
) -> Descent:
    """Gradient descent on the support loss as a record of pure functions.

    Args:
      model: The network.
      loss_fn: Loss of one task, e.g. `metalearn.core.losses.mse`.
      inner_opt: An optax transformation, or `hparams -> transformation`.
      num_steps: Number of inner steps S; static.
      differentiation: Way in which derivatives pass through the steps, see `unroll`.
      adapt_filter: Function `(path, leaf) -> bool`, or a regular expression of paths, that
        chooses the parameters that move; all when `None`.
      norm: Batch-norm policy, see `metalearn.inner.norm`.
      trajectory: Whether the result keeps the adapted subset before and after every step.
      batch_size: Number of examples that an inner step sees; all of them when `None`.
        Batches are drawn without replacement, by cycling through shuffled support sets.
      mask_absent_classes: Whether classes without a support example get a logit that never
        wins; for tasks with a variable number of ways.
      around: Function `(loss, params) -> loss` that replaces the support loss of the moving
        params. Both losses are functions `(params, step) -> (scalar, state)`.
    """
    checks.whole_number("num_steps", num_steps, least=0)
    if batch_size is not None:
        checks.whole_number("batch_size", batch_size, least=1)
    differentiate.check(differentiation)
    checks.adapt_filter(adapt_filter)
    # Every option is checked here, so that mistakes show before anything is traced.
    policy = normaliser(model, norm, num_steps)
    checks.loss(loss_fn)
    if num_steps:
        checks.inner_rate(inner_opt, num_steps)

    def init(key: Key, task: Any) -> Variables:
        variables = model.init(key, task.support.x)
        _check_selection(variables.params, adapt_filter)
        if num_steps and isinstance(inner_opt, optax.GradientTransformation):
            moving = trees.split(variables.params, adapt_filter)[0]
            checks.inner_optimiser_on(moving, inner_opt, None, second_order=False)
        state = policy.init(variables, task.support.x)
        return Variables(params=variables.params, state=state)

    def hide_absent(outputs: PyTree, present: Array | None) -> PyTree:
        return outputs if present is None else mask_absent(outputs, present)

    def adapt(variables, hparams, support, *, key, train=False, opt_state=None):
        moving, fixed = trees.split(variables.params, adapt_filter)
        k_order, k_model, k_settle = split_key(key, 3)
        batches = _batches(k_order, support, batch_size, num_steps)
        present = _present(model, variables, support) if mask_absent_classes else None

        def loss(moving: PyTree, step: Array) -> tuple[Array, PyTree]:
            examples = support if batches is None else batches(step)
            outputs, state = policy.support(
                trees.merge(moving, fixed),
                variables.state,
                examples,
                step,
                key=fold_key(k_model, step),
                train=train,
            )
            hidden = hide_absent(outputs, present)
            return _scalar(paired(loss_fn, hidden, examples)), state

        result = unroll(
            loss if around is None else around(loss, moving),
            moving,
            resolve(inner_opt, hparams),
            num_steps=num_steps,
            opt_state=opt_state,
            differentiation=differentiation,
            trajectory=trajectory,
        )
        params = trees.merge(result.params, fixed)
        state = policy.settle(params, variables.state, support, key=k_settle)
        return Adapted(params=params, state=state, present=present), result

    def predict(adapted, x, *, key=None, train=False, mask=None):
        outputs, state = policy.query(
            adapted.params, adapted.state, x, key=key, train=train, mask=mask
        )
        return hide_absent(outputs, adapted.present), state

    def collect(state: PyTree, unrolled: Unrolled, query_state: PyTree) -> PyTree:
        return policy.collect(state, unrolled.aux, query_state)

    return Descent(init, adapt, predict, collect)


def _scalar(loss: Any) -> Array:
    """The loss of a set, or a `TypeError` that says what the function gave instead."""
    shape, dtype = getattr(loss, "shape", None), getattr(loss, "dtype", None)
    if shape == () and jnp.issubdtype(dtype, jnp.floating):
        return loss
    given = f"a {type(loss).__name__}" if shape is None else f"{dtype}{list(shape)}"
    raise TypeError(
        f"loss_fn gave {given}; expected one real number, the mean over the valid examples "
        "of a task, as ml.masked_mean(values, examples.mask) of one value for each."
    )


def _present(model: Model, variables: Variables, support: Examples) -> Array:
    # The number of ways is the width of the logits, which shapes alone can tell.
    outputs = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True)[0], variables, support.x
    )
    trees.one_array(outputs, "the output of the network", "logits [N, W], to mask classes")
    return present_classes(support, outputs.shape[-1])


def _batches(
    key: Key | None, support: Examples, batch_size: int | None, num_steps: int
) -> Callable[[Array], Examples] | None:
    """`step -> Examples` of `batch_size`, cycling freshly shuffled support sets."""
    num = support.mask.shape[0]
    if batch_size is None or batch_size >= num:
        return None
    if key is None:
        raise ValueError(
            f"batch_size={batch_size} of {num} examples draws inner batches at random; "
            "give a key: adapt(variables, support, key=jax.random.key(0))."
        )
    rounds = max(-(-num_steps * batch_size // num), 1)
    # Valid rows in random order, then the masked ones, which are never reached.
    scores = jax.random.uniform(key, (rounds, num))
    orders = jnp.argsort(jnp.where(support.mask[None], scores, 2.0), axis=-1)
    valid = jnp.maximum(jnp.sum(support.mask), 1).astype(jnp.int32)

    def batch(step: Array) -> Examples:
        # Places count valid rows only, so each round passes through all of them once.
        places = step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        rows = orders[places // valid % rounds, places % valid]
        return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), support)

    return batch


def _check_selection(params: PyTree, adapt_filter: PathFilter | str | None) -> None:
    if adapt_filter is None:
        return
    moving, fixed = trees.split(params, adapt_filter)
    if not jax.tree.leaves(moving):
        raise ValueError(
            "adapt_filter selects no parameter, so nothing would adapt. The paths are: "
            + ", ".join(trees.leaf_paths(fixed))
        )
